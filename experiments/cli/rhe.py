"""The command line of sealed models: ``fl-sim rhe seal``, ``predict`` and ``decide``."""

import json
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
)
from experiments.cli.program import program

if TYPE_CHECKING:
    from fl_sim.data.base import Split

app = program(
    no_args_is_help=True,
    help="Let a model leave with a head that only its owner can read, and use it.",
)

Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The folder of a sealed model.")]


@app.command()
def seal(
    model_file: ModelFile,
    dataset: DatasetName,
    out: Annotated[Path, typer.Option(help="Folder that leaves; made.")],
    owner: Annotated[
        Path, typer.Option(help="Folder that stays with the owner: his secret key; made.")
    ],
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
    """Train a new head on the owner's images, and encrypt it; the base leaves as it is.

    Nothing in the file is run. Trust the base by its hash (--set base=FILE --set sha256=...), or
    whoever made it can have hidden images in it. --set names any key of the defence rhe.
    """
    from dataclasses import asdict

    from experiments.cli.model_file import open_model_file, require_fitting
    from experiments.tables.console import make_console, plain
    from fl_sim.auditing.architecture import Statement
    from fl_sim.bars import make_progress
    from fl_sim.defenses.base import Release
    from fl_sim.files import write_atomically
    from fl_sim.randomness import Stream
    from fl_sim.sealing.ckks import require_tenseal
    from fl_sim.sealing.files import write_sealed
    from fl_sim.verbs.cleaning import cleaned_release, defense_of

    require_tenseal()
    console = make_console(soft_wrap=True)
    chosen, name = defense_of("rhe", settings_of(overrides))
    network = Statement(model, classes, channels, size, stem, normalize)
    opened = open_model_file(model_file, network, dataset, data_root, images, seed)
    spec, task = opened.artifact.spec, opened.dataset.task
    built = opened.artifact.model()
    require_fitting(opened, built, str(model_file))
    release = Release(
        built,
        spec,
        opened.held_out,
        task,
        Stream(seed, ("release", 0)),
        progress=make_progress(console),
    )
    state, report = cleaned_release(chosen, name, release, opened.artifact.state)
    assert report.sealed is not None
    files = write_sealed(out, owner, spec, state, report.sealed, task)
    if json_out is not None:
        told: dict[str, Any] = {"bytes": files.bytes, "report": asdict(report)}
        write_atomically(json_out, (json.dumps(told, indent=1) + "\n").encode())
    console.print(
        f"Head of {report.sealed.shape.features} x {report.sealed.shape.outputs} trained on "
        f"{report.images} images, loss {report.epochs[-1]['loss']:.3f}"
    )
    for file, length in files.bytes.items():
        console.print(f"{plain(out / file)}: {length:,} bytes")
    if report.sealed.base.name == "given":
        console.print("[yellow]The base is the model that was given[/]: what is in it, leaves.")
    console.print(f"The key {plain(files.key)} stays with its owner")


@app.command()
def predict(
    artifact: Artifact,
    images: Annotated[
        str,
        typer.Argument(
            help="A .npy file of images, or a registered dataset or .npz file (its test split)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The answers to write (.safetensors).")],
    count: Annotated[
        int | None, typer.Option(help="Only the first so many.", show_default=False, min=1)
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Play the receiver: let a sealed model answer; only its owner can read the answers."""
    from experiments.tables.console import make_console, plain
    from fl_sim.bars import make_progress
    from fl_sim.sealing.answers import encrypted_answers
    from fl_sim.sealing.ckks import require_tenseal
    from fl_sim.sealing.files import read_sealed

    require_tenseal()
    console = make_console(soft_wrap=True)
    received = read_sealed(artifact)
    split = _images(images, received.view.spec.size, data_root, count)
    encrypted_answers(received, split, out, make_progress(console))
    console.print(f"{len(split)} encrypted answers in {plain(out)}, for the owner of the key")


@app.command()
def decide(
    key: Annotated[Path, typer.Argument(help="The owner's key, secret.safetensors.")],
    answers: Annotated[Path, typer.Argument(help="A file of encrypted answers.")],
    json_out: Json = None,
) -> None:
    """Play the owner: decrypt answers, count them, and print what they decide, a line an image."""
    from fl_sim.files import write_atomically
    from fl_sim.sealing.answers import decide as decided

    decisions = decided(key, answers).tolist()
    if json_out is not None:
        write_atomically(json_out, (json.dumps({"decisions": decisions}) + "\n").encode())
    for decision in decisions:
        print(" ".join(map(str, decision)) if isinstance(decision, list) else decision)


def _images(images: str, size: int, data_root: Path | None, count: int | None) -> "Split":
    """Return images to be asked about.

    Raises:
        FlSimError: if there is no such file or dataset, or it holds no images.
    """
    import numpy as np

    from fl_sim.data import load_dataset
    from fl_sim.errors import FlSimError, printable
    from fl_sim.verbs.images import split_of

    if not images.endswith(".npy"):
        found = load_dataset(images, {"size": size}, data_root).test
        return found.subset(np.arange(min(count or len(found), len(found))))
    try:
        array = np.load(images, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        said = printable(str(error).partition("\n")[0])[:200]
        raise FlSimError(f"The images {printable(images)} cannot be read: {said}.") from None
    return split_of(np.asarray(array[:count]), what="images")
