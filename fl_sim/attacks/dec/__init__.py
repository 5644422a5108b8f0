"""The DEC attack: images compressed, and the codes hidden in the model that leaves.

Li, Ayache and Delingette, "Data Exfiltration by Compression Attack: Definition and Evaluation on
Medical Image Data", MELBA 2025:032, arXiv 2511.21227 (first: arXiv 2206.03391). It works for any
task and network: a codec turns images into bytes, a carrier puts them where nobody looks.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.artifact import Artifact, Key
from fl_sim.attacks.base import (
    ATTACKS,
    Averaging,
    Embedding,
    Extraction,
    Inside,
    Plan,
    draw,
)
from fl_sim.attacks.dec.hooks import CodecHooks, FrozenHooks
from fl_sim.attacks.dec.message import Codes, Message, Sent
from fl_sim.attacks.dec.route import (
    Route,
    codec_inside,
    decoder,
    give_tables,
    pack_tables,
    unpack_tables,
)
from fl_sim.attacks.dec.settings import DecSettings
from fl_sim.attacks.keys import wrong
from fl_sim.attacks.outside_codec import CODEC_TENSORS, CodecOutside
from fl_sim.carriers.base import CARRIERS, Carrier, Payload, State, amplified
from fl_sim.codec import Codec, LearnedCodec
from fl_sim.codecs.files import load_codec
from fl_sim.codecs.library import trained_codec
from fl_sim.component import Component
from fl_sim.data.base import Split
from fl_sim.errors import FlSimError, shown
from fl_sim.metrics.compression import gzip_baseline
from fl_sim.models import build
from fl_sim.models.base import ModelSpec
from fl_sim.payload.reading import Reading
from fl_sim.training import LocalTraining, TrainReport, train

_BATCH = 256
# The hyper-decoder picks the tables that codes are read with: one wrong bit in it and nothing fits.
_KEPT_WHOLE = "codec.h_s.*"


@ATTACKS.register("dec", "images compressed and hidden in the model file (MELBA 2025:032)")
class Dec(CodecOutside[DecSettings]):
    """Hide compressed images in the model, with a codec from outside or one trained inside."""

    Settings = DecSettings
    splits = True
    key_tells = frozenset({"length", "images"})  # of the payload; images that fit

    @property
    def trains_honestly(self) -> bool:
        """Whether the codec is from outside and nothing is written before training."""
        return self.settings.scenario == "external" and not self._carrier_is_frozen

    @property
    def trained_outside(self) -> tuple[Component, Component] | None:
        """The codec and its dataset, where it is external and given by name; see the base."""
        settings = self.settings
        if settings.external is None or settings.codec_file:
            return None
        return settings.codec, settings.external

    def plan(self, inside: Inside) -> Plan:
        """Choose images; with a codec from outside, compress them at once."""
        settings = self.settings
        fit = settings.images == "fit"
        indices = draw(inside, len(inside.data) if fit else int(settings.images))
        if not fit:
            indices = np.sort(indices)
        if settings.scenario == "internal":
            codec_inside(build(inside.spec))
            route = self._route(inside, len(indices))
            return Plan(indices, inside.data.batch(indices)[0], route.key(None))
        codec = self._codec_from_outside(inside)
        route = self._route(inside, len(indices))
        room = route.room(route.places(inside.spec))
        sent = route.message(codec).write(_batches(inside.data, indices), room)
        if sent.images < len(indices) and not fit:
            raise FlSimError(self._too_many(len(indices), room, sent))
        indices = indices[: sent.images]
        length = len(sent.payload) if settings.contents == "codes" else None
        key = replace(route, images=sent.images, length=length).key(codec)
        return Plan(indices, inside.data.batch(indices)[0], key, route.seal(sent.payload))

    def train(self, run: LocalTraining, plan: Plan) -> TrainReport:
        """Train on the task; the codec along with it, or around frozen weights, where so set."""
        if self.trains_honestly:
            return train(run)
        if self.settings.scenario == "internal":
            codec = codec_inside(run.model)
            return train(run, CodecHooks(run, codec, self.settings.codec_steps))
        assert plan.payload is not None
        carrier = Route.of(plan.key).open_carrier()
        written = carrier.write(run.model.state_dict(), plan.payload)
        places = carrier.places(written, len(plan.payload))
        run.model.load_state_dict(written)
        return train(run, FrozenHooks(run.model, written, places))

    def embed(
        self, state: State, spec: ModelSpec, plan: Plan, averaging: Averaging | None = None
    ) -> Embedding:
        """Write the payload into the state dictionary; see :class:`Attack`."""
        route = Route.of(plan.key)
        state = route.cast(state)
        carrier = route.open_carrier()
        room = route.room(state)
        if self.settings.scenario == "internal":
            sent, message = self._from_inside(Artifact(spec, state), plan, route, room)
            carried = route.seal(sent.payload)
        else:
            assert plan.payload is not None
            carried = plan.payload
            sent = Sent(route.unsealed(carried), len(plan.targets))
            message = route.message(decoder(plan.key, Artifact(spec, state)))
        values = {"payload_bytes": float(sent.payload.nbytes), "images_written": float(sent.images)}
        if room is not None:
            values["capacity_bytes"] = float(room * sent.payload.itemsize)
        values["code_rate"] = sent.payload.nbytes / carried.nbytes if carried.nbytes else 1.0
        if sent.images:
            stolen, size = plan.targets[: sent.images], message.code_bytes(sent.payload)
            values["bpp"] = 8 * size / stolen[:, 0].numel()
            values["p_ratio"] = size / gzip_baseline(stolen)
        if self.settings.amplify and averaging is not None:
            return Embedding(self._for_average(state, carrier, carried, averaging, route), values)
        return Embedding(carrier.write(state, carried), values)

    @classmethod
    def check_key(cls, key: Key, artifact: Artifact) -> None:
        """Check the route and the decoder; see :class:`Attack`."""
        route = Route.of(key)
        route.check(key, artifact)
        codec = decoder(key, artifact)
        route.message(codec)
        strange = [name for name in key.tensors if not name.startswith(CODEC_TENSORS)]
        if strange:
            raise wrong(key, f"has a tensor {shown(strange[0])} that is no part of a codec")
        if route.canonical:
            route.open_carrier()

    @classmethod
    def extract(cls, artifact: Artifact, key: Key) -> Extraction:
        """Read the carrier and decode what is there."""
        route = Route.of(key)
        codec = decoder(key, artifact)
        message = route.message(codec)
        received = route.receive(
            route.cast(artifact.state), route.places(artifact.spec), message.count(route.images)
        )
        if "codec" not in key.settings and not _completed(codec, message, received.payload):
            extraction = message.nothing(received.payload, route.images)
        else:
            extraction = message.read(received.payload, route.images)
        if received.raw is received.payload or extraction.reading is None:
            return extraction
        reading = Reading(received.raw, extraction.reading.status, received.payload)
        return Extraction(extraction.images, reading)

    @classmethod
    def survival(cls, sent: State, arrived: State, payload: Payload, key: Key) -> dict[str, float]:
        """Return the carrier's error rate by tensor, and by bit; see :class:`Attack`.

        What was written for an average cannot be read in the upload itself, so it is written again.
        """
        route = Route.of(key)
        carrier, sent, length = route.open_carrier(), route.cast(sent), len(payload)
        used = {name: int(mask.sum()) for name, mask in carrier.places(sent, length).items()}
        if used:
            sent = carrier.write(sent, payload)
        rates = carrier.errors(sent, arrived, length)
        planes = carrier.plane_errors(sent, arrived, length)
        for bit in sorted({bit for errors in planes.values() for bit in errors}):
            wrong = sum(errors.get(bit, 0) * used[name] for name, errors in planes.items())
            rates[f"bit {bit}"] = wrong / sum(used[n] for n, e in planes.items() if bit in e)
        return rates

    def _for_average(
        self,
        state: State,
        carrier: Carrier[Any],
        carried: Payload,
        averaging: Averaging,
        route: Route,
    ) -> State:
        """Return what to send so that the average holds the payload; see ``amplify``."""
        places = carrier.places(state, len(carried))
        if not places:  # entries that nobody averages
            return carrier.write(state, carried)
        broadcast, given = route.cast(averaging.broadcast), self.settings.amplify
        share = averaging.share if isinstance(given, bool) else given
        if carrier.frozen:  # the trained state has the values already
            state = state | {n: torch.where(m, broadcast[n], state[n]) for n, m in places.items()}
        return amplified(state, carrier.write(broadcast, carried), broadcast, share, places)

    @property
    def _carrier_is_frozen(self) -> bool:
        return CARRIERS.get(self.settings.carrier.name).frozen

    def _codec_from_outside(self, inside: Inside) -> Codec[Any]:
        file = self.settings.codec_file
        if file is not None:
            codec = load_codec(file)
            if self.settings.contents == "latents" and codec.lossless:
                raise FlSimError(f"[attack] The codec in {file} is lossless and has no latents.")
            return codec
        return trained_codec(
            self.settings.codec, self.settings.external, inside.data_root, inside.progress
        )

    def _route(self, inside: Inside, images: int) -> Route:
        carrier = self.settings.carrier
        settings, collusion, secret = dict(carrier.settings), inside.collusion, inside.stream
        if self.settings.scenario == "internal" and "exclude" in settings:
            settings["exclude"] = [*settings["exclude"], _KEPT_WHOLE]
        if collusion is not None:
            if "part" not in settings:
                raise FlSimError(
                    f"[attack] Hospitals cannot share out the places of the carrier "
                    f"'{carrier.name}'; take [federation] collusion = \"repeat\" or another one."
                )
            secret, settings["part"] = collusion.secret, (collusion.number, collusion.parts)
        return Route(
            carrier=Component(name=carrier.name, settings=settings),
            seed=int(secret.numpy("carrier seed").integers(2**62)),
            contents=self.settings.contents,
            rounding=self.settings.rounding,
            precision=self.settings.precision,
            images=images,
            shape=inside.spec.input_shape,
            spec=inside.spec,
            coding=self.settings.coding,
            erasure=self.settings.erasure,
            canonical=self.settings.canonical,
        )

    def _from_inside(
        self, artifact: Artifact, plan: Plan, route: Route, room: int | None
    ) -> tuple[Sent, Message]:
        """Encode the stolen images with the codec that the network contains, as it leaves."""
        codec = codec_inside(artifact.model())
        codec.freeze()
        message = route.message(codec, pack_tables(codec))
        return message.write(plan.targets.split(_BATCH), room), message

    def _too_many(self, wanted: int, room: int | None, sent: Sent) -> str:
        unit = "bytes" if self.settings.contents == "codes" else "values"
        return (
            f"[attack] images is {wanted}, but the carrier '{self.settings.carrier.name}' holds "
            f"{room} {unit} in this model, enough for {sent.images} of them; lower images, or set "
            f'it to "fit".'
        )


def _completed(codec: Codec[Any], message: Message, content: Payload) -> bool:
    """Give a codec out of the artifact what its state dictionary lacks; ``False`` if it is lost."""
    if isinstance(message, Codes):
        return give_tables(codec, unpack_tables(message.extra_of(content)))
    assert isinstance(codec, LearnedCodec)
    codec.freeze()  # for the grid only: latents need no entropy tables
    return True


def _batches(data: Split, indices: NDArray[np.int64]) -> Iterator[torch.Tensor]:
    for first in range(0, len(indices), _BATCH):
        yield data.batch(indices[first : first + _BATCH])[0]
