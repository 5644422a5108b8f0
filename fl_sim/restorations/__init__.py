"""Restorations, one file each: what an attacker does to extracted images before looking."""
