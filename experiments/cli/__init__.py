"""The command line, ``fl-sim``: one file a command, and what commands share."""
