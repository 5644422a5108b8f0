"""``fl_sim.measure``: what recovered images tell about the true ones, beside the floors."""

from typing import TYPE_CHECKING, Any

import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.measure import Measured, measure_leakage
from fl_sim.metrics.vocabulary import NO_EXTRACTION
from fl_sim.verbs.images import pictures

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "ssim": "ssim",
    "psnr": "psnr",
    "identification_distance": "found by distance",
    "identification_correlation": "found by correlation",
}
FLOORS = {
    "ssim_floor_mean": ("floor: mean public image", ("ssim",)),
    "ssim_floor_class_mean": ("floor: mean public image of the class", ("ssim",)),
    "ssim_floor_random": ("floor: random public image", ("ssim",)),
    "identification_chance": (
        "floor: guessing",
        ("identification_distance", "identification_correlation"),
    ),
}


def measure(
    stolen: Any,
    originals: Any,
    /,
    *,
    public: Any = None,
    labels: Any = None,
    public_labels: Any = None,
    seed: int = 0,
) -> "pd.DataFrame":
    """Measure what recovered images leak of the originals, raw and restored, beside the floors.

    Args:
        stolen: what :func:`fl_sim.extract` returned, ``[n, channels, height, width]``, any values.
        originals: the true images in the same order, in [0, 1].
        public: images of the same kind that an attacker may have; he restores with them, and the
            floors are made of them. Without any, there are no restorations and no SSIM floors.
        labels, public_labels: classes of the originals and the public images, for one more floor.
        seed: of the random floor.

    Returns:
        A row for each way of extracting (``raw``, each restoration, and ``strongest``, the highest
        of them column by column), then one for each floor: what an attacker reaches who knows only
        public images. Columns: mean SSIM, PSNR in dB, the shares of images whose nearest original
        is their own, by distance and by correlation, from 0 to 1, and other metrics by their names.

    Raises:
        FlSimError: if shapes do not fit.
    """
    import pandas as pd

    true = pictures(originals, "originals")
    out = torch.as_tensor(stolen, dtype=torch.float32)
    outside = true[:0] if public is None else pictures(public, "public images")
    if float(true.min()) < 0 or float(true.max()) > 1:
        raise FlSimError("The originals leave [0, 1]; give pixels between 0 and 1.")
    measured = measure_leakage(
        out, true, outside, seed, labels=_classes(labels), public_labels=_classes(public_labels)
    )
    rows: dict[str, dict[str, float]] = {}
    for extraction, metric, value in measured.rows:
        if extraction != NO_EXTRACTION:
            rows.setdefault(extraction, {})[COLUMNS.get(metric, metric)] = value
    table = pd.DataFrame.from_dict({**rows, **_floors(measured.rows)}, orient="index")
    return table.rename_axis("extraction")


def _floors(measured: list[Measured]) -> dict[str, dict[str, float]]:
    values = {row.metric: row.value for row in measured if row.extraction == NO_EXTRACTION}
    return {
        words: {COLUMNS[metric]: values[name] for metric in metrics}
        for name, (words, metrics) in FLOORS.items()
        if name in values
    }


def _classes(labels: Any) -> torch.Tensor | None:
    if labels is None:
        return None
    found = torch.as_tensor(labels)
    return found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
