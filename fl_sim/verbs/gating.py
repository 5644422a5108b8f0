"""``fl_sim.gate``: let a checkpoint leave only if all of it changed in fine-tuning."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fl_sim.auditing.gate import GateSettings, pass_gate
from fl_sim.auditing.gate_report import GateReport
from fl_sim.auditing.identified import identified_artifact
from fl_sim.bars import chosen_progress
from fl_sim.checkpoints import read_checkpoint
from fl_sim.errors import FlSimError
from fl_sim.models.pixels import Normalization
from fl_sim.progress import Progress
from fl_sim.randomness import Stream
from fl_sim.settings import parse
from fl_sim.verbs.auditing import statement_of
from fl_sim.verbs.images import is_labelled, pixels_of, split_of, task_of
from fl_sim.verbs.network import State


@dataclass(frozen=True)
class Gated:
    """What the gate says of a checkpoint.

    Args:
        report: what it found; ``report.approved``, and ``report.all_reasons()`` where it refuses.
        state: what may leave, by the file's own names; ``None`` where it is refused.
    """

    report: GateReport
    state: State | None = field(repr=False)

    @property
    def approved(self) -> bool:
        """Whether the model may leave."""
        return self.report.approved

    def save(self, path: Path | str) -> Path:
        """Write what may leave as a state dictionary of torch's. Returns ``path``.

        Raises:
            FlSimError: if it is refused.
        """
        if self.state is None:
            reasons = "; ".join(self.report.all_reasons()[:3])
            raise FlSimError(f"The gate refused the model, so nothing leaves: {reasons}.")
        torch.save(self.state, path)
        return Path(path)


def gate(
    checkpoint: Path | str,
    images: Any,
    labels: Any = None,
    /,
    *,
    model: Any = None,
    defense: str | Mapping[str, Any] | None = None,
    normalize: Normalization = None,
    training: Any = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> Gated:
    """Let a checkpoint leave only if it audits well and all of it changed in fine-tuning.

    Args:
        checkpoint: path of a file of any format; nothing in it is run, and it is not changed.
        images: the owner's clean held-out images; see :func:`fl_sim.verbs.images.split_of`.
        labels: theirs, where ``images`` does not bring them.
        model: the network that the file is of, as for :func:`fl_sim.audit`.
        defense: a defence that cleans in place of plain fine-tuning, by name or as a table.
        normalize: how the network takes pixels, where it is not the file's word or [-1, 1].
        training: the images that the model was trained on, with labels, for
            ``images="training"`` among the settings.
        seed: everything random follows from it.
        progress: ``False`` for silence; by default bars on terminals and in notebooks.
        settings: of the gate, for example ``epochs=2``; see
            :class:`fl_sim.auditing.gate.GateSettings`.

    Returns:
        Whether it may leave, why not, and what leaves.

    Raises:
        FlSimError: if the file cannot be read, its network is not known, or the images or their
            labels are not for it.

    Source: Li, Ayache and Delingette, MELBA 2025:032, figure 14.
    """
    split = split_of(images, labels, "held-out images")
    if not is_labelled(split):
        raise FlSimError("The gate fine-tunes; give the labels of the held-out images, too.")
    chosen = settings if defense is None else {**settings, "defense": defense}
    values = parse(GateSettings, chosen, "gate")
    channels, size = pixels_of(split)
    stated = replace(statement_of(model, None, channels, size), normalize=normalize)
    read = read_checkpoint(Path(checkpoint))
    artifact, known = identified_artifact(read, stated, str(checkpoint))
    report, state = pass_gate(
        artifact,
        split,
        task_of(split, artifact.spec.classes, artifact.spec.task == "segmentation"),
        values,
        Stream(seed),
        progress=chosen_progress(progress),
        found=(*read.findings, *known.findings),
        training=None if training is None else split_of(training, None, "training images"),
    )
    return Gated(report, None if state is None else known.in_file(state))
