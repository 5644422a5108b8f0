"""``fl_sim.measure``: what recovered images tell about the true ones, beside the floors."""

from typing import TYPE_CHECKING, Any

import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.measure import Measured, measure_leakage
from fl_sim.metrics.vocabulary import describe, known
from fl_sim.verbs.images import pictures
from fl_sim.words import NO_EXTRACTION

if TYPE_CHECKING:
    import pandas as pd


def measure(
    stolen: Any,
    originals: Any,
    /,
    *,
    public: Any = None,
    labels: Any = None,
    public_labels: Any = None,
    key_labels: Any = None,
    seed: int = 0,
) -> "pd.DataFrame":
    """Measure what recovered images leak of the originals, raw and restored, beside the floors.

    Args:
        stolen: what :func:`fl_sim.extract` returned, ``[n, channels, height, width]``, any values.
        originals: the true images in the same order, in [0, 1].
        public: images of the same kind that an attacker may have; he restores with them, and the
            floors are made of them. Without any, there are no restorations and no SSIM floors.
        labels, public_labels: classes of the originals and the public images, for one more floor.
        key_labels: classes of the originals where the attacker's key tells them, as Transpose's
            does: then the floor of guessing knows them, too.
        seed: of the random floor.

    Returns:
        A row for each way of extracting: ``raw``, each restoration, ``chosen``, the one of them
        that an attacker would choose without a true image, and ``strongest``, the one that leaks
        most, column by column, which takes the true images to pick. Then one for each floor: what
        an attacker reaches who knows only public images, or guesses. Columns: mean SSIM, PSNR in
        dB, the shares of images whose nearest original is their own, by distance and by
        correlation, from 0 to 1, and other metrics by their names.

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
        out,
        true,
        outside,
        seed,
        labels=_classes(labels),
        public_labels=_classes(public_labels),
        key_labels=_classes(key_labels),
    )
    rows: dict[str, dict[str, float]] = {}
    for extraction, metric, value in measured.rows:
        if extraction != NO_EXTRACTION:
            rows.setdefault(extraction, {})[describe(metric).word] = value
    table = pd.DataFrame.from_dict({**rows, **_floors(measured.rows)}, orient="index")
    return table.rename_axis("extraction")


def _floors(measured: list[Measured]) -> dict[str, dict[str, float]]:
    """Return a row a kind of floor, with the metrics that have it."""
    values = {row.metric: row.value for row in measured if row.extraction == NO_EXTRACTION}
    rows: dict[str, dict[str, float]] = {}
    for metric in dict.fromkeys(r.metric for r in measured if r.extraction != NO_EXTRACTION):
        for floor in known(metric).floors:
            if floor in values:
                said = f"floor: {describe(floor).word}"
                rows.setdefault(said, {})[describe(metric).word] = values[floor]
    return rows


def _classes(labels: Any) -> torch.Tensor | None:
    if labels is None:
        return None
    found = torch.as_tensor(labels)
    return found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
