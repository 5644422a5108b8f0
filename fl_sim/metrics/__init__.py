"""Leakage, utility and floors."""
