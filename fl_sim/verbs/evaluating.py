"""``fl_sim.evaluate``: what a network is worth for its task."""

from typing import TYPE_CHECKING, Any

from fl_sim.errors import FlSimError
from fl_sim.metrics.utility import measured_utility
from fl_sim.metrics.vocabulary import describe
from fl_sim.models.pixels import Normalization
from fl_sim.verbs.cleaning import given_with_weights
from fl_sim.verbs.images import is_labelled, split_of, task_of
from fl_sim.verbs.network import Make, State, fits

if TYPE_CHECKING:
    import pandas as pd


def evaluate(
    model: Any,
    images: Any,
    labels: Any = None,
    /,
    *,
    state: State | None = None,
    make: Make | None = None,
    normalize: Normalization = "symmetric",
    classes: int | None = None,
) -> "pd.Series[float]":
    """Measure what a network is worth on images that it was not trained on.

    Args:
        model: the network; what :func:`fl_sim.attack` or :func:`fl_sim.clean` returned; or a
            function or a name, with ``state``. It is copied, and left as it is.
        images: test images; see :func:`fl_sim.verbs.images.split_of`.
        labels: theirs, where ``images`` does not bring them.
        state: weights instead of the model's own.
        make: a function that makes a fresh network like ``model``.
        normalize: how the network takes pixels, as in :func:`fl_sim.clean`. What ``attack`` and
            ``clean`` returned as a whole knows it.
        classes: outputs of a network that a function or name makes; otherwise told by the labels.

    Returns:
        Numbers from 0 to 1 by name: AUC, accuracy and balanced accuracy; of several labels, AUC of
        each, too; of a segmentation, Dice. See :func:`fl_sim.metrics.utility.utility`.

    Raises:
        FlSimError: if there are no labels, or they and the network do not fit.
    """
    import pandas as pd

    split = split_of(images, labels, "test images")
    if not is_labelled(split):
        raise FlSimError("What a network is worth is measured with labels; give the images'.")
    network, weights = given_with_weights(model, split, state, normalize, make, classes, 0)
    fits(weights, network.model, "The state dictionary")
    network.model.load_state_dict(weights, strict=False)
    task = task_of(split, network.spec.classes, network.spec.task == "segmentation")
    found = measured_utility(network.model, split, task)
    return pd.Series({describe(name).word: value for name, value in found.items()}, dtype=float)
