"""The command line of sealed models and of heads in clear: ``fl-sim rhe``."""

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

_MOST_ORIGINALS = 1 << 30

app = program(
    no_args_is_help=True,
    help="Let a model leave with a head that only its owner can read, and use it; attack a head "
    "that left in clear.",
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

    from experiments.tables.console import make_console, plain
    from fl_sim.auditing.architecture import Statement
    from fl_sim.bars import make_progress
    from fl_sim.defenses.base import Release
    from fl_sim.files import write_atomically
    from fl_sim.randomness import Stream
    from fl_sim.sealing.ckks import require_tenseal
    from fl_sim.sealing.files import write_sealed
    from fl_sim.verbs.cleaning import cleaned_release, defense_of
    from fl_sim.verbs.opening import open_model_file

    require_tenseal()
    console = make_console(soft_wrap=True)
    chosen, name = defense_of("rhe", settings_of(overrides))
    network = Statement(model, classes, channels, size, stem, normalize)
    opened = open_model_file(model_file, network, dataset, data_root, images, seed)
    spec, task = opened.artifact.spec, opened.dataset.task
    built = opened.artifact.model()
    opened.require_fitting(built)
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


@app.command()
def base(
    dataset: Annotated[
        str, typer.Option(help="A registered dataset or .npz file; of its train split a part.")
    ],
    out: Annotated[Path, typer.Option(help="The model file to write (.safetensors).")],
    share: Annotated[
        float, typer.Option(help="Share of the train split that is public.", min=0.0, max=1.0)
    ] = 0.3,
    model: Annotated[str, typer.Option(help="The network, by its registered name.")] = "cnn",
    overrides: Overrides = None,
    data_root: DataRoot = None,
    size: Size = None,
    seed: Seed = 0,
) -> None:
    """Train a base on public images alone, and print its hash, which others can trust it by.

    --set names any key of [training], for example --set epochs=8.
    """
    from experiments.tables.console import make_console, plain
    from fl_sim.artifact import write_artifact
    from fl_sim.bars import make_progress
    from fl_sim.data import load_dataset
    from fl_sim.files import checksum
    from fl_sim.models import check
    from fl_sim.models.base import ModelSpec
    from fl_sim.reconstruction.public_base import parted, train_base
    from fl_sim.settings import parse
    from fl_sim.training import TrainingSettings

    console = make_console(soft_wrap=True)
    training = parse(TrainingSettings, settings_of(overrides), "The training of the base")
    loaded = load_dataset(dataset, {} if size is None else {"size": size}, data_root)
    spec = ModelSpec(
        name=model, channels=loaded.channels, size=loaded.size, classes=loaded.task.outputs
    )
    check(spec)
    parts = parted(loaded, share, seed)
    state = train_base(spec, parts.public, loaded, training, seed, make_progress(console))
    write_artifact(out, spec, state)
    console.print(
        f"{plain(out)}: {plain(model)}, trained on {len(parts.public)} of "
        f"{len(parts.public) + len(parts.attacker)} training images of {plain(loaded.name)}"
    )
    console.print(f"SHA-256 {checksum(out)}")


@app.command()
def attack(
    model_file: ModelFile,
    dataset: Annotated[
        str,
        typer.Option(
            help="The attacker's images: a registered dataset or .npz file (train split)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for what is reconstructed.")],
    originals: Annotated[
        Path | None,
        typer.Option(
            help="A .npz file with 'images' and 'labels' that the head was trained on, to measure "
            "with.",
            show_default=False,
        ),
    ] = None,
    kept: Annotated[
        Path | None,
        typer.Option(help="Folder to keep shadow heads in for another time.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    seed: Seed = 0,
    model: Model = None,
    classes: Classes = None,
    channels: Channels = None,
    size: Size = None,
    stem: StemChoice = None,
    normalize: Normalize = None,
    json_out: Json = None,
) -> None:
    """Play the attacker of a head in clear: reconstruct images like those it was trained on.

    Nothing in the file is run. --set names any key of the attacker: images_per_class, shadows,
    reconstructor, sees, head.epochs and so on.
    """
    from experiments.tables.console import make_console, plain
    from experiments.tables.pictures import draw_rows
    from fl_sim.auditing.architecture import Statement
    from fl_sim.bars import make_progress
    from fl_sim.files import write_atomically
    from fl_sim.reconstruction.few_shot import FewShotSettings
    from fl_sim.settings import parse
    from fl_sim.verbs.opening import open_model_file
    from fl_sim.verbs.reconstructing import attack_network, refuse_sealed

    console = make_console(soft_wrap=True)
    settings = parse(FewShotSettings, settings_of(overrides), "The attacker")
    refuse_sealed(model_file)
    own = None if originals is None else _pairs(originals)
    network = Statement(model, classes, channels, size, stem, normalize)
    opened = open_model_file(model_file, network, dataset, data_root, None, seed)
    built = opened.artifact.model()
    opened.require_fitting(built)
    found = attack_network(
        built,
        opened.artifact.spec,
        opened.dataset.train,
        settings,
        originals=own,
        kept=kept,
        seed=seed,
        progress=make_progress(console),
    )
    rows = {"reconstructed": found.images, "without the head": found.guess}
    draw_rows(out / "reconstructed.png", rows)
    found.save(out / "reconstructed.safetensors")
    console.print(
        f"{len(found.images)} images in {plain(out)}, one a class; on other heads like this one "
        f"the mean square error is {found.error:.4f}, that of each class's mean image "
        f"{found.class_mean_error:.4f}"
    )
    told = found.told()
    if found.evidence is not None:
        console.print(
            f"Of {told['images']} images {told['found']} are found where one in a hundred of other "
            f"heads' would be; the nearest image is an own one for {told['nearest']}, and by "
            f"guessing for {told['nearest_by_guessing']:.2g}"
        )
    if json_out is not None:
        write_atomically(json_out, (json.dumps(told, indent=1) + "\n").encode())


def _pairs(path: Path) -> "Split":
    """Return the images and labels of a .npz file.

    Raises:
        FlSimError: if there is no such file, or it has no such arrays.
    """
    import zipfile

    import numpy as np

    from fl_sim.errors import FlSimError, printable
    from fl_sim.verbs.images import split_of

    shown = printable(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_ORIGINALS:
                raise FlSimError(f"The originals {shown} are larger than 1 GiB; give fewer images.")
        with np.load(path, allow_pickle=False) as arrays:
            return split_of(arrays["images"], arrays["labels"], "original images")
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        said = printable(str(error).partition("\n")[0])[:200]
        raise FlSimError(
            f"The originals {shown} cannot be read: {said}; give a .npz file with the arrays "
            f"'images' and 'labels'."
        ) from None


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
