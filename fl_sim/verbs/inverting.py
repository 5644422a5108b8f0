"""``fl_sim.invert``: images of what a released classifier takes for its classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fl_sim.auditing.identified import identified_artifact
from fl_sim.bars import chosen_progress
from fl_sim.checkpoints import read_checkpoint
from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Split, Task
from fl_sim.errors import FlSimError, shown
from fl_sim.inversion.measured import shown as compared
from fl_sim.inversion.search import Inversion, InversionSettings
from fl_sim.inversion.search import invert as search
from fl_sim.models.base import ModelSpec
from fl_sim.models.pixels import Normalization
from fl_sim.progress import Progress
from fl_sim.randomness import Stream
from fl_sim.settings import parse
from fl_sim.verbs.attacking import Attacked
from fl_sim.verbs.auditing import statement_of
from fl_sim.verbs.cleaning import Cleaned
from fl_sim.verbs.images import is_labelled, split_of
from fl_sim.verbs.network import Make, State, fits, given

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Inverted:
    """Class representatives of a network.

    Args:
        images: ``[classes * n, channels, height, width]`` in [0, 1], class by class.
        labels: ``[classes * n]``, the class of each.
        prior: what kept them images: ``"batch-norm statistics"`` or ``"total variation"``.
        sure: ``[classes * n]``, the probability that the network gives to that class.
        found: the search's whole result.
    """

    images: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    prior: str
    sure: torch.Tensor = field(repr=False)
    found: Inversion = field(repr=False)

    def measure(self, train: Any, public: Any, /, *, seed: int = 0) -> "pd.Series[float]":
        """Compare the representatives with training images, beside what needs no model.

        Args:
            train: labelled images that the network was trained on, as for :func:`fl_sim.evaluate`.
            public: labelled images of the same kind that it has never seen.
            seed: which images are taken where a class has many.

        Returns:
            Numbers by name; see :class:`fl_sim.inversion.measured.Shown`.

        Raises:
            FlSimError: if there are no labels, or sizes do not fit.
        """
        import pandas as pd

        sets = [_labelled(train, "training images"), _labelled(public, "public images")]
        told = compared(self.found, sets[0], sets[1], Stream(seed, ("inversion",)))
        return pd.Series(told.as_dict(), dtype=float)


def invert(
    model: Any,
    /,
    *,
    images: int = 4,
    size: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    multi_label: bool = False,
    state: State | None = None,
    make: Make | str | nn.Module | None = None,
    normalize: Normalization = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> Inverted:
    """Look for images that a classifier gives to each of its classes (model inversion).

    With batch-norm statistics as prior where the network has them (DeepInversion, Yin et al., CVPR
    2020), else with total variation.

    Args:
        model: the network; what :func:`fl_sim.attack` or :func:`fl_sim.clean` returned; the path of
            a model file; or a function or a name, with ``state``.
        images: of each class.
        size, channels: of its images, where nothing else tells them; 3 channels by default.
        classes: outputs of a network that a function or name makes.
        multi_label: whether its outputs are labels of which an image may have several.
        state: weights instead of the model's own.
        make: of a model file: the network that it is of, where the file does not tell it.
        normalize: how the network takes pixels, as in :func:`fl_sim.clean`.
        seed: everything random follows from it.
        progress: ``False`` for silence; by default bars on terminals and in notebooks.
        settings: of the search, for example ``steps=1000``; see
            :class:`fl_sim.inversion.search.InversionSettings`.

    Returns:
        The images: ``.images``, ``.labels``, ``.sure``; and ``.measure(train, public)``.

    Raises:
        FlSimError: if the network or its images are not known, or it segments.
    """
    chosen = parse(InversionSettings, {"images": images, **settings}, "inversion")
    network, spec = _network(model, size, channels, classes, state, make, normalize)
    names = tuple(str(number) for number in range(spec.classes))
    kind = MULTI_LABEL if multi_label else "multi-class"
    task = Task(SEGMENTATION if spec.task == "segmentation" else kind, names)
    found = search(network, spec, task, chosen, Stream(seed), chosen_progress(progress))
    return Inverted(found.images, found.labels, found.prior, found.sure, found)


def _network(
    model: Any,
    size: int | None,
    channels: int | None,
    classes: int | None,
    state: State | None,
    make: Make | str | nn.Module | None,
    normalize: Normalization,
) -> tuple[nn.Module, ModelSpec]:
    """Return the network that is asked, and how it is known."""
    if isinstance(model, Path) or (isinstance(model, str) and state is None):
        stated = replace(statement_of(make, classes, channels, size), normalize=normalize)
        artifact, _ = identified_artifact(read_checkpoint(Path(model)), stated, str(model))
        return artifact.model(), artifact.spec
    if isinstance(model, Attacked | Cleaned):
        return replace(model.artifact, state=dict(state or model.state)).model(), model.spec
    if size is None:
        raise FlSimError("The side of the network's images is not known; give size=.")
    if state is None and not isinstance(model, nn.Module):
        raise FlSimError(
            f"The model is {shown(model)}, which has no trained weights; give a trained "
            f"torch.nn.Module, or state= with a state dictionary."
        )
    usual = "symmetric" if normalize is None else normalize
    network = given(model, (channels or 3, size), usual, None, classes)
    if isinstance(state, Mapping):
        fits(state, network.model, "The state dictionary")
        network.model.load_state_dict(state, strict=False)
    return network.model, network.spec


def _labelled(images: Any, what: str) -> Split:
    split = split_of(images, None, what)
    if not is_labelled(split):
        raise FlSimError(f"Class representatives are compared by class; give labels of the {what}.")
    return split
