"""The study scripts of DEC, as small as they go: a table, a figure, and no second run."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.studies import dec_federated, dec_noise, dec_rate_distortion
from experiments.studies.base import How
from experiments.tables.figures import draw_lines

CODEC = {"name": "factorized", "N": 8, "M": 8, "max_steps": 20, "validate_every": 20}
FEW = {"name": "phantoms", "size": 32, "train": 60, "validation": 60, "test": 40}
BASE: dict[str, Any] = {
    "mode": "centralized",
    "dataset": {**FEW, "task": "segmentation"},
    "data": {"train_images": 40, "test_images": 20, "images": 20, "public_images": 20},
    "training": {"epochs": 1, "batch_size": 8},
    "measure": {"scratch_epochs": 0},
    "threads": 1,
}
OUTSIDE = {**FEW, "seed": 9}
UNET = {"name": "unet", "channels": [4, 8, 8, 8]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path_factory.getbasetemp() / "study-cache"))


def _is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_noise_study_has_a_row_a_series_and_sigma(tmp_path: Path) -> None:
    lines = [
        {**line, "attack": {**line["attack"], "images": 4}}
        for line in dec_noise.series(CODEC, OUTSIDE, UNET)
        if line["label"] in ("EP, y as entries", "IT, Z in low bits")
    ]
    grid = dec_noise.grid(lines, (0.0, 0.05), **BASE)
    frame = dec_noise.STUDY.run({"cells": grid}, tmp_path, How(workers=0))
    assert len(frame) == len(lines) * 2
    assert frame["dice"].notna().all()
    codes = frame[frame["series"].str.contains("low bits")].set_index("sigma")
    assert (codes.loc[[0.0], "images_intact"] == 4).all()
    assert (codes.loc[[0.05], "images_intact"] == 0).all()
    latents = frame[frame["series"].str.contains("as entries")].set_index("sigma")
    assert (latents.loc[[0.05], "psnr"] > 8).all()
    assert _is_png(tmp_path / "dec_noise.png")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "dec_noise.csv"), frame, check_dtype=False)


def test_the_federated_study_has_a_row_a_round_and_stage(tmp_path: Path) -> None:
    base = {**BASE, "mode": "federated", "dataset": FEW, "model": "cnn"}
    compared = dec_federated.attacks(CODEC, OUTSIDE, 4)
    chosen = {name: compared[name] for name in ("Z in low bits", "y in frozen weights")}
    grid = dec_federated.grid(chosen, {"hospitals": 2, "rounds": 1}, (1.0, 2.0), **base)
    frame = dec_federated.STUDY.run({"cells": grid}, tmp_path, How(workers=0))
    assert len(frame) == 2 * 2 * 3
    assert list(frame["stage"][:3]) == ["upload", "aggregate", "release"]
    uploads = frame[frame["stage"] == "upload"]
    assert (uploads["images_intact"] == 4).all()
    assert _is_png(tmp_path / "dec_federated.png")


@pytest.mark.slow
def test_the_rate_study_has_a_row_a_cell(tmp_path: Path) -> None:
    codec = {
        "name": "hific",
        "width": 0.05,
        "max_steps": 4,
        "gan_after": 2,
        "validate_every": 2,
        "batch_size": 4,
    }
    grid = dec_rate_distortion.grid(
        4, OUTSIDE, UNET, codec, channels=((6, 10),), decoders={"D1": 0}, **BASE
    )
    frame = dec_rate_distortion.STUDY.run({"cells": grid}, tmp_path, How(workers=0))
    assert list(frame["series"]) == ["EP, D1", "IT, D1"]
    assert list(frame["channels"]) == ["6/10", "6/10"]
    assert frame["psnr"].notna().all()
    assert (frame["images_intact"] == 4).all()
    assert (frame["bpp"] > 0).all()
    assert _is_png(tmp_path / "dec_rate_distortion.png")


def test_a_figure_is_drawn_with_missing_values_and_a_logarithmic_axis(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "x": [0.0, 0.1, 0.0, 0.1],
            "series": ["a", "a", "b", "b"],
            "y": [1.0, 2.0, float("nan"), float("nan")],
        }
    )
    path = draw_lines(tmp_path / "f.png", frame, "x", ("y",), "series", "t", log_x=True)
    assert _is_png(path)
