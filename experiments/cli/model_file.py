"""What the commands on a model file have in common: their options, and reading and writing it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from torch import nn

    from fl_sim.artifact import Artifact
    from fl_sim.auditing.architecture import Statement
    from fl_sim.auditing.identified import Identified
    from fl_sim.checkpoints import Checkpoint
    from fl_sim.data.base import Dataset, Split
    from fl_sim.models.base import ModelSpec

Json = Annotated[
    Path | None, typer.Option("--json", help="Also write the report here.", show_default=False)
]
Model = Annotated[
    str | None,
    typer.Option(
        help="The network it is of: a registered name, any classifier of torchvision, or "
        "package.module:function; otherwise the file's word, or what explains the file.",
        show_default=False,
    ),
]
Classes = Annotated[
    int | None,
    typer.Option(
        help="Outputs of the network; otherwise told by shapes.", show_default=False, min=1
    ),
]
Channels = Annotated[
    int | None,
    typer.Option(help="Channels of its images; otherwise told by shapes.", show_default=False),
]
Size = Annotated[
    int | None,
    typer.Option(
        help="Side of its images in pixels, which shapes rarely tell.", show_default=False, min=1
    ),
]
StemChoice = Annotated[
    Literal["default", "small"] | None,
    typer.Option(help="Its stem; otherwise told by shapes.", show_default=False),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        help="How the network takes pixels: symmetric ([-1, 1]), none ([0, 1]), imagenet (as "
        "torchvision's pretrained weights), or a mean and a deviation, such as 0.5,0.25; otherwise "
        "the file's word, or symmetric.",
        show_default=False,
    ),
]
ModelFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A model file; whatever fl-sim audit reads.")
]
DatasetName = Annotated[
    str, typer.Option(help="A registered dataset or .npz file; its validation split is used.")
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder of data files; otherwise the environment variable FL_SIM_DATA, then "
        "medmnist's own folder.",
        show_default=False,
    ),
]
Images = Annotated[
    int | None, typer.Option(help="Only so many held-out images.", show_default=False, min=1)
]
Seed = Annotated[int, typer.Option(help="Everything random follows from it.", min=0)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting, for example --set epochs=5; repeatable.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Opened:
    """A model file, with the images of its owner.

    Args:
        artifact: the network with the file's weights.
        checkpoint: the file as read.
        known: how its network is known.
        dataset: the owner's.
        held_out: its images for cleaning.
    """

    artifact: "Artifact"
    checkpoint: "Checkpoint"
    known: "Identified"
    dataset: "Dataset"
    held_out: "Split"


def open_model_file(
    file: Path,
    network: "Statement",
    dataset: str,
    data_root: Path | None,
    images: int | None,
    seed: int,
) -> Opened:
    """Read a model file that anybody may have made, and the images to clean it with.

    Args:
        file: of any format; nothing in it is run.
        network: what the user says of its network; the images tell the rest.
        dataset: a registered name, or the path of an ``.npz`` file.
        data_root: folder of data files.
        images: how many held-out images; all of the validation split where not given.
        seed: which they are.

    Raises:
        FlSimError: if a file is missing or damaged, or the network is not known.
    """
    from fl_sim.auditing.identified import identified_artifact
    from fl_sim.checkpoints import read_checkpoint
    from fl_sim.data import load_dataset
    from fl_sim.data.splits import HeldOutSettings, divide

    checkpoint = read_checkpoint(file)
    own = checkpoint.spec if network.model is None else None
    side = network.size or (own.size if own else None)
    loaded = load_dataset(dataset, {} if side is None else {"size": side}, data_root)
    channels = network.channels or loaded.channels
    stated = replace(network, channels=channels, size=loaded.size)
    artifact, known = identified_artifact(checkpoint, stated, str(file))
    held_out = divide(loaded, HeldOutSettings(images=images, public_images=0), seed).held_out
    return Opened(artifact, checkpoint, known, loaded, held_out)


def require_fitting(opened: Opened, network: "nn.Module", file: str) -> None:
    """Refuse a network that is not for the owner's images.

    Raises:
        FlSimError: naming what does not fit.
    """
    from fl_sim.errors import FlSimError
    from fl_sim.models.lent import require_answers

    spec, task = opened.artifact.spec, opened.dataset.task
    shape = (opened.dataset.channels, opened.dataset.size, opened.dataset.size)
    if spec.input_shape != shape:
        raise FlSimError(
            f"The network of {file} takes images of shape {list(spec.input_shape)}, and those of "
            f"{opened.dataset.name} are {list(shape)}; choose the dataset or --size it was trained "
            f"on."
        )
    if spec.classes != task.outputs:
        raise FlSimError(
            f"The network of {file} has {spec.classes} outputs, and the task of "
            f"{opened.dataset.name} has {task.outputs}; choose the dataset it was trained on."
        )
    require_answers(spec, network)


def settings_of(overrides: list[str] | None, **values: Any) -> dict[str, Any]:
    """Return settings as the options give them; those of ``--set`` go before ``values``."""
    from fl_sim.overrides import apply_override

    found = {key: value for key, value in values.items() if value is not None}
    for override in overrides or ():
        apply_override(found, override)
    return found


def write_model(out: Path, spec: "ModelSpec", state: dict[str, Any]) -> None:
    """Write a cleaned model where its user wants it: .pth and .pt as torch's state dictionary."""
    import io

    import torch
    from safetensors.torch import save

    from fl_sim.artifact import write_artifact
    from fl_sim.files import write_atomically
    from fl_sim.models import skeleton

    if out.suffix.lower() in (".pth", ".pt", ".bin", ".ckpt"):
        content = io.BytesIO()
        torch.save(state, content)
        write_atomically(out, content.getvalue())
    elif state.keys() == skeleton(spec).keys():
        write_artifact(out, spec, state)
    else:  # names that the network itself does not know
        write_atomically(out, save({n: t.contiguous() for n, t in state.items()}))
