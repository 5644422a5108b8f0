"""Several attacks in one model: an attacker who does not know the defence tries all at once.

Each part steals images of its own. The first part trains; the others write their payloads into
what it trained, one after another, so that what is written last should touch least (low bits after
signs and lattices, dead weights beside live ones).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator

from fl_sim.artifact import Artifact, Key
from fl_sim.attacks.base import (
    ATTACKS,
    Attack,
    AttackSettings,
    Averaging,
    Embedding,
    Extraction,
    Inside,
    Plan,
)
from fl_sim.attacks.keys import key_images, key_settings, wrong
from fl_sim.carriers.base import Payload, State
from fl_sim.component import Component
from fl_sim.errors import FlSimError, shown
from fl_sim.models.base import ModelSpec
from fl_sim.payload.reading import Reading, Status
from fl_sim.plain import LARGEST_INTEGER
from fl_sim.progress import SILENT, Progress
from fl_sim.settings import Settings
from fl_sim.training import LocalTraining, TrainReport


class CombinedSettings(AttackSettings):
    """Settings of several attacks in one model.

    Args:
        images: not used; each part has its own.
        parts: attacks with their settings by name, in the order in which they are written.

    Example:
        [attack.parts]
        memory = {name = "transpose", images = 32}
        bits = {name = "dec", images = 32, codec = "png", carrier = "lsb"}
    """

    images: int = 0
    parts: dict[str, Component] = Field(min_length=1)

    @field_validator("parts", mode="before")
    @classmethod
    def _complete(cls, parts: Any) -> Any:
        """Fill in each part's defaults, so that they are part of the identity."""
        return {
            name: Component.of(part, where := f"[attack] parts.{name}").checked(ATTACKS, where)
            for name, part in dict(parts).items()
        }


class PartKey(Settings):
    """What a key says of one part.

    Args:
        attack: registered name.
        settings: of its key.
        images: how many it stole.
        length: of its payload, in bytes or values; ``None`` where it has none.
    """

    attack: str
    settings: dict[str, Any]
    images: int = Field(ge=1)
    length: int | None = Field(ge=0, le=LARGEST_INTEGER)


class CombinedKey(Settings):
    """What a key of several attacks says: its parts by name, and their order."""

    order: tuple[str, ...] = Field(min_length=1)
    parts: dict[str, PartKey]


@ATTACKS.register("combined", "several attacks in one model, each with images of its own")
class Combined(Attack[CombinedSettings]):
    """Let one attack train, and all others write their payloads afterwards."""

    Settings = CombinedSettings
    key_tells = frozenset({"length", "images"})  # as its parts may

    def __init__(self, settings: CombinedSettings) -> None:
        super().__init__(settings)
        self._parts = {
            name: part.build(ATTACKS, f"[attack] parts.{name}")
            for name, part in settings.parts.items()
        }

    def plan(self, inside: Inside) -> Plan:
        """Plan every part, each with randomness of its own."""
        plans = {
            name: attack.plan(replace(inside, stream=inside.stream.at("part", name)))
            for name, attack in self._parts.items()
        }
        for name, plan in plans.items():
            if plan.payload is None and type(self._parts[name]).embed is not Attack.embed:
                raise FlSimError(
                    f"[attack] parts.{name} knows its payload only after training, so it cannot "
                    f"be told from the others'; run it by itself."
                )
        payloads = [plan.payload for plan in plans.values() if plan.payload is not None]
        return Plan(
            indices=np.concatenate([plan.indices for plan in plans.values()]),
            targets=torch.cat([plan.targets for plan in plans.values()]),
            key=_joined_key(plans),
            payload=_joined(payloads) if payloads else None,
        )

    @property
    def key_has_labels(self) -> bool:
        """Whether the key of any part has labels; a guesser is then taken to know all of them."""
        return any(part.key_has_labels for part in self._parts.values())

    @property
    def trains_honestly(self) -> bool:
        """Whether the first part, which trains, does so honestly."""
        return next(iter(self._parts.values())).trains_honestly

    @property
    def prepared_outside(self) -> str | None:
        """What the parts bring from outside, together."""
        made = [attack.prepared_outside for attack in self._parts.values()]
        return " ".join(text for text in made if text is not None) or None

    @property
    def outside_data(self) -> tuple[Component, ...]:
        """Those of all parts; see :class:`Attack`."""
        return tuple(data for attack in self._parts.values() for data in attack.outside_data)

    def prepare(self, data_root: Path | None, progress: Progress = SILENT) -> None:
        """Prepare every part outside; see :class:`Attack`."""
        for attack in self._parts.values():
            attack.prepare(data_root, progress)

    def train(self, run: LocalTraining, plan: Plan) -> TrainReport:
        """Train as the first part does."""
        name, attack = next(iter(self._parts.items()))
        return attack.train(run, _split(plan)[name])

    def embed(
        self, state: State, spec: ModelSpec, plan: Plan, averaging: Averaging | None = None
    ) -> Embedding:
        """Let every part write its payload, in order."""
        values: dict[str, float] = {}
        for name, own in _split(plan).items():
            embedding = self._parts[name].embed(state, spec, own, averaging)
            state = embedding.state
            values |= {f"{metric}[{name}]": value for metric, value in embedding.values.items()}
        return Embedding(state, values)

    @classmethod
    def check_key(cls, key: Key, artifact: Artifact) -> None:
        """Check every part's key; see :class:`Attack`."""
        known = key_settings(key, CombinedKey)
        if sorted(known.order) != sorted(known.parts):
            raise wrong(key, "has an order that does not name each of its parts once")
        prefixes = tuple(f"{name}/" for name in known.order)
        strange = [name for name in key.tensors if not name.startswith(prefixes)]
        if strange:
            raise wrong(key, f"has a tensor {shown(strange[0])} that belongs to no part")
        for own in _split_key(key).values():
            ATTACKS.get(own.attack).check_key(own, artifact)
        key_images(key, sum(part.images for part in known.parts.values()), artifact)

    @classmethod
    def extract(cls, artifact: Artifact, key: Key) -> Extraction:
        """Extract every part."""
        keys = _split_key(key)
        read = [ATTACKS.get(own.attack).extract(artifact, own) for own in keys.values()]
        images = torch.cat([extraction.images for extraction in read])
        lengths = [key.settings["parts"][name]["length"] for name in keys]
        # A receiver who does not know where a payload ends reads on; here he knows.
        readings = [
            replace(e.reading, content=e.reading.content[:length])
            for e, length in zip(read, lengths, strict=True)
            if e.reading is not None
        ]
        if not readings:
            return Extraction(images)
        corrected = [r.content if r.corrected is None else r.corrected for r in readings]
        coded = any(r.corrected is not None for r in readings)
        return Extraction(
            images,
            Reading(
                content=_joined([r.content for r in readings]),
                status=np.concatenate([_status(extraction) for extraction in read]),
                corrected=_joined(corrected) if coded else None,
                parts=tuple((n, len(e.images)) for n, e in zip(keys, read, strict=True)),
            ),
        )

    @classmethod
    def survival(cls, sent: State, arrived: State, payload: Payload, key: Key) -> dict[str, float]:
        """Return each part's errors by tensor, as ``"<part>: <tensor>"``; see :class:`Attack`."""
        errors: dict[str, float] = {}
        place = 0
        for name, own in _split_key(key).items():
            length = key.settings["parts"][name]["length"]
            if length is None:
                continue
            content = payload[place : (place := place + length)]
            found = ATTACKS.get(own.attack).survival(sent, arrived, content, own)
            errors |= {f"{name}: {tensor}": error for tensor, error in found.items()}
        return errors


def _joined_key(plans: dict[str, Plan]) -> Key:
    parts = {
        name: {
            "attack": plan.key.attack,
            "settings": plan.key.settings,
            "images": len(plan.targets),
            "length": None if plan.payload is None else len(plan.payload),
        }
        for name, plan in plans.items()
    }
    tensors = {
        f"{name}/{tensor}": value
        for name, plan in plans.items()
        for tensor, value in plan.key.tensors.items()
    }
    # A list beside the table: JSON objects are written with their keys sorted.
    return Key("combined", tensors, {"order": list(plans), "parts": parts})


def _split_key(key: Key) -> dict[str, Key]:
    keys = {}
    for name in key.settings["order"]:
        part, prefix = key.settings["parts"][name], f"{name}/"
        tensors = {
            tensor.removeprefix(prefix): value
            for tensor, value in key.tensors.items()
            if tensor.startswith(prefix)
        }
        keys[name] = Key(part["attack"], tensors, part["settings"])
    return keys


def _split(plan: Plan) -> dict[str, Plan]:
    """Take a plan apart again into those of its parts."""
    plans, image, place = {}, 0, 0
    for name, key in _split_key(plan.key).items():
        part = plan.key.settings["parts"][name]
        images = slice(image, image := image + part["images"])
        payload = None
        if plan.payload is not None and part["length"] is not None:
            payload = plan.payload[place : (place := place + part["length"])]
        plans[name] = Plan(plan.indices[images], plan.targets[images], key, payload)
    return plans


def _joined(payloads: list[Payload]) -> Payload:
    """Put payloads one behind the other.

    Raises:
        FlSimError: if some are bytes and some are numbers.
    """
    if len({payload.dtype for payload in payloads}) > 1:
        raise FlSimError(
            "[attack] The parts of a combined attack carry either bytes or numbers; these mix both."
        )
    return cast(Payload, np.concatenate(payloads))


def _status(extraction: Extraction) -> NDArray[np.int8]:
    if extraction.reading is not None and extraction.reading.status is not None:
        return extraction.reading.status
    return np.full(len(extraction.images), int(Status.DAMAGED), np.int8)
