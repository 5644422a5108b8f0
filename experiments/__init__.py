"""Scenarios and how they run."""
