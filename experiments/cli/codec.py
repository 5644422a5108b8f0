"""The command line of codecs: ``fl-sim codec train`` and ``fl-sim codec evaluate``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli.program import complete_codecs, program

app = program(no_args_is_help=True, help="Train and measure image codecs, apart from any attack.")

DatasetName = Annotated[
    str, typer.Option("--dataset", help="A registered dataset (see fl-sim list) or an .npz file.")
]
Size = Annotated[
    int | None, typer.Option("--size", help="The dataset's image side.", show_default=False)
]
Images = Annotated[
    int | None,
    typer.Option("--images", help="Only so many images, at random.", show_default=False),
]
Seed = Annotated[int, typer.Option("--seed", help="Of every random draw.")]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="Folder of data files.", show_default=False),
]


@app.command()
def train(
    codec: Annotated[
        str,
        typer.Argument(help="A codec, for example factorized.", autocompletion=complete_codecs),
    ],
    dataset: DatasetName,
    out: Annotated[Path, typer.Option(help="The codec file to write (.safetensors).")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the codec; repeatable.",
            show_default=False,
        ),
    ] = None,
    size: Size = None,
    images: Images = None,
    seed: Seed = 0,
    data_root: DataRoot = None,
) -> None:
    """Train a codec on a dataset and write it to a file, as an attacker would outside."""
    from fl_sim.glance import at_a_glance

    # What is wrong in names and keys is said before torch is imported.
    at_a_glance("fl_sim.codecs.workbench", "chosen_codec", lambda f: f(codec, overrides or ()))
    _check_dataset(dataset, size)
    from experiments.tables.console import make_console, plain
    from fl_sim.bars import make_progress
    from fl_sim.codecs.workbench import chosen_codec, train_codec

    console = make_console()
    choice = chosen_codec(codec, overrides or ())
    progress = make_progress(console)
    report = train_codec(choice, _table(dataset, size), out, images, seed, data_root, progress)
    last = {name: curve[-1] for name, curve in report.curves.items() if curve}
    values = "  ".join(f"{name} {value:.4g}" for name, value in last.items())
    console.print(f"{report.steps} steps in {report.seconds:.0f} s ({report.stopped})  {values}")
    console.print(f"Codec file {plain(out)}", soft_wrap=True)


@app.command()
def evaluate(
    codec: Annotated[str, typer.Argument(help="A codec file, or a lossless codec (gzip, png).")],
    dataset: DatasetName,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    size: Size = None,
    images: Images = None,
    seed: Seed = 0,
    data_root: DataRoot = None,
) -> None:
    """Measure a codec: bits a pixel, ratio to gzip, PSNR, SSIM and MS-SSIM."""
    from fl_sim.errors import unknown_name
    from fl_sim.glance import at_a_glance

    splits = ("train", "validation", "test")
    if split not in splits:
        raise unknown_name("split", split, splits)
    if not Path(codec).exists():
        at_a_glance("fl_sim.codecs.workbench", "open_codec", lambda f: f(codec))
    _check_dataset(dataset, size)
    import pandas as pd

    from experiments.tables.console import make_console, print_table
    from fl_sim.codecs.workbench import evaluate_codec

    table = _table(dataset, size)
    values = evaluate_codec(codec, table, split, images, seed, data_root)  # type: ignore[arg-type]
    print_table(make_console(), pd.DataFrame([values]), f"{codec} on {dataset}, {split} split")


def _check_dataset(dataset: str, size: int | None) -> None:
    from fl_sim.glance import at_a_glance
    from fl_sim.settings import parse

    keys = {} if size is None else {"size": size}
    at_a_glance("fl_sim.data", "dataset_settings", lambda f: parse(f(dataset), keys, "[dataset]"))


def _table(dataset: str, size: int | None) -> dict[str, Any]:
    return {"name": dataset} if size is None else {"name": dataset, "size": size}
