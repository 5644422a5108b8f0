"""Flower's strategies, one registration each; a new one is one new file."""
