"""Model inversion as metrics: what class representatives of a model show of its training images.

See :mod:`fl_sim.inversion.measured`: each is compared with the nearest training image of its class.
"""

import math

from fl_sim.metrics.vocabulary import HIGHER_LEAKS, METRICS, Metric

METRICS.register(
    "inversion_ssim", "SSIM of class representatives with the nearest training image of the class"
)(
    Metric(
        "SSIM of class representatives",
        "privacy",
        HIGHER_LEAKS,
        range=(-1.0, 1.0),
        floors=("inversion_ssim_floor_class_mean", "inversion_ssim_floor_random"),
        heading="inversion\nSSIM",
        order=50,
    )
)
METRICS.register(
    "inversion_trained_on", "class representatives whose nearest image was trained on, not public"
)(
    Metric(
        "Class representatives nearest to a training image",
        "privacy",
        HIGHER_LEAKS,
        format="percent",
        range=(0.0, 1.0),
        floors=("inversion_trained_on_floor",),
        shown=("summary",),
        trials="inversion_images",
        order=52,
    )
)
METRICS.register("inversion_trained_on_floor", "the same by guessing, one half")(
    Metric(
        "Class representatives nearest to a training image, by guessing",
        "privacy",
        format="percent",
        range=(0.0, 1.0),
        shown=(),
        order=53,
    )
)
METRICS.register("inversion_sure", "probability that a model gives its class representatives")(
    Metric("Certainty of class representatives", "other", range=(0.0, 1.0), shown=(), order=40)
)
METRICS.register("inversion_images", "class representatives that were compared")(
    Metric(
        "Class representatives",
        "other",
        format="count",
        range=(0.0, math.inf),
        shown=(),
        order=41,
    )
)
