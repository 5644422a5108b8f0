"""What a model file from outside holds, once it was read and accounted for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fl_sim.checkpoints.finding import Finding
from fl_sim.models.base import ModelSpec

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        state: the state dictionary, strided contiguous tensors on the CPU, without wrappers'
            prefixes; names as they may be shown (see :func:`fl_sim.errors.legible`).
        spec: the architecture, where the file states it (fl-sim's own files do).
        findings: what is odd about the file itself.
        layouts: how entries are stored that are not plain tensors (sparse, quantised), in words, by
            name.
        copies: further copies of the weights in the file, such as an average, by what they are.
        format: what the file is, in words.
        parts: what a layout needs beside its values (positions of a sparse tensor's values, scales
            of a quantised one's), by ``name.part``; the file's bytes too, though no weights.
    """

    state: State
    spec: ModelSpec | None = None
    findings: tuple[Finding, ...] = field(default=())
    layouts: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, State] = field(default_factory=dict)
    format: str = "state dictionary"
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)
