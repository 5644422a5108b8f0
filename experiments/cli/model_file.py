"""What the commands on a model file have in common: their options, and writing it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
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
