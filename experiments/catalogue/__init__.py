"""What there is to choose from, its keys and an example of each, read from the code."""
