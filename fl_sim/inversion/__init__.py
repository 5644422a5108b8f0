"""Model inversion: images of what a released classifier takes for its classes, and what they show.

Nothing has to be hidden for it: whoever has the model file looks for images that it is sure of. See
:mod:`fl_sim.inversion.search` and, for what the images tell, :mod:`fl_sim.inversion.measured`.
"""
