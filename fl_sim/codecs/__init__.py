"""Codecs, one file each: images to bytes and back."""
