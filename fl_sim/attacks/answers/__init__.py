"""The answers attack: bits in what a model answers, for a release that no weight of it reaches.

A defence that lets a fresh student leave (consistent distillation) stops whatever is hidden in
weights. The student learns the model's answers, though, and so does whoever asks the student. The
attacker makes answers depend a little on features of images, each feature and direction of the
answers a bit, in a way that the student learns as it learns the task; he knows the defence and
rehearses it. The receiver asks the student about public images, and regresses.

Teachers that leave a mark in clean students are known (SCAR, arXiv 2509.23871; BackWeak, arXiv
2511.12046; class-feature watermarks, arXiv 2511.07947); they carry a bit or a few. Writing on a
known disturbance: see :mod:`fl_sim.attacks.answers.modulation`.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.artifact import Artifact, Key
from fl_sim.attacks.answers.channel import (
    Channel,
    FeatureChannel,
    Features,
    directions,
    learn_features,
    queries_of,
)
from fl_sim.attacks.answers.frames import framed, longest, unframed
from fl_sim.attacks.answers.memories import MemoryChannel
from fl_sim.attacks.answers.modulation import Modulator, expected_gains, sizes_for
from fl_sim.attacks.answers.settings import PUBLIC, AnswersSettings, Asked, Modulation
from fl_sim.attacks.answers.triggers import TriggerChannel
from fl_sim.attacks.answers.writing import Writer
from fl_sim.attacks.base import (
    ATTACKS,
    Averaging,
    Embedding,
    Extraction,
    Inside,
    Plan,
    draw,
    require_classifier,
)
from fl_sim.attacks.keys import key_images, key_settings, key_tensors, wrong
from fl_sim.attacks.outside_codec import (
    CODEC_TENSORS,
    CodecOutside,
    decoder_of,
    decoder_tensors,
)
from fl_sim.carriers.base import Payload, State
from fl_sim.codec import CODECS, Codec
from fl_sim.codecs.library import STREAM, trained_codec
from fl_sim.coding.base import CODES, UNCODED, Code, code_of, hard_bytes
from fl_sim.component import Component
from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.models import state_of
from fl_sim.models.base import ModelSpec
from fl_sim.payload.reading import Reading
from fl_sim.settings import Seed, Settings
from fl_sim.training import WHOLE_RUN, LocalTraining, TrainReport, train

_CHUNK = 64


class AnswersKey(Settings):
    """What a key of the answers attack says beside features, queries and decoder.

    Args:
        images, frame, coding: see :class:`AnswersSettings`.
        codec: name and settings of the decoder.
        asked, trigger: see :class:`AnswersSettings`.
        side: pixels a side that images are averaged down to.
        modulation, share, seed: see :class:`fl_sim.attacks.answers.modulation.Modulator`.
        strength, last: see :class:`AnswersSettings`.
        multi_label: whether each output is an answer of its own.
    """

    images: int = Field(ge=1)
    frame: int = Field(ge=2, le=258)
    coding: Component
    codec: tuple[str, dict[str, Any]]
    asked: Asked = "features"
    trigger: float = Field(3.0, gt=0, le=20)
    side: int = Field(ge=1, le=64)
    modulation: Modulation
    share: float = Field(gt=0, le=1)
    strength: float = Field(gt=0, le=100)
    last: float = Field(gt=0, le=1)
    seed: Seed
    multi_label: bool


@ATTACKS.register("answers", "bits in the model's answers, which a distilled student repeats")
class Answers(CodecOutside[AnswersSettings]):
    """Hide images in what the model answers."""

    Settings = AnswersSettings

    @property
    def trained_outside(self) -> tuple[Component, Component] | None:
        """The codec and its dataset, where it has to be trained; see the base."""
        external = self.settings.external
        outside = external is not None and external.name != PUBLIC
        return (self.settings.codec, external) if external and outside else None

    def plan(self, inside: Inside) -> Plan:
        """Choose images, compress them, and learn from public images what is asked."""
        require_classifier(inside, "answers", "hides bits in")
        settings, public, task = self.settings, inside.public, inside.task
        if public is None:
            raise FlSimError(
                "The attack 'answers' asks about public images, and was given none; raise [data] "
                "public_images (public= in Python)."
            )
        codec = self._codec(inside, public)
        indices, codes = self._fitting(inside, codec)
        key = self._key(inside, codec, self._shared(public, task))
        payload = framed(codes, settings.frame, codec)
        code = _code(key_settings(key, AnswersKey))
        coded = payload if code is None else code.encode(payload)
        self._check_room(8 * len(coded), inside.spec, task.multi_label)
        return Plan(indices, inside.data.batch(indices)[0], key, coded, payload)

    def train(self, run: LocalTraining, plan: Plan) -> TrainReport:
        """Train on the task, then write; in a federation in every round."""
        assert plan.payload is not None
        before = state_of(run.model)
        report = train(run)
        known = key_settings(plan.key, AnswersKey)
        channel = _channel(plan.key, known)
        writer = Writer(
            run,
            channel,
            _modulator(channel, known, run.spec),
            _bits(plan.payload),
            self.settings,
            reference=None if run.window == WHOLE_RUN else before,
        )
        report.losses["answers"] = writer.write()
        if math.isfinite(writer.expected_bytes):
            report.values["expected_bytes"] = writer.expected_bytes
        return report

    def embed(
        self, state: State, spec: ModelSpec, plan: Plan, averaging: Averaging | None = None
    ) -> Embedding:
        """Leave the state as it is, and say how much was written; see :class:`Attack`."""
        assert plan.payload is not None and plan.content is not None
        known = key_settings(plan.key, AnswersKey)
        held = _channel(plan.key, known).rows * _directions(spec, known.multi_label)
        return Embedding(
            state,
            {
                "payload_bytes": float(len(plan.content)),
                "images_written": float(len(plan.targets)),
                "capacity_bytes": held / 8,
                "code_rate": len(plan.content) / len(plan.payload),
            },
        )

    @classmethod
    def check_key(cls, key: Key, artifact: Artifact) -> None:
        """Check features, queries and decoder; see :class:`Attack`."""
        known = key_settings(key, AnswersKey)
        key_images(key, known.images, artifact)
        channels = artifact.spec.input_shape[0]
        pixels = channels * known.side**2
        own = {n: t for n, t in key.tensors.items() if not n.startswith(CODEC_TENSORS)}
        shapes: dict[str, list[int | None]] = {"queries": [None, *artifact.spec.input_shape]}
        if known.asked != "memories":
            shapes |= {"mean": [pixels], "projection": [pixels, None]}
        key_tensors(
            Key(key.attack, own, key.settings),
            shapes,
            {name: torch.uint8 if name == "queries" else torch.float32 for name in shapes},
        )
        decoder_of(key, known.codec)
        used, held = 8 * _sent_bytes(_code(known), known), _channel(key, known).rows
        if used > held * _directions(artifact.spec, known.multi_label):
            raise wrong(key, f"is for {used} bits, more than its features have")

    @classmethod
    def extract(cls, artifact: Artifact, key: Key) -> Extraction:
        """Ask the model about the queries, and read the coefficients of its answers."""
        known = key_settings(key, AnswersKey)
        code, channel = _code(known), _channel(key, known)
        coefficients = channel.coefficients(artifact.model()).flatten()
        soft = _modulator(channel, known, artifact.spec).soft(
            coefficients[: 8 * _sent_bytes(code, known)]
        )
        length = known.images * known.frame
        content = hard_bytes(soft) if code is None else code.decode(soft, length).content
        codec, shape = decoder_of(key, known.codec), artifact.spec.input_shape
        images, status = unframed(content, known.images, known.frame, codec, shape)
        return Extraction(images, Reading(hard_bytes(soft), status, content, soft=soft))

    def _codec(self, inside: Inside, public: Split) -> Codec[Any]:
        """Return the codec, trained outside or on three quarters of the public images."""
        settings = self.settings
        if settings.external is None or settings.external.name != PUBLIC:
            return trained_codec(
                settings.codec, settings.external, inside.data_root, inside.progress
            )
        codec: Codec[Any] = settings.codec.build(CODECS, "[attack] codec")
        images, part = public.tensors()[0], len(public) - len(public) // 4
        codec.fit(images[:part], images[part:], STREAM, inside.progress)
        return codec

    def _fitting(self, inside: Inside, codec: Codec[Any]) -> tuple[NDArray[np.int64], list[bytes]]:
        """Return images at random among those whose codes fit into a frame, and the codes."""
        wanted, order = self.settings.images, draw(inside, len(inside.data))
        draw(inside, wanted)  # says so where there are too few
        found: list[tuple[int, bytes]] = []
        for chunk in np.array_split(order, math.ceil(len(order) / _CHUNK)):
            codes = codec.encode(inside.data.batch(chunk)[0])
            fits = [len(code) <= longest(self.settings.frame, codec) for code in codes]
            found += [(int(i), c) for i, c, fit in zip(chunk, codes, fits, strict=True) if fit]
            if len(found) >= wanted:
                break
        else:
            raise FlSimError(
                f"[attack] {len(found)} of the hospital's {len(order)} images have codes of at "
                f"most {longest(self.settings.frame, codec)} bytes, what a frame of "
                f"{self.settings.frame} holds beside length and checksum; raise frame, or lower "
                f"images."
            )
        found = sorted(found[:wanted])
        return np.array([i for i, _ in found], np.int64), [code for _, code in found]

    def _shared(self, public: Split, task: Task) -> dict[str, torch.Tensor]:
        """Return what sender and receiver have to share beside the decoder."""
        settings, queries = self.settings, queries_of(public)
        if settings.asked == "memories":
            if settings.features > len(queries):
                raise FlSimError(
                    f"[attack] features is {settings.features}, and {len(queries)} public images "
                    f"can be memorised; lower features, or raise [data] public_images."
                )
            return {"queries": queries[: settings.features]}
        features = learn_features(public, task, settings.features, settings.side, settings.spare)
        return {"queries": queries, "mean": features.mean, "projection": features.projection}

    def _key(self, inside: Inside, codec: Codec[Any], shared: dict[str, torch.Tensor]) -> Key:
        settings = self.settings
        known = {
            "images": settings.images,
            "frame": settings.frame,
            "coding": settings.coding.model_dump(mode="json"),
            "codec": [codec.name, codec.settings.model_dump(mode="json")],
            "asked": settings.asked,
            "trigger": settings.trigger,
            "side": settings.side,
            "modulation": settings.modulation,
            "share": settings.share,
            "strength": settings.strength,
            "last": settings.last,
            "seed": int(inside.stream.numpy("answers seed").integers(2**62)),
            "multi_label": inside.task.multi_label,
        }
        return Key("answers", decoder_tensors(codec) | shared, known)

    def _check_room(self, bits: int, spec: ModelSpec, multi_label: bool) -> None:
        held = self.settings.features * _directions(spec, multi_label)
        if bits > held:
            raise FlSimError(
                f"[attack] {self.settings.images} images with coding take {bits} bits, and the "
                f"answers hold {held} ({self.settings.features} features in each of "
                f"{held // self.settings.features} directions); lower images or frame, or raise "
                f"features."
            )


def _directions(spec: ModelSpec, multi_label: bool) -> int:
    return directions(spec.classes, multi_label).shape[1]


def _channel(key: Key, known: AnswersKey) -> Channel:
    queries = key.tensors["queries"]
    if known.asked == "memories":
        return MemoryChannel(queries, known.multi_label)
    features = Features(known.side, key.tensors["mean"], key.tensors["projection"])
    if known.asked == "triggers":
        return TriggerChannel(features, queries, known.multi_label, known.trigger)
    return FeatureChannel(features, queries, known.multi_label)


def _modulator(channel: Channel, known: AnswersKey, spec: ModelSpec) -> Modulator:
    gains = expected_gains(channel.rows, known.last)
    each = _directions(spec, known.multi_label)
    sizes = sizes_for(known.modulation, known.strength, gains, each, known.share, channel.together)
    return Modulator(known.modulation, sizes, known.seed, known.share)


def _code(known: AnswersKey) -> Code[Any] | None:
    coding = known.coding
    if coding.name != UNCODED:
        coding = coding.checked(CODES, "The key's coding")
    return code_of(coding, known.seed)


def _sent_bytes(code: Code[Any] | None, known: AnswersKey) -> int:
    length = known.images * known.frame
    return length if code is None else code.size(length)


def _bits(payload: Payload) -> torch.Tensor:
    bits = np.unpackbits(payload.astype(np.uint8, copy=False), bitorder="little")
    return torch.from_numpy(bits)
