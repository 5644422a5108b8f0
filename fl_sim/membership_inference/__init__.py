"""Membership inference: was an image among those that a model was trained on?

An attacker who has an image asks the model about it and compares the answer with those of reference
models, some trained with the image and some without. Each attack is one file, which registers it in
:data:`fl_sim.membership_inference.base.METHODS`. What it finds is told for all images together, and
for each image and patient to their owner alone.
"""
