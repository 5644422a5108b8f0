"""The verbs: attack, clean, extract, measure, audit, gate, on ordinary networks, files and images.

``fl_sim`` exports them. They take what a program has at hand and use the same parts, by the same
names and settings, as a scenario does.
"""
