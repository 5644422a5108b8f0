"""The ROC curve of an attack that decides by a threshold: its area, and one end of it."""

import math

import numpy as np

from fl_sim.membership_inference.signals import Floats


def auc_of(members: Floats, fresh: Floats) -> float:
    """Return the area under the ROC curve: how often a member is before a fresh image.

    Args:
        members: ``[m]``, order of members; higher for what is rather one.
        fresh: ``[n]``, of images that are none. Ties count one half.
    """
    return float(_placements(members, fresh)[0].mean())


def auc_error(members: Floats, fresh: Floats) -> float:
    """Return the standard error of that area over both kinds of images.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988): ``var(V10) / m + var(V01) / n``, of
    each member's share of fresh images behind it, and each fresh image's of members before it.

    Returns:
        The error; ``nan`` of a single image of a kind.
    """
    if len(members) < 2 or len(fresh) < 2:
        return math.nan
    seen, unseen = _placements(members, fresh)
    return math.sqrt(seen.var(ddof=1) / len(seen) + unseen.var(ddof=1) / len(unseen))


def threshold_at(fresh: Floats, rate: float) -> float:
    """Return the lowest threshold that at most a share of fresh images exceeds.

    Args:
        fresh: ``[n]``, order of images that are no members.
        rate: the share, in [0, 1].
    """
    allowed = _allowed(len(fresh), rate)
    return -math.inf if allowed >= len(fresh) else float(np.sort(fresh)[::-1][allowed])


def chance_at(fresh: int, rate: float) -> float:
    """Return the share of members that guessing finds, on average, above that threshold.

    ``(k + 1) / (n + 1)``, where ``k`` of ``n`` fresh images may exceed it: somewhat more than the
    rate where fresh images are few.
    """
    allowed = _allowed(fresh, rate)
    return 1.0 if allowed >= fresh else (allowed + 1) / (fresh + 1)


def _allowed(fresh: int, rate: float) -> int:
    return math.floor(rate * fresh + 1e-9)


def _placements(members: Floats, fresh: Floats) -> tuple[Floats, Floats]:
    """Return the share of fresh images behind each member, and of members before each fresh one."""
    from scipy.stats import rankdata

    both = rankdata(np.concatenate([members, fresh]))
    behind = (both[: len(members)] - rankdata(members)) / len(fresh)
    before = 1 - (both[len(members) :] - rankdata(fresh)) / len(members)
    return behind, before
