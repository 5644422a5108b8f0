"""The command line of extraction: ``fl-sim extract``."""

from pathlib import Path
from typing import Annotated

import typer


def extract(
    artifact: Annotated[Path, typer.Argument(help="The model file that left (safetensors).")],
    key: Annotated[Path, typer.Argument(help="The attacker's key file (safetensors).")],
    out: Annotated[
        Path, typer.Option(help="Folder for the recovered images, as PNG files.")
    ] = Path("recovered"),
) -> None:
    """Play the receiver: read images back from a model file with the attacker's key."""
    from experiments.tables.console import make_console, plain
    from experiments.tables.pictures import write_images
    from fl_sim.attacks.doubt import doubt
    from fl_sim.extraction import extract as read_back

    extraction, console = read_back(artifact, key), make_console(soft_wrap=True)
    write_images(out, extraction.images)
    console.print(f"{len(extraction.images)} images in {plain(out)}")
    doubted = doubt(extraction)
    if doubted:
        console.print(f"[yellow]Doubtful:[/] {plain(doubted)}")
