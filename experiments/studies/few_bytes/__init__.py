"""Study: how few bytes an image of a patient takes, for whoever has public images of its kind.

The codec ``principal`` is fitted to public images; other images are compressed with it, and told
apart from what is left. Beside it the mean public image, which takes no bytes. Run ``fl-sim study
few_bytes --help``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer

from experiments.studies.base import STUDIES, DataRoot, Out, Study
from experiments.studies.published_tables import Column, PublishedTable
from experiments.tables.console import make_console, print_table
from experiments.tables.figures import write_table
from experiments.tables.pictures import draw_grid
from fl_sim.bars import make_progress
from fl_sim.codecs.library import STREAM
from fl_sim.codecs.principal import Principal, PrincipalSettings
from fl_sim.data import load_dataset
from fl_sim.data.splits import HeldOutSettings, divide
from fl_sim.errors import FlSimError
from fl_sim.metrics.leakage import identification, psnr, ssim
from fl_sim.progress import SILENT, Progress, piece

if TYPE_CHECKING:
    import pandas as pd

BYTES = (2, 4, 6, 8, 12, 24, 48)
SHOWN = (4, 6, 12, 48)
VICTIMS = 512


def measure(
    dataset: str,
    data_root: Path | None,
    public: int = 700,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple["pd.DataFrame", dict[str, torch.Tensor]]:
    """Compress a data set's training images with components of its public ones.

    Args:
        dataset: a registered name, or the path of an ``.npz`` file.
        data_root: folder of data files.
        public: images that the codec is fitted to; none of them is compressed.
        seed: of the split.
        progress: where to report.

    Returns:
        A row a number of bytes, and some originals with what came back.

    Raises:
        FlSimError: if there is no such data set.
    """
    import pandas as pd

    loaded = load_dataset(dataset, {}, data_root)
    case = divide(loaded, HeldOutSettings(public_images=public), seed)
    known, victims = case.public.tensors()[0], case.train
    images = victims.batch(np.arange(min(VICTIMS, len(victims))))[0]
    mean = known.mean(dim=0, keepdim=True).expand_as(images).contiguous()
    rows = [_row(dataset, 0, mean, images, len(known))]
    pictures = {"original": images}
    with piece(progress, "codes", len(BYTES)):
        for size in BYTES:
            codec = Principal(PrincipalSettings(bytes=size))
            codec.fit(known, known[:0], STREAM)
            shape: Any = tuple(images.shape[1:])
            decoded = codec.decode(codec.encode(images), shape)
            found = torch.stack([image for image in decoded if isinstance(image, torch.Tensor)])
            rows.append(_row(dataset, size, found, images, len(known)))
            if size in SHOWN:
                pictures[f"{size} bytes"] = found
                pictures[f"{size} bytes/ssim"] = ssim(found, images)
            progress.step(f"{size} bytes")
    return pd.DataFrame(rows), pictures


def _row(
    dataset: str, size: int, found: torch.Tensor, images: torch.Tensor, public: int
) -> dict[str, Any]:
    told = identification(found, images)
    return {
        "dataset": Path(dataset).stem,
        "public": public,
        "images": len(images),
        "bytes": size,
        "ssim": float(ssim(found, images).mean()),
        "psnr": float(psnr(found, images).mean()),
        "identification_correlation": told.correlation,
        "identification_chance": told.chance,
    }


def few_bytes(
    out: Out = Path("runs") / "few-bytes",
    dataset: Annotated[
        list[str] | None, typer.Option(help="Data set; repeatable.", show_default=False)
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Compress DermaMNIST and PneumoniaMNIST, or other data sets, to a few bytes an image."""
    import pandas as pd

    console, tables = make_console(), []
    for name in dataset or ["dermamnist", "pneumoniamnist"]:
        table, pictures = measure(name, data_root, progress=make_progress(console))
        tables.append(table)
        title = "Images in a few bytes: principal components of public images"
        draw_grid(out / f"{Path(name).stem}.png", pictures, 8, title)
    whole = pd.concat(tables, ignore_index=True)
    if whole.empty:
        raise FlSimError("No data set was named.")
    write_table(out / "few_bytes.csv", whole)
    print_table(console, whole, "Images in a few bytes")
    console.print(out / "few_bytes.csv")


TABLES = {
    "few_bytes": PublishedTable(
        ("few_bytes.csv",),
        {"dataset": "data", "bytes": "bytes an image"},
        (
            Column("SSIM", "ssim"),
            Column("PSNR", "psnr"),
            Column("found by correlation", "identification_correlation"),
            Column("by chance", "identification_chance", metric="identification_correlation"),
        ),
    )
}

STUDIES.register("few_bytes", "how few bytes an image takes, by components of public ones")(
    Study(few_bytes, TABLES)
)
