"""``fl-sim invert``: images of what any model file takes for its classes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.model_file import (
    Channels,
    Classes,
    DataRoot,
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
from experiments.tables.console import plain

if TYPE_CHECKING:
    from rich.console import Console

    from fl_sim.inversion.measured import Shown
    from fl_sim.inversion.search import Inversion


def invert(
    model_file: ModelFile,
    out: Annotated[
        Path,
        typer.Option(help="Folder for the images: classes.png, one row a class, and classes.npz."),
    ] = Path("inverted"),
    dataset: Annotated[
        str | None,
        typer.Option(
            help="A registered dataset or .npz file that the model was trained on; then the images "
            "are compared with its training images.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Images of each class.", min=1)] = 4,
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
    """Look for images that a classifier gives to each of its classes (model inversion).

    Nothing is hidden in the file for it, and nothing in the file is run. With batch-norm statistics
    as prior where the network has them, else with total variation.
    """
    from experiments.tables.console import make_console
    from fl_sim.auditing.architecture import Statement
    from fl_sim.auditing.identified import identified_artifact
    from fl_sim.bars import make_progress
    from fl_sim.checkpoints import read_checkpoint
    from fl_sim.data.base import SEGMENTATION, Task
    from fl_sim.files import write_atomically
    from fl_sim.inversion.measured import shown
    from fl_sim.inversion.search import InversionSettings
    from fl_sim.inversion.search import invert as search
    from fl_sim.randomness import Stream
    from fl_sim.settings import parse
    from fl_sim.verbs.opening import open_model_file

    console = make_console()
    told = {"images": images, **settings_of(overrides)}
    settings = parse(InversionSettings, told, "fl-sim invert")
    network = Statement(model, classes, channels, size, stem, normalize)
    stream, loaded = Stream(seed), None
    if dataset is None:
        artifact, known = identified_artifact(read_checkpoint(model_file), network, str(model_file))
        built = artifact.model()
        names = tuple(str(number) for number in range(artifact.spec.classes))
        segments = artifact.spec.task == "segmentation"
        task = Task(SEGMENTATION if segments else "multi-class", names)
    else:
        opened = open_model_file(model_file, network, dataset, data_root, None, seed)
        artifact, known, loaded = opened.artifact, opened.known, opened.dataset
        built, task = artifact.model(), loaded.task
        opened.require_fitting(built)
    console.print(f"Network: {plain(known.words)}")
    found = search(built, artifact.spec, task, settings, stream, make_progress(console))
    _write(out, found, settings.images)
    console.print(
        f"{len(found.images)} images of {artifact.spec.classes} classes, prior {found.prior}; the "
        f"network gives them {float(found.sure.mean()):.2f} on average: {plain(out)}"
    )
    compared = None if loaded is None else shown(found, loaded.train, loaded.test, stream)
    if compared is not None:
        _say(console, compared)
    if json_out is not None:
        report = {"prior": found.prior, "sure": float(found.sure.mean())}
        report |= {} if compared is None else compared.as_dict()
        write_atomically(json_out, (json.dumps(report, indent=1) + "\n").encode())


def _write(folder: Path, found: "Inversion", columns: int) -> None:
    """Write the images as one picture, a row a class, and as arrays."""
    import io

    import numpy as np
    import torch
    from torchvision.utils import make_grid

    from experiments.tables.pictures import png
    from fl_sim.files import write_atomically

    grid = make_grid(found.images, nrow=columns, padding=2, pad_value=1.0)
    write_atomically(folder / "classes.png", png(grid))
    pixels = (found.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    content = io.BytesIO()
    np.savez_compressed(content, images=pixels, labels=found.labels.numpy())
    write_atomically(folder / "classes.npz", content.getvalue())


def _say(console: "Console", compared: "Shown") -> None:
    from fl_sim.inversion.measured import CHANCE

    console.print(
        f"SSIM with the nearest training image of the class {compared.ssim:.2f}; the class's mean "
        f"public image has {compared.class_mean:.2f}, public images at random {compared.random:.2f}"
    )
    console.print(
        f"The nearest image was trained on for {100 * compared.trained_on:.0f} % of them, among as "
        f"many training as public images; guessing has {100 * CHANCE:.0f} %"
    )
