"""The studies that are grids: their cells, and each study as small as it goes."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest

from experiments.studies import (
    architectures,
    capacity,
    federated_vs_centralized,
    held_out,
    lwlrd_ablation,
    paper_tables,
    worth_of_stolen,
)
from experiments.studies.base import NONE, GridStudy, How, Values, dec, transpose
from experiments.sweep.grid import Grid
from fl_sim.errors import FlSimError
from fl_sim.models.graph import Grouping

PHANTOMS: dict[str, Any] = {
    "dataset": {"name": "phantoms", "size": 8, "train": 60, "validation": 24, "test": 30},
    "data": {"public_images": 6, "images": 16},
    "training": {"batch_size": 32, "epochs": 1},
    "measure": {"scratch_epochs": 1, "columns": 1},
}
FEW = {"label": "LWLRD", "name": "lwlrd", "epochs": 1}
ONE = (0,)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Iterator[None]:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path_factory.getbasetemp() / "grid-study-cache"))
    yield


def _run(study: GridStudy, grid: Values, out: Path) -> pd.DataFrame:
    """Run a study in this process and check what every study leaves."""
    frame = study.run({"cells": grid}, out, How(workers=0))
    on_disk = pd.read_csv(out / f"{study.name}.csv", keep_default_na=False)
    assert list(on_disk.columns) == list(frame.columns)
    assert len(on_disk) == len(frame)
    assert (out / f"{study.name}.png").read_bytes()[:4] == b"\x89PNG"
    origin = json.loads((out / f"{study.name}.json").read_text())
    assert origin["seeds"] == [0]
    assert origin["cells"] > 0
    assert "torch" in origin["versions"][0]
    assert origin["machines"][0]["cpus"] >= 1
    return frame


CASE = paper_tables.PaperCase(
    "DermaMNIST (a file)", {"name": "phantoms", "size": 8}, {"name": "cnn"}, {"epochs": 1}, ONE
)
GRIDS: dict[str, Values] = {
    "paper": paper_tables.grid(CASE),
    "paper, MIMIC": paper_tables.grid(
        paper_tables.PaperCase(
            "MIMIC-CXR", {"name": "mimic_cxr"}, {"name": "densenet121"}, {"epochs": 6.5}, ONE
        )
    ),
    "federated": federated_vs_centralized.grid(**federated_vs_centralized.SMALL),
    "federated, full": federated_vs_centralized.grid("resnet18", seeds=range(5)),
    "ablation": lwlrd_ablation.grid(),
    "held out": held_out.grid(),
    "capacity": capacity.grid(),
    "capacity, full": capacity.grid(("cnn", "resnet18"), seeds=range(5)),
    "architectures": architectures.grid(distillation={"steps": 10}, **architectures.SMALL),
    "architectures, full": architectures.grid(seeds=range(5)),
    "usability": worth_of_stolen.grid(),
}


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_is_valid_and_says_each_cell_once(name: str) -> None:
    grid = Grid.of(GRIDS[name])
    assert grid.repeated == 0
    assert len(grid.cells) >= 3


def test_the_ablation_changes_one_factor_at_a_time() -> None:
    cells = Grid.of(lwlrd_ablation.grid(seeds=ONE)).cells
    chosen = [c.scenario.defense for c in cells if c.scenario.defense is not None]
    # A reversed decay, or none, is a defence of another name.
    settings = [{"name": defense.name, **defense.settings} for defense in chosen]
    default = settings[0]
    for variant in settings[1:]:
        changed = [key for key in default if variant.get(key) != default[key]]
        assert 1 <= len(changed) <= 3
    layers = {variant["layers"] for variant in settings if "layers" in variant}
    assert layers == set(get_args(Grouping))


def test_the_lake_steals_from_the_hospital_that_the_federation_attacks() -> None:
    for cell in Grid.of(federated_vs_centralized.grid()).cells:
        scenario = cell.scenario
        share = scenario.attacker.hospital
        if scenario.federation is None:
            assert share is not None
            assert scenario.training.epochs == 8
            assert share.scheme == ("iid" if "IID" in cell.labels["variant"] else "dirichlet")
        else:
            assert share is None
            assert (scenario.attack is None) == (scenario.federation.absent == (0,))
            assert scenario.federation.rounds * scenario.training.epochs == 8


def test_the_paper_tables_have_published_numbers_beside_ours(tmp_path: Path) -> None:
    defenses = (NONE, FEW)
    grid = paper_tables.grid(
        CASE, (transpose(3), dec(2)), defenses, **{**PHANTOMS, "training": {"epochs": 1}}
    )
    del grid["scenario"]["dataset"]
    grid["seeds"] = [0]
    frame = _run(paper_tables.STUDY, grid, tmp_path)
    assert len(frame) == 4
    keyed = frame.set_index(["attack", "defense"])
    published: Any = keyed.loc[("Transpose, 3", "LWLRD")]
    assert (published["ssim published"], published["auc published"]) == (0.115, 0.878)
    assert published["published in"] == "arXiv 2509.00027"
    others = keyed.drop(index=("Transpose, 3", "LWLRD"))
    assert others[["ssim published", "auc published"]].isna().all(axis=None)
    assert keyed.loc[("DEC, 2", "none"), "images_intact"] == 2
    assert keyed.loc[("DEC, 2", "LWLRD"), "images_intact"] == 0
    assert keyed["auc_scratch"].between(0, 1).all()
    assert (keyed["n"] == 1).all()


def test_intervals_of_the_paper_tables_are_over_seeds() -> None:
    long = _long_table({0: 0.2, 1: 0.4, 2: 0.6})
    frame = paper_tables.tabulate(long)
    row = frame.iloc[0]
    assert row["n"] == 3
    assert row["auc"] == pytest.approx(0.4)
    # Student's t with two degrees of freedom, 4.3027 * 0.2 / sqrt(3) = 0.49683, on the logit.
    half = 0.49683 / (0.4 * 0.6)
    for end, sign in (("auc low", -1), ("auc high", 1)):
        logit = math.log(0.4 / 0.6) + sign * half
        assert row[end] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-4)


def _long_table(auc: dict[int, float]) -> pd.DataFrame:
    keys = {"dataset": "d", "model": "m", "attack": "a", "defense": "none"}
    labels = {f"grid.{axis}": value for axis, value in keys.items()}
    common = {"round": 0, "stage": "release", "extraction": "-", "metric": "auc"}
    return pd.DataFrame(
        [
            {"cell": f"c{seed}", **labels, "seed": seed, **common, "value": value}
            for seed, value in auc.items()
        ]
    )


def test_a_federation_is_compared_with_a_lake(tmp_path: Path) -> None:
    grid = federated_vs_centralized.grid(
        attack={"name": "transpose", "images": 3},
        hospitals=2,
        rounds=1,
        seeds=ONE,
        steps=2,
        held_out=(16,),
        partitions=("IID",),
        averages=("FedAvg",),
        **PHANTOMS,
    )
    frame = _run(federated_vs_centralized.STUDY, grid, tmp_path)
    stages = frame.groupby(["where", "defense"])["stage"].agg(list)
    assert set(stages.index.get_level_values("where")) == {"data lake", "FedAvg"}
    assert stages["data lake", "none"] == ["upload", "release"]
    assert stages["FedAvg", "LWLRD"] == ["upload", "aggregate", "release"]
    assert (frame["partition"] == "IID").all()
    honest = frame["defense"] == federated_vs_centralized.WITHOUT
    assert frame.loc[~honest, ["ssim strongest", "auc", "auc_scratch"]].notna().all(axis=None)
    assert frame.loc[honest & (frame["stage"] == "release"), "auc"].notna().all()
    assert {"from scratch, same views", "trusted training, same views"} < set(frame["defense"])


def test_the_ablation_has_a_row_a_variant(tmp_path: Path) -> None:
    variants = [
        {**FEW, "label": "default"},
        {**FEW, "label": "layers, by tensor", "layers": "tensor"},
    ]
    grid = lwlrd_ablation.grid("cnn", 3, ONE, variants, **PHANTOMS)
    frame = _run(lwlrd_ablation.STUDY, grid, tmp_path)
    assert list(zip(frame["factor"], frame["value"], strict=True)) == [
        ("none", ""),
        ("default", ""),
        ("layers", "by tensor"),
    ]
    assert frame["auc_scratch"].notna().all()


def test_sizes_of_the_held_out_set_share_the_attacked_model(tmp_path: Path) -> None:
    base = {**PHANTOMS, "data": {"public_images": 6}}
    grid = held_out.grid("cnn", 3, ONE, (8, 16), (NONE, FEW), **base)
    frame = _run(held_out.STUDY, grid, tmp_path)
    assert list(frame["held-out images"]) == [8, 16, 8, 16]
    undefended = frame[frame["defense"] == "none"]
    assert undefended["auc"].nunique() == 1
    assert undefended["auc_scratch"].nunique() == 2  # another floor a size
    shared = [path.name.partition("-")[0] for path in (tmp_path / "cells" / "shared").iterdir()]
    assert shared.count("upload") == 1
    reports = (tmp_path / "cells" / "cells").glob("*lwlrd*/defense.jsonl")
    assert sorted(json.loads(path.read_text())["images"] for path in reports) == [8, 16]


def test_capacity_counts_what_was_hidden(tmp_path: Path) -> None:
    grid = capacity.grid(("cnn",), (3,), (2, "fit"), ONE, **PHANTOMS)
    grid["grid"]["defense"] = [NONE, FEW]
    frame = _run(capacity.STUDY, grid, tmp_path)
    released = frame[frame["stage"] == "release"]
    fitting = released[released["asked"] == "fit"].set_index("defense")
    assert (fitting["images"] == 54).all()  # all there are, less six public ones
    assert fitting.loc["none", "images_intact"] == 54
    assert fitting.loc["LWLRD", "images_intact"] == 0
    assert list(released[released["attack"] == "Transpose"]["images"]) == [3, 3]


def test_architectures_have_a_row_a_network_and_defence(tmp_path: Path) -> None:
    models = ({"label": "CNN", "name": "cnn"}, {"label": "MLP", "name": "mlp"})
    attack = {"name": "transpose", "images": 3}
    grid = architectures.grid(models, attack, ONE, {"steps": 2}, **PHANTOMS)
    frame = _run(architectures.STUDY, grid, tmp_path)
    counted = [c for c in architectures.COUNTED if c in get_args(Grouping)]
    expected = ["none", *(f"LWLRD by {c}" for c in counted), "consistent distillation"]
    assert list(frame["defense"]) == expected * 2
    assert set(frame["model"]) == {"CNN", "MLP"}


def test_stolen_images_are_trained_on_before_and_after_raw_and_restored(tmp_path: Path) -> None:
    base = {**PHANTOMS, "measure": {"scratch_epochs": 1, "usability_epochs": 2, "columns": 1}}
    grid = worth_of_stolen.grid("cnn", 12, 2, ONE, (NONE, FEW), **base)
    frame = _run(worth_of_stolen.STUDY, grid, tmp_path)
    kinds = set(zip(frame["trained on"], frame["defended"], strict=True))
    assert kinds == {
        ("stolen, raw", "before"),
        ("stolen, restored", "before"),
        ("stolen, raw", "after"),
        ("stolen, restored", "after"),
        ("true images", "-"),
        ("true images, shuffled labels", "-"),
    }
    assert len(frame) == 2 * len(kinds)
    assert frame["auc"].between(0, 1).all()
    assert (frame.loc[frame["trained on"] == "true images", "ssim"] == 1).all()


def test_a_study_with_failed_cells_says_so_and_keeps_the_others(tmp_path: Path) -> None:
    many = {"label": "DEC, 60", "name": "dec", "images": 60, "codec": "png"}
    grid = capacity.grid(("cnn",), (3,), (), ONE, **PHANTOMS)
    grid["grid"]["attack"].append(many)
    with pytest.raises(FlSimError, match="60"):
        capacity.STUDY.run({"cells": grid}, tmp_path, How(workers=0))
    frame = pd.read_csv(tmp_path / "capacity.csv")
    assert set(frame["attack"]) == {"Transpose"}


def test_a_study_none_of_whose_cells_ended_leaves_no_table(tmp_path: Path) -> None:
    grid = capacity.grid(("cnn",), (300,), (), ONE, **PHANTOMS)
    with pytest.raises(FlSimError, match="All cells of the study failed"):
        capacity.STUDY.run({"cells": grid}, tmp_path, How(workers=0))
    assert not (tmp_path / "capacity.csv").exists()


def test_the_subset_of_chest_images_stands_in_where_the_whole_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_tables, "_called", lambda published, name, root: published)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    (tmp_path / "medmnist").mkdir()
    (tmp_path / "medmnist" / paper_tables.CHEST_SUBSET).touch()
    chest = paper_tables.cases(tmp_path, None)[1]
    assert chest.dataset == {"name": paper_tables.CHEST_SUBSET}
    assert "subset" in chest.name
    (tmp_path / "medmnist" / "chestmnist.npz").touch()
    whole = paper_tables.cases(tmp_path, tmp_path)
    assert [case.name for case in whole] == ["DermaMNIST", "ChestMNIST", "MIMIC-CXR"]
    assert whole[2].data_root == tmp_path
