"""The attacker's rehearsal: his attack and the known defence, played outside on public images.

Who knows the defence need not guess what it does to his payload. He trains the same network with
the same attack on public images of the same kind, applies the defence himself, and has what he can
never have of the real run: recovered images beside the true ones, from which he learns how to
repair images.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fl_sim.artifact import Artifact, further_entries
from fl_sim.attacks.base import Attack, Inside, Plan
from fl_sim.carriers.base import State
from fl_sim.data.base import Split, Task
from fl_sim.data.cache import cache_folder
from fl_sim.data.partitions import HospitalShare
from fl_sim.defenses.base import Defense, Release
from fl_sim.errors import FlSimError
from fl_sim.files import built_once, write_atomically
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.restorations.base import choose
from fl_sim.sealing.view import as_received
from fl_sim.settings import MOST_EPOCHS, Settings
from fl_sim.training import LocalTraining, TrainingSettings

SMALLEST = 8


class AttackerSettings(Settings):
    """What the attacker knows, and what he does with the images that he extracted.

    Args:
        hospital: in a data lake, the images that he steals are drawn from those that one hospital
            brought into it, dealt out as a federation would. The same seed and partition steal the
            very same images in both. Where not given, from all.
        knows_defense: he knows the defence and its settings, rehearses it on the public images,
            and repairs recovered images with a network trained on what the rehearsal gave
            (extraction ``"learned"``). It costs about another training.
        search: he searches the codes that fit the released model best, where the attack has codes
            (extraction ``"aligned"``, and every restoration of it).
        restorations: by name, or ``"all"`` that there are.
        rehearsal_images: images stolen in the rehearsal; by default as many as in the real attack.
            Never more than the rehearsal has to train on.
        rehearsal_epochs: passes over the rehearsal's training images; by default as many as make
            the real training's number of steps.
        rehearsal_defenses: how often the defence is played on the rehearsed model, each time with
            other randomness; each gives as many pairs of images as were stolen.
        held_out_share: share of the public images that stands for the owner's held-out set.
    """

    hospital: HospitalShare | None = None
    knows_defense: bool = False
    search: bool = False
    restorations: Literal["all"] | tuple[str, ...] = "all"
    rehearsal_images: int | None = Field(None, ge=2)
    rehearsal_epochs: float | None = Field(None, gt=0, le=MOST_EPOCHS)
    rehearsal_defenses: int = Field(4, ge=1)
    held_out_share: float = Field(0.25, gt=0, lt=1)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.restorations != "all":
            choose(self.restorations)
        return self


@dataclass(frozen=True)
class Outside:
    """What the attacker has outside, and what he knows of the real run.

    Args:
        public: images of the same kind as the stolen ones, none of them among those.
        task: the network's task.
        spec: the network.
        training: the settings that are trained with inside.
        steps: optimizer steps of the real training.
        held_out: images of the owner's held-out set. The rehearsal's own is repeated up to as many,
            so that the defence takes as many steps.
        data_root: folder of data files, for what the attack prepares outside.
        device: where he computes.
        progress: where to report.
    """

    public: Split
    task: Task
    spec: ModelSpec
    training: TrainingSettings
    steps: int
    held_out: int
    data_root: Path | None = None
    device: str = "cpu"
    progress: Progress = SILENT


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal gave.

    Args:
        originals: the public images that were stolen, ``[n, channels, height, width]`` in [0, 1].
        after: recovered after each time that the defence was played,
            ``[d, n, channels, height, width]``, any values.
    """

    originals: torch.Tensor
    after: torch.Tensor


def rehearse(
    outside: Outside,
    attack: Attack[Any],
    defense: Defense[Any],
    settings: AttackerSettings,
    stream: Stream,
) -> Rehearsal:
    """Play attack and defence on public images; one that was played before is read from the cache.

    A federation is rehearsed as one data lake, cleaned once, at the end.

    Args:
        outside: what the attacker has.
        attack: the real one; how many images it steals in the rehearsal, ``settings`` say.
        defense: the real one.
        settings: how much is rehearsed.
        stream: where randomness is derived from.

    Raises:
        FlSimError: if there are too few public images, training diverges, or the cache cannot be
            used.
    """
    lake, held_out = _divide(outside, settings.held_out_share, stream)
    play = _Play(
        outside=outside,
        attack=_smaller(attack, settings.rehearsal_images, len(lake)),
        defense=defense,
        training=_training(outside, settings.rehearsal_epochs, len(lake)),
        defenses=settings.rehearsal_defenses,
        lake=lake,
        held_out=held_out,
        stream=stream,
    )
    path = cache_folder() / "rehearsals" / f"{outside.spec.name}-{play.digest()}.safetensors"
    try:
        with built_once(path):
            if not path.is_file():
                played = play.perform()
                images = {"originals": played.originals, "after": played.after}
                write_atomically(path, save({name: t.cpu() for name, t in images.items()}))
    except OSError as error:
        raise FlSimError(
            f"The rehearsal {path} cannot be written ({error.strerror}); set FL_SIM_CACHE to a "
            "folder with room."
        ) from None
    return _unpacked(path)


@dataclass(frozen=True)
class _Play:
    """One rehearsal with everything decided."""

    outside: Outside
    attack: Attack[Any]
    defense: Defense[Any]
    training: TrainingSettings
    defenses: int
    lake: Split
    held_out: Split
    stream: Stream

    def digest(self) -> str:
        """Return a hash of all that the result depends on."""
        ingredients = {
            "attack": [type(self.attack).__name__, self.attack.settings.identity()],
            "defense": [type(self.defense).__name__, self.defense.settings.model_dump(mode="json")],
            "training": self.training.model_dump(mode="json"),
            "spec": self.outside.spec.model_dump(mode="json"),
            "defenses": self.defenses,
            "data": [_digest(self.lake), _digest(self.held_out)],
            "stream": [self.stream.seed, *self.stream.path],
            # Float sums depend on what adds, and on how many threads add.
            "machine": [version("torch"), self.outside.device, torch.get_num_threads()],
        }
        text = json.dumps(ingredients, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def perform(self) -> Rehearsal:
        """Train, hide, and apply the defence."""
        outside, stream = self.outside, self.stream
        inside = Inside(
            self.lake,
            outside.task,
            outside.spec,
            stream,
            outside.data_root,
            outside.progress,
            public=outside.public,
        )
        plan = self.attack.plan(inside)
        model = build(outside.spec, int(stream.numpy("initial weights").integers(2**31)))
        model.to(outside.device)
        lake = LocalTraining(
            model=model,
            spec=outside.spec,
            data=self.lake,
            task=outside.task,
            settings=self.training,
            stream=stream.at("training"),
            progress=outside.progress,
        )
        self.attack.train(lake, plan)
        trained = self.attack.embed(state_of(model), outside.spec, plan).state
        released = [self._released(trained, number) for number in range(self.defenses)]
        return Rehearsal(
            originals=plan.targets,
            after=torch.stack([self._extracted(state, plan) for state in released]),
        )

    def _released(self, trained: State, number: int) -> State:
        model = Artifact(self.outside.spec, trained).model().to(self.outside.device)
        entries = {n: v.clone() for n, v in further_entries(trained, model).items()}
        report = self.defense.apply(
            Release(
                model=model,
                spec=self.outside.spec,
                held_out=self.held_out,
                task=self.outside.task,
                stream=self.stream.at("defence", number),
                progress=self.outside.progress,
                entries=entries,
                training=self.lake,
                uploads=[trained],  # of the others' he knows nothing
            )
        )
        return as_received(state_of(model) | entries, report.sealed)

    def _extracted(self, state: State, plan: Plan) -> torch.Tensor:
        images = self.attack.extract(Artifact(self.outside.spec, state), plan.key).images
        return images.reshape(plan.targets.shape).float()


def _divide(outside: Outside, share: float, stream: Stream) -> tuple[Split, Split]:
    """Return images to train on and a held-out set as large as the owner's."""
    images = len(outside.public)
    if images < SMALLEST:
        raise FlSimError(
            f"[attacker] knows_defense rehearses on public images, and there are {images}; raise "
            f"[data] public_images to {SMALLEST} or more."
        )
    order = stream.numpy("rehearsal images").permutation(images)
    count = min(max(2, round(share * images)), images - 2)
    held_out = np.resize(order[:count], max(count, outside.held_out))
    return outside.public.subset(np.sort(order[count:])), outside.public.subset(held_out)


def _smaller(attack: Attack[Any], wanted: int | None, available: int) -> Attack[Any]:
    """Return the attack on as many images as the rehearsal has."""
    images = attack.settings.images if wanted is None else wanted
    if images != "fit":
        images = min(int(images), available)
    settings = attack.settings.model_copy(update={"images": images})
    return type(attack)(settings)


def _training(outside: Outside, epochs: float | None, images: int) -> TrainingSettings:
    if epochs is None:
        epochs = outside.steps / math.ceil(images / outside.training.batch_size)
    return outside.training.model_copy(update={"epochs": epochs})


def _digest(split: Split) -> str:
    content = hashlib.sha256()
    for array in (split.images, split.labels):
        rows = np.ascontiguousarray(array)
        content.update(f"{rows.dtype}{rows.shape}".encode())
        content.update(rows.data)
    return content.hexdigest()


def _unpacked(path: Path) -> Rehearsal:
    try:
        content = load_file(path)
        return Rehearsal(content["originals"], content["after"])
    except (SafetensorError, KeyError) as error:
        raise FlSimError(
            f"The rehearsal {path} cannot be read ({error}); delete that file."
        ) from None
