"""Flower client side: the honest and the malicious hospital."""
