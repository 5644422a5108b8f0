"""Words of the long table that say which extraction a number is of."""

NO_EXTRACTION = "-"
RAW = "raw"
STRONGEST = "strongest"
"""What stands for no extraction, for what came out of the model, and for the best of all."""
