"""Before a run: what its data do not suffice for is refused, what is left out is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.cli.main import app
from experiments.run.preflight import duplicates_record, remarks
from experiments.run.scenario import Scenario
from experiments.run.start import run
from fl_sim.case import open_case
from fl_sim.errors import FlSimError
from tests.experiments.cli_kit import fl_sim

CODEC = {"name": "factorized", "N": 4, "M": 4, "max_steps": 1, "validate_every": 1}


def npz(path: Path, train: int = 40, side: int = 16, seed: int = 0, **changed: Any) -> Path:
    """Write a small data file with four classes."""
    random = np.random.default_rng(seed)
    content: dict[str, np.ndarray] = {}
    for split, count in (("train", train), ("val", 8), ("test", 8)):
        content[f"{split}_images"] = random.integers(0, 256, (count, side, side), dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(count) % 4).astype(np.uint8)[:, None]
    np.savez_compressed(path, **(content | changed))
    return path


def scenario(file: Path, **changed: Any) -> dict[str, Any]:
    """A small attacked data lake."""
    return {
        "mode": "centralized",
        "dataset": str(file),
        "model": "cnn",
        "threads": 1,
        "device": "cpu",
        "training": {"epochs": 1},
        "attack": {"name": "transpose", "images": 2},
        "measure": {"scratch_epochs": 0},
        **changed,
    }


def _refused(content: dict[str, Any], out: Path, words: str) -> None:
    with pytest.raises(FlSimError, match=words) as refusal:
        run(content, out)
    assert not out.exists() and "\n" not in str(refusal.value)


def test_a_file_of_any_size_runs_without_a_size(tmp_path: Path) -> None:
    result = run(scenario(npz(tmp_path / "d.npz", side=18)), tmp_path / "out")
    assert result.originals.shape[2:] == (18, 18)
    about = json.loads((tmp_path / "out" / "scenario.json").read_text())
    assert about["task"]["kind"] == "multi-class" and about["task"]["outputs"] == 4
    again = run(scenario(npz(tmp_path / "d.npz", side=18)), tmp_path / "out")
    assert again.table.equals(result.table)


def test_size_counts_as_before_in_a_scenarios_name() -> None:
    plain = {"mode": "centralized", "dataset": "d.npz", "model": "cnn"}
    given = {**plain, "dataset": {"name": "d.npz", "size": 28}}
    assert Scenario.create(**plain).identity == Scenario.create(**given).identity
    other = {**plain, "dataset": {"name": "d.npz", "size": 32}}
    assert Scenario.create(**plain).identity != Scenario.create(**other).identity


def test_without_public_images_a_run_ends_and_says_what_it_left_out(tmp_path: Path) -> None:
    data = npz(tmp_path / "d.npz", train=6)
    result = run(scenario(data), tmp_path / "out")
    extractions = set(result.table["extraction"])
    assert extractions == {"-", "raw", "chosen", "strongest"}
    assert not [m for m in result.table["metric"] if m.startswith("ssim_floor")]
    parsed = Scenario.create(**scenario(data))
    said = remarks(parsed, open_case(parsed.case, None))
    assert any("No public images" in text for text in said)
    asked = scenario(npz(tmp_path / "e.npz"), data={"public_images": 0})
    assert set(run(asked, tmp_path / "none").table["extraction"]) == extractions


def test_near_duplicates_are_told_in_a_line_and_noted(tmp_path: Path) -> None:
    data = npz(tmp_path / "d.npz")
    arrays = dict(np.load(data))
    arrays["test_images"][0] = arrays["train_images"][0]
    np.savez(data, **arrays)
    said: dict[str, list[str]] = {}
    noted: dict[str, Any] = {}
    for choice in ("warn", "drop", "keep"):
        content = scenario(data, data={"duplicates": choice, "public_images": 0})
        parsed = Scenario.create(**content)
        case = open_case(parsed.case, None)
        lines = [text for text in remarks(parsed, case) if "uplicate" in text]
        said[choice], noted[choice] = lines, duplicates_record(parsed, case)
    assert "1 of " in said["warn"][0] and "test near train" in said["warn"][0]
    assert '[data] duplicates = "drop" leaves them out' in said["warn"][0]
    assert "are left out: 1 of" in said["drop"][0]
    assert said["keep"] == [] and noted["keep"] is None
    assert noted["warn"] is not None and noted["warn"]["test near train"] == 1
    assert [noted[choice]["dropped"] for choice in ("warn", "drop")] == [False, True]


NEEDS_PUBLIC = {
    "restorations": {"restorations": ["affine"]},
    "search": {"search": True},
    "knows_defense": {"knows_defense": True},
}


@pytest.mark.parametrize("key", NEEDS_PUBLIC)
def test_what_needs_public_images_is_refused_by_key(tmp_path: Path, key: str) -> None:
    content = scenario(
        npz(tmp_path / "d.npz", train=6), attacker=NEEDS_PUBLIC[key], defense="lwlrd"
    )
    _refused(content, tmp_path / "out", rf"\[attacker\] {key}.*public_images")


@pytest.mark.parametrize(
    "attack",
    [
        {"name": "transpose", "images": 7},
        {"name": "combined", "parts": {"a": {"name": "transpose", "images": 7}}},
    ],
)
def test_too_few_images_for_an_attack_are_refused_by_key(
    tmp_path: Path, attack: dict[str, Any]
) -> None:
    content = scenario(npz(tmp_path / "d.npz", train=6), attack=attack)
    _refused(content, tmp_path / "out", r"\[attack\].* images is 7, but there are 6")


def _dec(external: Any, **changed: Any) -> dict[str, Any]:
    return {"name": "dec", "images": 2, "codec": CODEC, "external": external, **changed}


def test_the_attacked_data_are_not_outside_whatever_they_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    attacked = npz(tmp_path / "d.npz")
    copy = tmp_path / "innocent.npz"
    copy.write_bytes(attacked.read_bytes())
    _refused(scenario(attacked, attack=_dec(str(copy))), tmp_path / "o", r"external.* 36 of the 36")
    # In colour, in another order, among others, and compressed otherwise.
    with np.load(attacked) as content:
        arrays = dict(content)
    images = np.repeat(arrays["train_images"][::-1, :, :, None], 3, axis=3)
    others = np.random.default_rng(5).integers(0, 256, (400, 16, 16, 3), dtype=np.uint8)
    train = np.concatenate([others, images[:9]])
    rest = {
        f"{split}_images": np.repeat(arrays[f"{split}_images"][..., None], 3, axis=3)
        for split in ("val", "test")
    }
    labels = (np.arange(len(train)) % 4)[:, None]
    np.savez(
        tmp_path / "mixed.npz", **(arrays | rest | {"train_images": train, "train_labels": labels})
    )
    part = {"one": _dec(str(tmp_path / "mixed.npz"))}
    attack = {"name": "combined", "parts": part}
    _refused(scenario(attacked, attack=attack), tmp_path / "o", r"external.* 9 of the 36|8 of the")
    assert not (tmp_path / "cache" / "codecs").exists()


def test_other_data_are_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    other = npz(tmp_path / "other.npz", seed=1)
    result = run(scenario(npz(tmp_path / "d.npz"), attack=_dec(str(other))), tmp_path / "out")
    assert len(result.originals) == 2


@pytest.mark.parametrize(
    ("dataset", "external"),
    [
        ("pneumoniamnist", "pneumoniamnist"),
        ({"name": "pneumoniamnist", "size": 64}, "pneumoniamnist"),
        ("pneumoniamnist", "elsewhere/pneumoniamnist_64.npz"),
        ({"name": "phantoms", "seed": 3}, {"name": "phantoms", "seed": 3}),
    ],
)
def test_a_dataset_is_not_its_own_outside(dataset: Any, external: Any) -> None:
    with pytest.raises(FlSimError, match="external"):
        Scenario.create(mode="centralized", dataset=dataset, model="cnn", attack=_dec(external))


NAMES = ("Größe 28 [neu]", "a[b]", "[bold]x", "=1+1", "a:smile:b", "日本", "a\x1b[31mb", "x" * 200)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(tmp_path: Path, name: str) -> None:
    data = npz(tmp_path / f"{name}.npz")
    file = tmp_path / "s.toml"
    file.write_text(
        "\n".join(
            [
                'mode = "centralized"',
                f"dataset = {json.dumps(str(data))}",
                'model = "cnn"',
                "threads = 1",
                "[training]",
                "epochs = 1",
                "[attack]",
                'name = "transpose"',
                "images = 2",
                "[measure]",
                "scratch_epochs = 0",
            ]
        ),
        encoding="utf-8",
    )
    out = tmp_path / "[out]"
    done = CliRunner().invoke(app, ["run", str(file), "--out", str(out)], terminal_width=400)
    assert done.exit_code == 0, done.output
    shown = name.replace("\x1b", "\\x1b")
    assert shown[:80] in done.output and "\x1b" not in done.output
    assert "Task: multi-class, 4 outputs" in done.output and "[out]" in done.output
    page = tmp_path / "[page].html"
    done = CliRunner().invoke(app, ["report", str(out), "--out", str(page)])
    assert done.exit_code == 0 and "[page].html" in done.output
    text = page.read_text()
    assert "\x1b" not in text and shown[:40] in text


def test_an_error_shows_brackets_and_no_escapes(tmp_path: Path) -> None:
    name = "[red]no\x1b[31m.toml"
    done = fl_sim("run", name, cwd=tmp_path)
    assert done.returncode == 2 and "\x1b" not in done.stderr
    assert r"[red]no\x1b[31m.toml does not exist" in done.stderr.replace("\n", "")
