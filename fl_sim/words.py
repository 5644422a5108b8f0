"""Words of the long table that say which extraction a number is of."""

NO_EXTRACTION = "-"
RAW = "raw"
CHOSEN = "chosen"
STRONGEST = "strongest"
"""What stands for no extraction, for what came out of the model, for what an attacker would choose
without a true image, and for the best of all, which takes the true images to pick."""

SUMMED_UP = (RAW, CHOSEN, STRONGEST)
"""Extractions that summaries have columns of, in order."""
