"""Weights from decisions: a head's rows by logistic regression on what it decides."""

import warnings

import numpy as np
import torch

from fl_sim.errors import FlSimError

_STEPS = 300


def head_from_decisions(
    features: torch.Tensor, decisions: torch.Tensor, classes: int, strength: float = 100.0
) -> torch.Tensor:
    """Return a head that decides as another did, as far as its decisions tell.

    Known up to a common row and a factor, which change no decision; a class that was never decided
    has a row of zeros.

    Args:
        features: ``[questions, D]`` of the images that were asked about.
        decisions: int64 ``[questions]``, the class of each.
        classes: rows of the head.
        strength: inverse of the L2 penalty, as scikit-learn's ``C``.

    Returns:
        float32 ``[classes, D + 1]``, the bias last.

    Raises:
        FlSimError: if all decisions are the same.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    said = decisions.cpu().numpy()
    if len(np.unique(said)) < 2:
        raise FlSimError(
            "The head decided the same class for all images, which tells no weights; ask about "
            "other images."
        )
    # Features of one size make the penalty mean the same for all.
    scale = float(features.std().clamp_min(1e-12))
    with warnings.catch_warnings():
        # Separable decisions have no finite optimum but for the penalty: near is enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=strength, max_iter=_STEPS).fit(
            (features / scale).cpu().numpy(), said
        )
    rows = np.concatenate([fitted.coef_ / scale, fitted.intercept_[:, None]], axis=1)
    if len(fitted.classes_) == 2:  # one row, of the second against the first
        rows = np.concatenate([-rows / 2, rows / 2])
    head = np.zeros((classes, features.shape[1] + 1), dtype=np.float32)
    head[fitted.classes_] = rows
    return torch.from_numpy(head)
