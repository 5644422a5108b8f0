"""Scenario files as editors save them, and as nobody should; plugins; names of files."""

import codecs
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.run.scenario import Scenario
from experiments.run.shipped import find
from experiments.run.toml_file import read_toml
from experiments.sweep.grid import Grid
from fl_sim.errors import FlSimError

PLAIN = 'mode = "centralized"\ndataset = "phantoms"\nmodel = "cnn"\n'


def _file(folder: Path, content: str | bytes) -> Path:
    path = folder / "s.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    plain = Scenario.from_toml(_file(tmp_path, PLAIN))
    assert Scenario.from_toml(_file(tmp_path, codecs.BOM_UTF8 + PLAIN.encode())) == plain
    grid = 'base = "demo-centralized"\n[grid]\ndefense = ["none"]\n'.encode("utf-8-sig")
    assert len(Grid.from_toml(_file(tmp_path, grid)).cells) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PLAIN.encode("utf-16"), "saved as UTF-16; save it as UTF-8"),
        (PLAIN.encode("utf-16-le"), "saved as UTF-16"),
        (PLAIN.encode("utf-16-be"), "saved as UTF-16"),
        (PLAIN.encode("utf-32"), "saved as UTF-32"),
        ((PLAIN + "# Größe\n").encode("latin-1"), r"not saved as UTF-8 \(line 4\)"),
        ('dataset = "C:\\Users\\me\\x.npz"\n', r"write paths in '\.\.\.' or with /"),
        ('dataset = "D:\\data\\x.npz"\n', r"write paths in '\.\.\.' or with /"),
        ("a = " + "[" * 20_000 + "]" * 20_000, "inside each other"),
        ("a = " + "[" * 50 + "]" * 50, "inside each other"),
        ("seed = " + "9" * 5000, "'seed'.* digits"),
        ("seed = 18446744073709551616", "'seed' is 18446744073709551616"),
        ("[a." + "a." * 500 + "a]", "inside each other"),
        ('mode = "a\x00"', "cannot be read"),
        ("a = 1\n" * 2, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, content: str | bytes, words: str
) -> None:
    with pytest.raises(FlSimError, match=words) as refusal:
        read_toml(_file(tmp_path, content), "scenario")
    assert "s.toml" in str(refusal.value) and str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 400


def test_paths_in_single_quotes_are_taken_as_they_are(tmp_path: Path) -> None:
    path = _file(tmp_path, "dataset = 'C:\\Users\\me\\x.npz'\n")
    assert read_toml(path, "scenario")["dataset"] == "C:\\Users\\me\\x.npz"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch.toml", "scenario file .*nosuch.toml does not exist"),
        ("ok.tml", "scenario file .*ok.tml does not exist. Did you mean 'ok.toml'"),
        ("folder", "folder is a folder"),
        ("folder/ok", "folder/ok does not exist"),
        ("x" * 5000 + ".toml", "does not exist"),
        ("a\x00b.toml", "does not exist"),
        ("demo-centralised", "no scenario called .* Did you mean 'demo-centralized'"),
    ],
)
def test_a_file_that_is_not_there_is_called_that(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "ok.toml").write_text(PLAIN)
    with pytest.raises(FlSimError, match=words) as refusal:
        find(name, "scenario", tmp_path)
    assert "Valid names" not in str(refusal.value)


PLUGINS = {
    "raises": ("raise RuntimeError('no')", "RuntimeError: no"),
    "exits": ("import sys; sys.exit(3)", r"ends the program \(3\)"),
    "exits_quietly": ("raise SystemExit", "ends the program"),
    "syntax": ("def (", "SyntaxError"),
    "needs": ("import no_such_library", "No module named 'no_such_library'"),
    "recursion": ("def f(): f()\nf()", "RecursionError"),
    "twice": (
        "from fl_sim.defenses.base import DEFENSES\n"
        "@DEFENSES.register('lwlrd', 'another')\nclass Other: pass",
        "'lwlrd' is registered twice",
    ),
    "generator": ("raise GeneratorExit", "GeneratorExit"),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_that_fails_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    code, words = PLUGINS[name]
    (tmp_path / f"plugin_{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import fl_sim.defenses.lwlrd  # noqa: F401

    with pytest.raises(FlSimError, match=words) as refusal:
        Scenario.create(
            mode="centralized", dataset="phantoms", model="cnn", plugins=[f"plugin_{name}"]
        )
    assert f"plugin_{name}" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "plugins", [5, "os", [1], [""], [".x"], ["../../x"], ["__main__"], ["a.__init__"], {"a": 1}]
)
def test_what_names_no_plugin_is_refused_and_not_imported(plugins: object) -> None:
    before = set(sys.modules)
    with pytest.raises(FlSimError, match="plugins"):
        Scenario.create(mode="centralized", dataset="phantoms", model="cnn", plugins=plugins)
    assert not {name for name in set(sys.modules) - before if "__main__" in name}


EXTREME = [
    ("training", "epochs", float("inf")),
    ("training", "epochs", 1e308),
    ("training", "learning_rate", 1e300),
    ("training", "batch_size", 2**70),
    ("training", "batch_size", 10**12),
    ("training", "momentum", float("nan")),
    ("federation", "boost", float("inf")),
    ("federation", "boost", float("nan")),
    ("federation", "hospitals", 10**9),
    ("federation", "rounds", 10**15),
    ("federation", "defend", True),
    ("federation", "alpha", 1e-300),
    ("federation", "round_timeout", float("inf")),
    ("federation", "cohort", 10**12),
    ("measure", "scratch_epochs", 10**9),
    ("measure", "every", 10**12),
    ("data", "public_images", 10**9),
    ("data", "train_images", 2**40),
    ("attack", "images", 10**9),
    ("defense", "sigma", float("inf")),
    ("defense", "sigma", 1e38),
    ("attacker", "rehearsal_epochs", float("inf")),
    ("attacker", "rehearsal_images", 10**9),
    ("dataset", "noise", float("nan")),
    ("dataset", "seed", 2**63),
    ("", "seed", 2**63),
    ("", "seed", True),
    ("", "threads", 10**9),
    ("", "seed", "1"),
]


@pytest.mark.parametrize(("table", "key", "value"), EXTREME)
def test_settings_at_their_extremes_are_refused_by_key(table: str, key: str, value: object) -> None:
    federated = table == "federation"
    scenario: dict[str, object] = {
        "mode": "federated" if federated else "centralized",
        "dataset": {"name": "phantoms"},
        "model": "cnn",
        "attack": {"name": "transpose"},
        "defense": {"name": "gaussian_noise"},
    }
    if federated:
        scenario["federation"] = {"engine": "inprocess", "partition": "dirichlet"}
    target = scenario if not table else scenario.setdefault(table, {})
    assert isinstance(target, dict)
    target[key] = value
    with pytest.raises(FlSimError, match=key) as refusal:
        Scenario.create(**scenario)
    assert "\n" not in str(refusal.value)


NO_COMPONENT: tuple[Any, ...] = (
    3,
    [1],
    3.5,
    True,
    {"settings": {}},
    {"name": 3},
    {"name": ["a"]},
    {"name": 3, "settings": {}},
)


@pytest.mark.parametrize("value", NO_COMPONENT)
@pytest.mark.parametrize("table", ["dataset", "model", "attack", "defense"])
def test_a_component_that_is_none_is_refused(table: str, value: object) -> None:
    scenario = {"mode": "centralized", "dataset": "phantoms", "model": "cnn", table: value}
    with pytest.raises(FlSimError, match=rf"\[{table}\]"):
        Scenario.create(**scenario)
