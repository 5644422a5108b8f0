"""Defences applied at release, one file each."""
