"""Networks that no threshold of the auditor or the gate was set on, clean and attacked.

They are made by a plain PyTorch loop (``loop.py``) and, but for the attacks of ``written.py``,
without a line of ``fl_sim``: what a detector has learned of its authors' way of training must not
help it here.
"""
