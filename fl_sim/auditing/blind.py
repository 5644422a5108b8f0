"""What no check of the auditor sees, said beside every verdict."""

BLIND = (
    "Clean means that nothing was found, not that nothing is there. Bits that are encrypted or "
    "well compressed and written into low planes, keyed lattices and spread patterns look like "
    "trained weights to every test here; so do values that training itself put there. Against "
    "these only cleaning helps: fl-sim gate."
)
"""What a reader of every report has to know."""
