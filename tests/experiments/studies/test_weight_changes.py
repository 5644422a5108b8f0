"""The study of what fine-tuning leaves behind."""

import pytest

from experiments.studies.weight_changes import of_sweep, study
from experiments.sweep.start import sweep
from fl_sim.errors import FlSimError


def test_tables_tell_leaks_and_weights_of_each_fine_tuning(tmp_path):
    base = {
        "mode": "centralized",
        "dataset": "phantoms",
        "model": {"name": "resnet18"},
        "training": {"epochs": 1},
        "data": {"train_images": 64, "images": 32, "test_images": 32},
        "attack": {"name": "transpose", "images": 8},
        "measure": {"scratch_epochs": 0},
    }
    defenses = {
        "LWLRD": {"name": "lwlrd", "epochs": 1},
        "noise": {"name": "gaussian_noise", "sigma": 1e-3},
    }
    leaks, weights = study(base, defenses, tmp_path, seeds=(0,))
    assert list(leaks["defence"]) == ["none", "LWLRD", "noise"]
    assert leaks["ssim strongest"].between(-1, 1).all()
    late = weights[weights["stage"] == "layer4"].set_index("defence")
    # On one pixel eight of nine taps never meet data: fine-tuning leaves them, noise does not.
    assert late.loc["LWLRD", "unchanged"] > 0.8
    assert late.loc["noise", "unchanged"] < 0.05
    assert (weights["sign"] <= 0.5).all()
    assert late.loc["noise", "bit 0"] > 0.4
    for name in ("leaks_after_fine_tuning.csv", "weights_after_fine_tuning.csv"):
        assert (tmp_path / name).stat().st_size > 100
    assert (tmp_path / "weights_after_fine_tuning.png").read_bytes()[:4] == b"\x89PNG"


def test_cells_of_a_sweep_are_compared_without_a_run_of_their_own(tmp_path):
    grid = {
        "seeds": [0],
        "scenario": {
            "mode": "centralized",
            "dataset": {"name": "phantoms", "size": 8},
            "model": "cnn",
            "training": {"epochs": 0.2},
            "data": {"train_images": 64, "images": 16, "test_images": 32},
            "measure": {"scratch_epochs": 0},
        },
        "grid": {
            "attack": [{"label": "Transpose", "name": "transpose", "images": 4}],
            "defense": [
                {"label": "16 random low bits", "name": "random_bits", "bits": 16},
                {"label": "none", "value": "none"},
                {"label": "other", "name": "gaussian_noise"},
            ],
        },
    }
    swept = sweep(grid, tmp_path / "sweep", workers=0, progress=False)
    leaks, weights = of_sweep(swept.out, tmp_path / "out")
    assert list(leaks["defence"]) == ["none", "16 random low bits"]
    assert set(weights["defence"]) == {"16 random low bits"}
    assert weights["bit 15"].between(0.4, 0.6).all()
    assert (weights[["bit 16", "sign"]] == 0).all(axis=None)
    assert (tmp_path / "out" / "weights_after_fine_tuning.png").is_file()
    with pytest.raises(FlSimError, match="is no folder of a sweep"):
        of_sweep(tmp_path, tmp_path / "out")
