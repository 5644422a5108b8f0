"""Studies: a folder each, with its cells, its results and its page side by side."""
