"""From a model's answers to what they tell of membership."""

import numpy as np
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.membership_inference.base import MembershipSettings, method_of
from fl_sim.membership_inference.outcome import Membership
from fl_sim.membership_inference.references import References
from fl_sim.membership_inference.signals import Floats


def infer(
    target: Floats,
    known: References,
    members: int,
    settings: MembershipSettings | None = None,
    patients: NDArray[np.str_] | None = None,
) -> Membership:
    """Infer membership from answers alone: no model is asked.

    Args:
        target: ``[n]``, the target's log-odds of each image's label, members first; see
            :mod:`fl_sim.membership_inference.signals`.
        known: the same of reference models, ``[models, n]``, and which images each has seen.
        members: how many of the images the target was trained on; the others are fresh.
        settings: which attack; by default RMIA. Its number of references is how many there are.
        patients: of each image, ``[n]``, where known.

    Raises:
        FlSimError: if shapes do not fit, an answer is no number, or the attack needs more
            reference models.
    """
    chosen = (settings or MembershipSettings()).model_copy(update={"references": len(known.odds)})
    shape = (len(known.odds), len(target))
    if known.odds.shape != shape or known.included.shape != shape:
        raise FlSimError(
            f"The target answers {len(target)} images, and the reference models' answers and "
            f"images have shapes {list(known.odds.shape)} and {list(known.included.shape)}; "
            f"both should be {list(shape)}."
        )
    if not (np.isfinite(target).all() and np.isfinite(known.odds).all()):
        raise FlSimError(
            "An answer is no finite number; log_odds and log_odds_of_probabilities give such."
        )
    if not 0 < members < len(target):
        raise FlSimError(
            f"Of {len(target)} images {members} are members; there must be members and others."
        )
    fresh = np.arange(len(target)) >= members
    method = method_of(chosen.name, chosen.mode, len(known.odds))
    return Membership(chosen, method.score(target, known, fresh), members, patients)
