"""Reverse homomorphic encryption: a head that its owner trained leaves encrypted.

Allison, Maciazek and Bourne 2025, arXiv 2505.14323 ("RHE"): a network is a base, in clear, and a
head of one linear layer, or of two with a square between, that the owner trains on his images and
encrypts (CKKS). Whoever receives it can compute encrypted answers; only the owner can read them,
and gives back decisions. It is a form of export rather than a cleaning: nothing in the base
changes, and what leaves is what :mod:`fl_sim.sealing.files` writes.

What it protects is the head, which alone has seen the owner's held-out images. The base is as good
as its origin. ``base = "given"`` keeps the model that was handed over, with all that a stranger has
hidden in its weights, buffers and further entries: nothing is protected from him. A base that is
trusted by its hash (or ``"fresh"``, the owner's own) takes nothing from that model. In either case
every parameter and buffer of the base leaves as it came, to the bit, and that is checked.

Utility is that of the owner's decisions, which are those of the model in clear. Leaks are measured
on what the receiver can read: in place of the head's weights he has those of a fresh layer
(:func:`fl_sim.sealing.view.unread`).

In a federation the last release alone can be sealed (``defend = "last"``): hospitals cannot train
on with a head that they cannot read. The head is then the server's, trained on its held-out images.
"""

from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.loops.fine_tune import log_utility
from fl_sim.defenses.loops.perturb import changing
from fl_sim.errors import FlSimError
from fl_sim.models import state_of
from fl_sim.randomness import derive_seed
from fl_sim.sealing.bases import (
    FRESH,
    GIVEN,
    Base,
    State,
    fresh_base,
    load_base,
    require_known,
    require_same_base,
)
from fl_sim.sealing.forms import Form, Shape, default_parameters
from fl_sim.sealing.heads import (
    HeadSettings,
    Linear,
    entries_of,
    features_of,
    find_head,
    read_head,
    train_head,
    write_head,
)
from fl_sim.sealing.parameters import CkksParameters
from fl_sim.sealing.view import Sealing

_MARGIN = 4.0


class RheSettings(HeadSettings):
    """Settings of reverse homomorphic encryption, beside those of training the head.

    Args:
        base: what the head is trained on: the model that was ``"given"``, the network's ``"fresh"``
            initial weights, or a file of any format.
        sha256: of that file, as hexadecimal digits; a file is not taken without it.
        layers: how many linear layers are sealed, from the last: 1, or 2 with a square between
            (``model = "square_head"``).
        form: ``"product"``: the receiver multiplies and the owner sums, without further keys;
            ``"sum"``: the receiver sums, too, with keys for rotations; ``"dot"``: likewise, a
            ciphertext an output. See :data:`fl_sim.sealing.forms.Form`.
        degree: of CKKS's ring; with ``moduli`` and ``scale_bits`` in place of this project's
            parameters. What is below 128 bits of security by the standard's table is refused.
        moduli: bits of each prime, see :class:`fl_sim.sealing.parameters.CkksParameters`.
        scale_bits: likewise.
        limit: questions that the owner will answer at most.

    Example:
        [federation]
        defend = "last"
    """

    base: str = GIVEN
    sha256: str | None = None
    layers: Literal[1, 2] = 1
    form: Form = "product"
    degree: int | None = None
    moduli: tuple[int, ...] | None = Field(None, max_length=16)
    scale_bits: int | None = None
    limit: int = Field(1000, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        require_known(self.base, self.sha256)
        told = [self.degree, self.moduli, self.scale_bits]
        if any(value is None for value in told) != all(value is None for value in told):
            raise ValueError("degree, moduli and scale_bits are given together, or none of them")
        Shape(1, 1, self.layers - 1, self.form, self.parameters)  # refuses what is weak
        return self

    @property
    def parameters(self) -> CkksParameters:
        """Parameters of CKKS."""
        if self.degree is None or self.moduli is None or self.scale_bits is None:
            return default_parameters(self.layers)
        return CkksParameters(self.degree, self.moduli, self.scale_bits)


@DEFENSES.register(
    "rhe", "the owner trains the head, and it leaves encrypted (Allison et al. 2025)"
)
class ReverseHomomorphicEncryption(Defense[RheSettings]):
    """Train a new head on a base that is left as it is, and have it leave encrypted."""

    Settings = RheSettings

    @property
    def seals(self) -> bool:
        """Whether a part of what leaves is encrypted: it is."""
        return True

    def apply(self, release: Release) -> DefenseReport:
        """Replace the head in place, and the base where another is named.

        Raises:
            FlSimError: if there are no held-out images, the network does not end with such a head,
                the base is not the one that is trusted, or the head's numbers do not fit the
                parameters.
        """
        settings, model = self.settings, release.model
        head = find_head(model, release.spec, settings.layers)
        sealed = entries_of(model, head)
        with changing(release) as report:
            base = self._base(release, sealed)
            shape = self._shape(read_head(model, head))
            report.epochs = [{"loss": self._train(release, head, shape)}]
            require_same_base(state_of(model), base, "The model with its new head")
            report.images = len(release.held_out)
            report.learning_rates = dict.fromkeys(head, settings.learning_rate)
            report.cap_bits = None if settings.base == GIVEN else 0.0
            report.sealed = Sealing(head, sealed, shape, self._named(), settings.limit)
        log_utility(model, release, report)
        return report

    def _named(self) -> Base:
        base = self.settings.base
        return Base(base if base in (GIVEN, FRESH) else Path(base).name, self.settings.sha256)

    def _base(self, release: Release, sealed: tuple[str, ...]) -> State:
        """Put the base in place, and return it."""
        settings = self.settings
        if settings.base == GIVEN:
            return {n: v for n, v in state_of(release.model).items() if n not in sealed}
        if settings.base == FRESH:
            seed = derive_seed(release.stream.seed, "fresh base", *release.stream.path)
            base = fresh_base(release.spec, seed, sealed)
        else:
            assert settings.sha256 is not None  # or the settings would have been refused
            base = load_base(Path(settings.base), settings.sha256, release.spec, sealed)
        release.model.load_state_dict(base, strict=False)
        release.entries.clear()
        return base

    def _shape(self, old: tuple[Linear, ...]) -> Shape:
        features, outputs = old[0].weight.shape[1], old[-1].weight.shape[0]
        hidden = old[0].weight.shape[0] if len(old) == 2 else 0
        return Shape(features, outputs, hidden, self.settings.form, self.settings.parameters)

    def _train(self, release: Release, head: tuple[str, ...], shape: Shape) -> float:
        """Train the head and put it in place; return its last loss."""
        settings, model = self.settings, release.model
        if len(release.held_out) == 0:
            raise FlSimError("The defence has no held-out images; raise [data] images.")
        features = features_of(model, head, release.held_out)
        _, labels = release.held_out.tensors()
        trained, losses = train_head(
            features,
            labels,
            release.task,
            HeadSettings(**settings.model_dump(include=set(HeadSettings.model_fields))),
            release.stream,
            hidden=shape.hidden,
            bias=read_head(model, head)[0].bias is not None,
            progress=release.progress,
        )
        _require_within(features, trained, shape.parameters)
        write_head(model, head, trained)
        return losses[-1]


@torch.no_grad()
def _require_within(
    features: torch.Tensor, head: tuple[Linear, ...], parameters: CkksParameters
) -> None:
    """Refuse a head whose products come near to where decrypted numbers wrap around.

    Raises:
        FlSimError: how large they are, and what to change.
    """
    inputs = features
    if len(head) == 2:
        inputs = torch.nn.functional.linear(features, head[0].weight, head[0].bias).square()
    last = head[-1]
    sizes = inputs.abs().amax(dim=0) * last.weight.abs()
    biases = torch.zeros(1) if last.bias is None else last.bias.abs()
    largest = max(float(sizes.sum(dim=1).max()), float(biases.max()))
    if largest * _MARGIN > parameters.largest:
        raise FlSimError(
            f"The head's numbers reach {largest:.3g} on the held-out images, and with scale_bits = "
            f"{parameters.scale_bits} answers end at {parameters.largest:.3g}; lower scale_bits, "
            f"or raise weight_decay."
        )
