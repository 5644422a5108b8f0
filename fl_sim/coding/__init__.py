"""Error-correcting codes, one file each: what keeps a payload whole on a channel that is not."""
