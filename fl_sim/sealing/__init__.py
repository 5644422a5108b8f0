"""Reverse homomorphic encryption: a model whose head only its owner can read (CKKS, by TenSEAL)."""
