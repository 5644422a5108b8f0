"""``fl-sim clean``: any defence on any model file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.cli.model_file import (
    Channels,
    Classes,
    DataRoot,
    DatasetName,
    Images,
    Json,
    Model,
    ModelFile,
    Normalize,
    Overrides,
    Seed,
    Size,
    StemChoice,
    settings_of,
    write_model,
)
from experiments.tables.console import plain

if TYPE_CHECKING:
    from torch import nn

    from fl_sim.data.base import Split
    from fl_sim.defenses.base import DefenseReport
    from fl_sim.verbs.opening import Opened

_TESTED = 1000
_SHOWN = 5


def clean(
    model_file: ModelFile,
    dataset: DatasetName,
    out: Annotated[
        Path,
        typer.Option(
            help="Write the cleaned model here: .safetensors, or .pth for a state dictionary of "
            "torch's."
        ),
    ],
    defense: Annotated[
        str, typer.Option(help="A registered defence; see fl-sim list defenses.")
    ] = "consistent_distillation",
    overrides: Overrides = None,
    data_root: DataRoot = None,
    images: Images = None,
    seed: Seed = 0,
    model: Model = None,
    classes: Classes = None,
    channels: Channels = None,
    size: Size = None,
    stem: StemChoice = None,
    normalize: Normalize = None,
    json_out: Json = None,
) -> None:
    """Let a defence clean a model file that anybody may have made, on held-out images.

    Nothing in the file is run. Beside the cleaned model it tells what the network is worth before
    and after, on the test split of the same dataset. Unlike the gate it refuses no model.
    """
    from experiments.tables.console import make_console
    from fl_sim.artifact import further_entries
    from fl_sim.auditing.architecture import Statement
    from fl_sim.bars import make_progress
    from fl_sim.defenses.base import Release, refuse_sealing
    from fl_sim.defenses.ledger import cap_bits
    from fl_sim.files import write_atomically
    from fl_sim.randomness import Stream
    from fl_sim.verbs.cleaning import cleaned_release, defense_of
    from fl_sim.verbs.opening import open_model_file

    console = make_console()
    chosen, name = defense_of({"name": defense, **settings_of(overrides)})
    refuse_sealing(chosen, name, "fl-sim clean")
    network = Statement(model, classes, channels, size, stem, normalize)
    opened = open_model_file(model_file, network, dataset, data_root, images, seed)
    console.print(f"Network: {plain(opened.known.words)}")
    built = opened.artifact.model()
    opened.require_fitting(built)
    test = _test_images(opened)
    before = _worth(built, test, opened)
    entries = further_entries(opened.artifact.state, built)
    release = Release(
        built,
        opened.artifact.spec,
        opened.held_out,
        opened.dataset.task,
        Stream(seed, ("release", 0)),
        progress=make_progress(console),
        entries={n: v.clone() for n, v in entries.items()},
        training=opened.dataset.train,
    )
    state, report = cleaned_release(chosen, name, release, opened.artifact.state)
    cap = cap_bits(report, built.state_dict(), release.entries) / 8
    after = _worth(built, test, opened)
    write_model(out, opened.artifact.spec, opened.known.in_file(state))
    if json_out is not None:
        told = {"defense": name, "before": before, "after": after, "cap_bytes": cap}
        told["report"] = asdict(report)
        write_atomically(json_out, (json.dumps(told, indent=1) + "\n").encode())
    _say(console, name, report, before, after, len(test))
    _say_what_goes_along(console, opened, sorted(release.entries))
    console.print(
        f"Cap: at most {cap:,.0f} bytes can have passed from the model into the cleaned one"
        + ("" if model else ", beside how its layers are built and named, which the file chose")
    )
    console.print(f"Cleaned model {plain(out)}")


def _test_images(opened: "Opened") -> "Split":
    import numpy as np

    test = opened.dataset.test
    return test.subset(np.arange(min(_TESTED, len(test)), dtype=np.int64))


def _worth(network: "nn.Module", test: "Split", opened: "Opened") -> dict[str, float]:
    from fl_sim.metrics.utility import measured_utility

    found = measured_utility(network, test, opened.dataset.task)
    return {metric: value for metric, value in found.items() if "[" not in metric}


def _say(
    console: Any,
    name: str,
    report: "DefenseReport",
    before: dict[str, float],
    after: dict[str, float],
    images: int,
) -> None:
    changed = report.relative_change
    moved = sum(changed.values()) / len(changed) if changed else 0.0
    console.print(
        f"{plain(name)}: {report.seconds:.0f} s on {report.images or 'no'} held-out images; "
        f"weights moved by {moved:.2g} of their norm (mean over {len(changed)} layers)"
    )
    for metric, value in before.items():
        console.print(
            f"{metric.replace('_', ' ')}: {value:.3f} before, {after[metric]:.3f} after "
            f"({images} test images)"
        )


def _say_what_goes_along(console: Any, opened: "Opened", entries: list[str]) -> None:
    """Say which entries leave that the network does not have, and what of the file does not."""
    if entries:
        shown = ", ".join(map(plain, entries[:_SHOWN]))
        console.print(
            f"[yellow]{len(entries)} entries leave that the network does not have[/] ({shown}); "
            f"the defence entry_removal takes them out."
        )
    left = [finding for finding in opened.checkpoint.findings if finding.level != "note"]
    if left:
        console.print(f"{len(left)} findings beside the weights stay behind; see fl-sim audit.")
