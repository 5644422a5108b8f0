"""Membership inference as metrics: how well members are told from images that a model never saw.

``membership_auc`` and the two shares are those of the attack that the scenario names. In brackets
stand the other attacks (``membership_auc[lira, offline]``), and the held-out images as members of
what was released (``membership_auc[held-out]``): a defence trains on them.
"""

import math

from fl_sim.metrics.vocabulary import HIGHER_LEAKS, METRICS, Metric

METRICS.register("membership_auc", "AUC of telling training images from images never seen")(
    Metric(
        "AUC of membership",
        "privacy",
        HIGHER_LEAKS,
        brief=3,
        range=(0.0, 1.0),
        floors=("membership_auc_floor",),
        heading="membership\nAUC",
        order=40,
    )
)
METRICS.register("membership_auc_floor", "that AUC by guessing, 0.5")(
    Metric("AUC of membership by guessing", "privacy", range=(0.0, 1.0), shown=(), order=41)
)
METRICS.register(
    "membership_tpr_at_1_percent", "training images found, at 1 % of false alarms among others"
)(
    Metric(
        "Members found at 1 % of false alarms",
        "privacy",
        HIGHER_LEAKS,
        format="percent",
        range=(0.0, 1.0),
        floors=("membership_tpr_at_1_percent_floor",),
        shown=("summary",),
        trials="membership_members",
        order=42,
    )
)
METRICS.register("membership_tpr_at_1_percent_floor", "the same by guessing")(
    Metric(
        "Members found at 1 % of false alarms, by guessing",
        "privacy",
        format="percent",
        range=(0.0, 1.0),
        shown=(),
        order=43,
    )
)
METRICS.register(
    "membership_tpr_at_1_per_mille", "training images found, at 0.1 % of false alarms among others"
)(
    Metric(
        "Members found at 0.1 % of false alarms",
        "privacy",
        HIGHER_LEAKS,
        format="percent",
        range=(0.0, 1.0),
        floors=("membership_tpr_at_1_per_mille_floor",),
        heading="members at\n0.1 % FPR",
        trials="membership_members",
        order=44,
    )
)
METRICS.register("membership_tpr_at_1_per_mille_floor", "the same by guessing")(
    Metric(
        "Members found at 0.1 % of false alarms, by guessing",
        "privacy",
        format="percent",
        range=(0.0, 1.0),
        shown=(),
        order=45,
    )
)
METRICS.register("membership_members", "training images whose membership is inferred")(
    Metric("Members", "other", format="count", range=(0.0, math.inf), shown=(), order=30)
)
METRICS.register("membership_nonmembers", "images never seen that they are told from")(
    Metric("Images never seen", "other", format="count", range=(0.0, math.inf), shown=(), order=31)
)
