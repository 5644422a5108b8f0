"""Which registered network a state dictionary is of, told by its names and shapes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fl_sim.errors import FlSimError
from fl_sim.models import build
from fl_sim.models.base import MODELS, ModelSpec, Stem, TaskFamily

State = dict[str, torch.Tensor]
SIZES = (28, 8, 12, 16, 24, 32, 48, 64, 96, 128, 224)
"""Image sides that are tried; the first that fits is taken where shapes do not tell."""

_SUFFICIENT = 0.6


@dataclass(frozen=True)
class Guess:
    """A network that the names and shapes fit.

    Args:
        spec: the architecture.
        share: of its entries that the file has in their shape.
        size_known: whether only one of the sides tried fits so well.
    """

    spec: ModelSpec
    share: float
    size_known: bool


def guess(state: State) -> Guess | None:
    """Return the registered network that fits best; ``None`` if none has 60 % of its entries there.

    Args:
        state: names and shapes count.
    """
    best: list[tuple[float, int, ModelSpec]] = []
    for spec in _candidates(state):
        share = _share(spec, state)
        if share is not None:
            best.append((share, -len(best), spec))
    if not best:
        return None
    share, _, spec = max(best, key=lambda entry: entry[:2])
    if share < _SUFFICIENT:
        return None
    alike = [s for value, _, s in best if value == share and s.name == spec.name]
    return Guess(spec, share, len({s.size for s in alike}) == 1)


def _candidates(state: State) -> Iterator[ModelSpec]:
    matrices = [t.shape for t in state.values() if t.dim() == 2]
    kernels = [t.shape for t in state.values() if t.dim() == 4]
    channels = {int(k[1]) for k in kernels if k[1] in (1, 3)} or {1, 3}
    for entry in MODELS.entries():
        model = entry.component
        task = model.tasks[0]
        shapes = kernels if task == "segmentation" else matrices
        # Of several that fit one class count is right: the output's, which is the last as a rule.
        classes = list(dict.fromkeys(int(s[0]) for s in reversed(shapes) if s[0] <= 1000))[:2]
        for stem in model.stems:
            if not _names_fit(entry.name, stem, task, state):
                continue
            for side in SIZES:
                for count in classes:
                    for channel in sorted(channels, reverse=True):
                        yield ModelSpec(
                            name=entry.name, channels=channel, size=side, classes=count,
                            stem=stem, task=task,
                        )  # fmt: skip


def _names_fit(model: str, stem: Stem, task: TaskFamily, state: State) -> bool:
    """Whether most names of a network are there, whatever the shapes: building is slow."""
    side = max(64, MODELS.get(model).min_sizes[stem])
    spec = ModelSpec(name=model, channels=3, size=side, classes=2, stem=stem, task=task)
    try:
        with torch.device("meta"):
            names = build(spec).state_dict().keys()
    except (FlSimError, RuntimeError, NotImplementedError, ValueError):
        return False
    return len(names & state.keys()) >= _SUFFICIENT * len(names)


def _share(spec: ModelSpec, state: State) -> float | None:
    """Return the share of a network's entries that a state has; shapes only, nothing is drawn."""
    try:
        with torch.device("meta"):
            own = build(spec).state_dict()
    except (FlSimError, RuntimeError, NotImplementedError, ValueError):
        return None
    fitting = sum(name in state and state[name].shape == t.shape for name, t in own.items())
    return fitting / len(own)
