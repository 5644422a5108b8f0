"""The verbs: attack, clean, extract, restore, measure, evaluate, audit, gate, membership, invert.

``fl_sim`` exports them. They take ordinary networks, files and images and use the same parts, by
the same names and settings, as a scenario does.
"""
