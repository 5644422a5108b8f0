"""A codec that the attacker trained outside: prepared once, and carried in his key."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

from pydantic import BeforeValidator

from fl_sim.artifact import Key
from fl_sim.attacks.base import Attack, AttackSettingsT
from fl_sim.codec import Codec
from fl_sim.codecs.files import codec_from
from fl_sim.codecs.library import trained_codec
from fl_sim.component import Component
from fl_sim.progress import SILENT, Progress

CODEC_TENSORS = "codec."
"""What the names of a decoder's tensors begin with in a key."""


def component_of(name: str) -> Any:
    """Return what reads the key ``name`` of an attack as a component; nothing stays nothing."""
    return BeforeValidator(lambda value: value and Component.of(value, f"[attack] {name}"))


class CodecOutside(Attack[AttackSettingsT]):
    """An attack whose codec may have to be trained outside, before anything else."""

    @property
    @abstractmethod
    def trained_outside(self) -> tuple[Component, Component] | None:
        """The codec and the dataset it is trained on; ``None`` where none has to be trained."""

    @property
    def prepared_outside(self) -> str | None:
        """The codec and the dataset it is trained on, where it has to be trained."""
        outside = self.trained_outside
        return None if outside is None else " ".join(part.model_dump_json() for part in outside)

    @property
    def outside_data(self) -> tuple[Component, ...]:
        """The dataset that the codec is trained on; see :class:`Attack`."""
        return () if self.trained_outside is None else self.trained_outside[1:]

    def prepare(self, data_root: Path | None, progress: Progress = SILENT) -> None:
        """Train the codec, unless that has been done; see :class:`Attack`."""
        if self.trained_outside is not None:
            trained_codec(*self.trained_outside, data_root, progress)


def decoder_tensors(codec: Codec[Any]) -> dict[str, Any]:
    """Return what a key holds of a decoder, by name."""
    return {CODEC_TENSORS + n: t for n, t in codec.tensors(decoder_only=True).items()}


def decoder_of(key: Key, codec: tuple[str, dict[str, Any]]) -> Codec[Any]:
    """Return the decoder that a key holds.

    Args:
        key: the attacker's.
        codec: its name and settings.

    Raises:
        FlSimError: if tensors and settings are of no codec.
    """
    tensors = {
        name.removeprefix(CODEC_TENSORS): tensor
        for name, tensor in key.tensors.items()
        if name.startswith(CODEC_TENSORS)
    }
    return codec_from(*codec, tensors)
