"""The payload: how codes are framed so that a damaged one still gives back what is intact."""
