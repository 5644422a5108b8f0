"""Carriers, one file each: where in a model file a payload travels."""
