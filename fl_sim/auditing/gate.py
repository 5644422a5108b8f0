"""The export gate: a model leaves only if its loss is known and all of it changed in fine-tuning.

After the export process of Li, Ayache and Delingette, "Data Exfiltration by Compression Attack"
(MELBA 2025:032, figure 14): collect the model and its loss, check the loss against the utility
task, fine-tune until every parameter has changed, check the parameters. The paper fine-tunes on the
training data, and this gate on held-out images. The paper gives no thresholds; those here are in
:class:`GateSettings`. Beyond the paper, the values of the model as it came are audited.

A gate takes away the places that fine-tuning does not touch. It does not claim that nothing is
left in those that it moves: a payload may ride on changes larger than the fine-tuning's.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fl_sim.artifact import Artifact, further_entries
from fl_sim.auditing.auditor import audit
from fl_sim.auditing.batch_statistics import estimated_statistics
from fl_sim.auditing.gate_report import GateReport, TensorRow
from fl_sim.carriers.dead import dead_weights
from fl_sim.checkpoints import Checkpoint, Finding
from fl_sim.component import Component
from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Split, Task
from fl_sim.defenses.base import DEFENSES, Release, refuse_sealing
from fl_sim.defenses.loops.fine_tune import FineTuningSettings, LayerRate, fine_tune
from fl_sim.defenses.loops.perturb import draw_anew
from fl_sim.errors import FlSimError, unknown_name
from fl_sim.models import Layer, absorbed_biases, build, layers, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.training import normalized

KNOWN_TASKS = ("binary-class", "multi-class", "ordinal-regression", MULTI_LABEL, SEGMENTATION)
"""Kinds of utility tasks whose loss the gate knows; see :class:`fl_sim.data.base.Task`."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
State = dict[str, torch.Tensor]
_FASTER = 3.0
_GRADIENT_BATCHES = 8
_GRADIENT_BATCH = 32
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _defense(value: object) -> Component:
    choice = Component.of(value, "[gate] defense")
    refuse_sealing(choice.build(DEFENSES, "[gate] defense"), choice.name, "the gate")
    return choice


class GateSettings(FineTuningSettings):
    """Settings of the gate, beside the keys of its own fine-tuning.

    Args:
        learning_rate: of the gate's own fine-tuning, the same for every layer.
        defense: a registered defence that fine-tunes in its place, by name or as a table.
        rounds: how often the fine-tuning is repeated, at most, for parameters that lag behind; each
            time with three times the rate for these.
        min_change: ``||after - before|| / ||before||`` that every parameter tensor must reach.
        max_unmoved: share of a tensor's live elements that may stay equal bit for bit in the
            fine-tuning. Clean networks have some: units that no held-out image switches on get no
            gradient (up to three quarters of a hidden layer were seen). A tensor with more is
            refused.
        overwrite_dead: give weights that can never touch data (and so never move) fresh random
            values of their tensor's deviation, which changes no output; and biases that a batch
            normalisation takes away zeros. Otherwise a tensor that has such weights is refused.
        overwrite_unmoved: give the other elements that did not move fresh values too, and
            fine-tune once more, since these are used as soon as their unit is switched on.
            Otherwise they are only reported.
        audit: look at the weights as they came, too (:func:`fl_sim.auditing.auditor.audit`), and
            refuse a tensor whose values training does not explain. A checkpoint does not tell
            which weights its makers kept frozen around a payload; their values do.
        max_statistics: how far a running mean may be from that of the held-out images, in
            deviations, and a running variance from theirs, as the logarithm of their ratio; the
            median over a tensor's channels. Beyond it the buffer holds something else.
    """

    learning_rate: float = Field(1e-2, gt=0)
    defense: Annotated[
        Component | None,
        BeforeValidator(lambda value: value and _defense(value)),
    ] = None
    rounds: int = Field(3, ge=1)
    min_change: float = Field(1e-3, gt=0, lt=1)
    max_unmoved: float = Field(0.9, ge=0, lt=1)
    overwrite_dead: bool = True
    overwrite_unmoved: bool = True
    audit: bool = True
    max_statistics: float = Field(3.0, gt=0)


@dataclass(frozen=True)
class Declaration:
    """What the model's makers say that it was trained for.

    Args:
        task: a kind of task, one of ``KNOWN_TASKS``.
        loss: the loss that their code minimises, ``loss(logits, labels)``, where it is at hand.
    """

    task: str
    loss: Loss | None = None


def pass_gate(
    artifact: Artifact,
    held_out: Split,
    task: Task,
    settings: GateSettings | None = None,
    stream: Stream | None = None,
    *,
    declared: Declaration | None = None,
    network: nn.Module | None = None,
    found: Sequence[Finding] = (),
    training: Split | None = None,
    progress: Progress = SILENT,
) -> tuple[GateReport, State | None]:
    """Run a model through the gate.

    Args:
        artifact: the model file, as read; it is not changed.
        held_out: the data owner's clean images.
        task: the utility task that the owner asked for.
        settings: thresholds and fine-tuning.
        stream: where randomness is derived from.
        declared: what the makers say; by default, that they trained for this task.
        network: the makers' own network object, where it is at hand: it is then what is
            fine-tuned, with whatever it does to gradients. It must have the artifact's weights.
        found: what was found of the file that the model came in. What it carries refuses it; the
            rest stays behind, since what leaves is a file of its own, and is told.
        training: the images that the model was trained on, for ``images = "training"``, as in the
            paper's figure 14.
        progress: where to report.

    Returns:
        The report, and the cleaned state dictionary, without entries that the network does not
        have; ``None`` if the model is refused.

    Raises:
        FlSimError: if there are no held-out images, the declared kind of task does not exist, or
            the file does not fit the architecture that it states.
    """
    settings = settings or GateSettings.model_validate({})
    declared = declared or Declaration(task.kind)
    if declared.task not in KNOWN_TASKS:
        raise unknown_name("kind of task", declared.task, KNOWN_TASKS)
    if len(held_out) == 0:
        raise FlSimError("The gate has no held-out images; raise their number.")
    model = artifact.model() if network is None else network
    name = "sgd" if settings.defense is None else settings.defense.name
    report = GateReport(declared.task, name, images=len(held_out))
    gate = _Gate(
        artifact, model, held_out, task, settings, stream or Stream(0), progress, report, training
    )
    if not gate.check_outputs(declared):
        gate.report.tensors += gate.entry_rows()
        return report, None
    gate.check_loss(declared)
    state = gate.clean()
    if settings.audit:
        gate.audit(found)
    return report, state if report.approved else None


@dataclass
class _Gate:
    """One model's way through the gate; the methods are its steps."""

    artifact: Artifact
    model: nn.Module
    held_out: Split
    task: Task
    settings: GateSettings
    stream: Stream
    progress: Progress
    report: GateReport
    training: Split | None = None

    @property
    def spec(self) -> ModelSpec:
        return self.artifact.spec

    def check_outputs(self, declared: Declaration) -> bool:
        """Check that the network's outputs are the task's; without that nothing else can be run."""
        if declared.task != self.task.kind:
            self.report.reasons.append(
                f"the declared task is {declared.task}, and the utility task is {self.task.kind}"
            )
        pixels, _ = self.held_out.batch(slice(0, 2))
        if tuple(pixels.shape[1:]) != self.spec.input_shape:
            raise FlSimError(
                f"The model takes images of shape {self.spec.input_shape}, and the held-out ones "
                f"are {tuple(pixels.shape[1:])}; choose the dataset or size it was trained on."
            )
        wanted = (self.task.outputs, *(pixels.shape[2:] if self.task.is_segmentation else ()))
        self.model.eval()
        with torch.no_grad():
            output = self.model(normalized(pixels))
        if not isinstance(output, torch.Tensor):
            self.report.reasons.append("the network has more than one output")
            return False
        if tuple(output.shape[1:]) != wanted:
            self.report.reasons.append(
                f"the network's output of an image has shape {tuple(output.shape[1:])}, and the "
                f"task's is {wanted}"
            )
            return False
        return True

    def check_loss(self, declared: Declaration) -> None:
        """Compare the makers' loss with the task's, by value and by gradient."""
        if declared.loss is None:
            return
        for pixels, labels in self._batches():
            logits = self.model(normalized(pixels)).detach().requires_grad_()
            values, gradients = [], []
            for loss in (declared.loss, self.task.loss):
                value = loss(logits, labels)
                values.append(float(value.detach()))
                gradients.append(torch.autograd.grad(value, logits, allow_unused=True)[0])
            theirs, ours = (torch.zeros(()) if g is None else g for g in gradients)
            same = theirs.shape == ours.shape and torch.allclose(theirs, ours, 1e-4, 1e-7)
            if not same or not math.isclose(*values, rel_tol=1e-4, abs_tol=1e-6):
                self.report.reasons.append(
                    f"the declared loss is {values[0]:.4g} on held-out images, and the loss of a "
                    f"{self.task.kind} task {values[1]:.4g}: it has another aim"
                )
                return

    def clean(self) -> State:
        """Fine-tune, overwrite, re-estimate, and judge every tensor."""
        before = state_of(self.model)
        parameters = dict(self.model.named_parameters())
        used = self._used()
        reached = self._reached_by_loss()
        dead = {n: m for n, m in dead_weights(self.spec).items() if n in parameters}
        estimated = estimated_statistics(self.model, self.held_out)
        self.report.loss_before = self._loss()
        self._fine_tune_until_changed(before, used)
        after = state_of(self.model)
        unmoved = {
            name: (_words(before[name]) == _words(after[name]))
            & _live(before[name], dead.get(name))
            for name in parameters
        }
        rows = {n: self._parameter(n, before[n], after[n], dead.get(n)) for n in parameters}
        if self.settings.overwrite_unmoved:
            kept = {n: m for n, m in unmoved.items() if m.any() and not rows[n].reasons}
            if kept:
                self._overwrite(kept)
                self._fine_tune_once()
        if self.settings.overwrite_dead:
            self._overwrite(dead)
            biases = {n: torch.ones_like(before[n], dtype=torch.bool) for n in self._absorbed}
            self._overwrite(biases)
        statistics = estimated_statistics(self.model, self.held_out)
        self.model.load_state_dict(statistics, strict=False)
        for name in [name for layer in self._layers for name in layer.parameters]:
            row = rows[name]
            if name not in used:
                row.reasons.append("the network's output does not depend on it")
            elif name not in reached:
                row.reasons.append("the declared loss gives it no gradient on held-out images")
            if not parameters[name].requires_grad:
                row.reasons.append("the network refuses it gradients")
            self.report.tensors.append(row)
        self.report.tensors += self._buffers(before, estimated) + self.entry_rows()
        self.report.loss_after = self._loss()
        if not math.isfinite(self.report.loss_after):
            self.report.reasons.append("the loss is not finite after the fine-tuning")
        return state_of(self.model)

    def audit(self, of_file: Sequence[Finding]) -> None:
        """Add what the values of the model as it came give away, to its tensors' reasons."""
        rows = {row.name: row for row in self.report.tensors}
        own = audit(Checkpoint(dict(self.artifact.state)), self.spec)
        self.report.left_behind = [f.what for f in of_file if f.level != "carries"]
        for finding in [*(f for f in of_file if f.level == "carries"), *own.findings]:
            if finding.level == "note":
                continue
            reason = f"the audit's {finding.check}: {finding.what}"
            row = rows.get(finding.tensor or "")
            if row is None:
                self.report.reasons.append(reason)
            elif row.kind != "entry":
                row.reasons.append(reason)

    def entry_rows(self) -> list[TensorRow]:
        """Return a row for each entry that the network does not have."""
        extra = further_entries(self.artifact.state, self.model)
        reason = "the file has this entry and the network does not"
        return [TensorRow(n, "entry", t.numel(), reasons=[reason]) for n, t in extra.items()]

    @cached_property
    def _layers(self) -> list[Layer]:
        """The parameters in forward order; of a network that cannot be traced, as registered."""
        try:
            return layers(self.model, self.spec.input_shape, "tensor")
        except FlSimError:  # what gets no gradient is refused all the same
            return [Layer(name, (name,)) for name, _ in self.model.named_parameters()]

    @cached_property
    def _absorbed(self) -> set[str]:
        """Biases that a normalisation takes away, which no fine-tuning moves."""
        try:
            return set(absorbed_biases(self.model, self.spec.input_shape))
        except FlSimError:
            return set()

    def _used(self) -> set[str]:
        return {name for layer in self._layers if layer.used for name in layer.parameters}

    def _reached_by_loss(self) -> set[str]:
        """Return the parameters that get a gradient other than zero from held-out images."""
        reached: set[str] = set()
        self.model.eval()
        self.model.zero_grad(set_to_none=True)
        for pixels, labels in self._batches():
            loss = self.task.loss(self.model(normalized(pixels)), labels)
            if not loss.requires_grad:
                break
            loss.backward()
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None and parameter.grad.any():
                    reached.add(name)
            self.model.zero_grad(set_to_none=True)
        return reached

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        end = min(len(self.held_out), _GRADIENT_BATCHES * _GRADIENT_BATCH)
        for first in range(0, end, _GRADIENT_BATCH):
            yield self.held_out.batch(slice(first, min(end, first + _GRADIENT_BATCH)))

    @torch.no_grad()
    def _loss(self) -> float:
        self.model.eval()
        losses = [float(self.task.loss(self.model(normalized(x)), y)) for x, y in self._batches()]
        return sum(losses) / len(losses)

    def _fine_tune_until_changed(self, before: State, used: set[str]) -> None:
        rates = dict.fromkeys(before, self.settings.learning_rate)
        for _ in range(self.settings.rounds):
            self._fine_tune_once(rates)
            now = dict(self.model.named_parameters())
            lagging = [
                name
                for name in used - self._absorbed
                if _change(before[name], now[name]) < self.settings.min_change
            ]
            for name in lagging:
                rates[name] *= _FASTER
            if not lagging:
                return

    def _fine_tune_once(self, rates: Mapping[str, float] | None = None) -> None:
        stream = self.stream.at("gate", self.report.rounds)
        release = Release(
            self.model,
            self.spec,
            self.held_out,
            self.task,
            stream,
            progress=self.progress,
            training=self.training,
        )
        if self.settings.defense is None:
            ordered = self._layers
            own = rates or {}
            usual = self.settings.learning_rate
            steps = [LayerRate(o, max(own.get(n, usual) for n in o.parameters)) for o in ordered]
            fine_tune(release, steps, self.settings)
        else:
            self.settings.defense.build(DEFENSES, "[gate] defense").apply(release)
        self.report.rounds += 1

    @torch.no_grad()
    def _overwrite(self, places: dict[str, torch.Tensor]) -> None:
        """Give elements fresh values of the deviation that the others of their tensor have."""
        parameters = dict(self.model.named_parameters())
        for name, mask in places.items():
            generator = self.stream.at("gate", name).torch_generator("fresh values")
            draw_anew(parameters[name], mask, generator)
            self.report.overwritten += int(mask.sum())

    def _parameter(
        self, name: str, before: torch.Tensor, after: torch.Tensor, dead: torch.Tensor | None
    ) -> TensorRow:
        change = _change(before, after)
        live = _live(before, dead)
        same = _words(before)[live] == _words(after)[live]
        unmoved = float(same.double().mean()) if same.numel() else 0.0
        row = TensorRow(
            name, "parameter", before.numel(), change, unmoved, before.numel() - int(live.sum())
        )
        absorbed = name in self._absorbed and self.settings.overwrite_dead
        if not math.isfinite(change):
            row.reasons.append("it is not finite")
        elif change < self.settings.min_change and not absorbed:
            row.reasons.append(
                f"it changed by {change:.2g} of its size in {self.report.rounds} rounds of "
                f"fine-tuning, less than {self.settings.min_change:g}"
            )
        if unmoved > self.settings.max_unmoved and not absorbed:
            row.reasons.append(
                f"{unmoved:.0%} of its live elements did not change by a single bit, more than "
                f"{self.settings.max_unmoved:.0%}"
            )
        if row.dead and not self.settings.overwrite_dead:
            row.reasons.append(f"{row.dead} of its elements are dead: nothing ever moves them")
        return row

    def _buffers(self, before: State, estimated: State) -> list[TensorRow]:
        """Compare statistics with the images', and other buffers with a fresh network's."""
        fresh = dict(build(self.spec).named_buffers())
        norms = {n for n, m in self.model.named_modules() if isinstance(m, _BatchNorm)}
        persistent = self.model.state_dict()
        rows = []
        for name, buffer in self.model.named_buffers():
            if name not in persistent:
                continue
            row = TensorRow(name, "buffer", buffer.numel())
            if name in estimated and name.rpartition(".")[0] in norms:
                row.reasons += self._statistics(name, before, estimated)
                row.relative_change = _change(before[name], estimated[name])
            elif name not in fresh or not _equal(before[name], fresh[name]):
                row.reasons.append("it is not what the network's construction gives")
            rows.append(row)
        return rows

    def _statistics(self, name: str, before: State, estimated: State) -> list[str]:
        owner, _, leaf = name.rpartition(".")
        value, expected = before[name].double(), estimated[name].double()
        if leaf == "num_batches_tracked":
            wild = not 0 <= int(before[name]) < 1 << 40
            return ["it is no number of batches"] if wild else []
        if not value.isfinite().all() or (leaf == "running_var" and (value < 0).any()):
            return ["it holds values that no statistics can have"]
        variance = estimated[f"{owner}.running_var"].double()
        if leaf == "running_mean":
            distance = (value - expected).abs() / (variance + 1e-5).sqrt()
        else:
            distance = ((value + 1e-5) / (variance + 1e-5)).log().abs()
        median = float(distance.median())
        if median <= self.settings.max_statistics:
            return []
        return [
            f"its values are not the images' statistics (median distance {median:.2g}, allowed "
            f"{self.settings.max_statistics:g})"
        ]


def _change(before: torch.Tensor, after: torch.Tensor) -> float:
    moved = float((after.detach().cpu().double() - before.double()).norm())
    size = float(before.double().norm())
    return moved / size if size else float(moved > 0)


def _live(tensor: torch.Tensor, dead: torch.Tensor | None) -> torch.Tensor:
    return torch.ones(tensor.shape, dtype=torch.bool) if dead is None else ~dead


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of floats as integers, so that equal means equal bit for bit."""
    return tensor.detach().cpu().contiguous().view(_WORDS[tensor.element_size()])


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other.cpu())
