"""The notebooks run on the phantoms from top to bottom, and what is committed belongs to them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from experiments.notebooks import FOLDER, NOTEBOOKS, path_of
from experiments.notebooks import __main__ as writing
from experiments.notebooks.execution import MARK, PARAMETERS, digest, execute, put, read, tidied
from fl_sim.errors import FlSimError
from tests.experiments.cli_kit import ROOT

nbformat = pytest.importorskip("nbformat", reason="needs the packages of the extra 'notebooks'")
pytest.importorskip("nbclient", reason="needs the packages of the extra 'notebooks'")
pytest.importorskip("ipykernel", reason="needs the packages of the extra 'notebooks'")

TINY: dict[str, dict[str, Any]] = {
    "attack_and_look": {
        "IMAGES": 8,
        "PATIENTS": 64,
        "HELD_OUT": 32,
        "EPOCHS": 1,
        "MEMORY": 1,
        "STEPS": 2,
    },
    "lake_and_federation": {
        "IMAGES": 4,
        "TRAINING": 160,
        "EPOCHS": 2,
        "MEMORY": 1,
        "DEFENSE_EPOCHS": 1,
        "SCRATCH": 1,
    },
    "defences_over_seeds": {
        "SEEDS": [0, 1],
        "IMAGES": 4,
        "TRAINING": 120,
        "EPOCHS": 1,
        "MEMORY": 1,
        "STEPS": 2,
    },
    "your_own_checkpoint": {"TRAINING": 64, "HELD_OUT": 32, "BATCHES": 2, "IMAGES": 8, "STEPS": 2},
}
LONGEST = 15


def _cells(name: str, kind: str) -> list[Any]:
    return [cell for cell in read(path_of(name)).cells if cell.cell_type == kind]


def _outputs(notebook: Any) -> list[Any]:
    return [one for cell in notebook.cells for one in cell.get("outputs", ())]


def _book(*sources: str) -> Any:
    v4 = nbformat.v4
    cells = [v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = [PARAMETERS]
    return v4.new_notebook(cells=cells)


def test_every_notebook_is_listed() -> None:
    assert sorted(NOTEBOOKS) == sorted(file.stem for file in FOLDER.glob("*.ipynb"))
    assert set(TINY) == set(NOTEBOOKS)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All notebooks, run by one kernel, which imports everything once; names are forgotten between.

    Returns:
        The folder that they were run in, and each as it was run.
    """
    folder = tmp_path_factory.mktemp("notebooks")
    cells, parts = [], {}
    for name in NOTEBOOKS:
        notebook = read(path_of(name))
        put(notebook, TINY[name])
        (folder / name).mkdir()
        fresh = f"%reset -f\n%cd -q {folder / name}"
        cells += [nbformat.v4.new_code_cell(fresh), *notebook.cells]
        parts[name] = slice(len(cells) - len(notebook.cells), len(cells))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FL_SIM_DATA", raising=False)
        patch.setenv("FL_SIM_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", str(ROOT))
        done = execute(nbformat.v4.new_notebook(cells=cells), folder)
    v4 = nbformat.v4
    return folder, {n: v4.new_notebook(cells=done.cells[part]) for n, part in parts.items()}


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the kernel has to import everything, and runs all of them
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_top_to_bottom_on_the_phantoms(
    name: str, executed: tuple[Path, dict[str, Any]]
) -> None:
    folder, notebooks = executed
    done = notebooks[name]
    assert not [one for one in _outputs(done) if one.output_type == "error"]
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")
    assert "dermamnist" not in json.dumps(_outputs(done))
    assert any("image/png" in one.get("data", {}) for one in _outputs(done)) or "check" in name
    text = nbformat.writes(tidied(done))
    assert str(folder) not in text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_cells_are_short_and_each_is_explained(name: str) -> None:
    cells = read(path_of(name)).cells
    assert len([cell for cell in cells if PARAMETERS in cell.metadata.get("tags", ())]) == 1
    for before, cell in zip([None, *cells], cells, strict=False):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= LONGEST, cell.source
            assert before is not None and before.cell_type == "markdown", cell.source
    assert cells[-1].cell_type == "markdown"  # what it meant


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_committed_came_out_of_the_committed_code(name: str) -> None:
    notebook = read(path_of(name))
    assert notebook.metadata[MARK]["sources"] == digest(notebook), f"{name}: run make notebooks"
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    outputs = _outputs(notebook)
    assert outputs and not [one for one in outputs if one.output_type == "error"]
    assert "dermamnist" in json.dumps(outputs).lower()  # of real images, not of phantoms


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_has_no_traces_of_the_machine_and_is_small(name: str) -> None:
    text = path_of(name).read_text(encoding="utf-8")
    assert len(text) < writing.LARGEST
    found = re.findall(r"/(?:tmp|home|work|root|usr|Users|var)/[\w./-]+", text)
    assert found == []
    for word in ("iopub", "widgets", "application/vnd.jupyter.widget", "stderr", "https://cdn"):
        assert word not in text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_numbers_of_its_prose_are_those_of_metrics_and_settings(name: str) -> None:
    """Whatever comes out, the words stay true: measured values stand in outputs alone."""
    prose = " ".join(cell.source for cell in _cells(name, "markdown"))
    assert re.findall(r"(?<![\w-])0\.\d\d+", prose) == []


def test_a_cell_that_fails_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match="fails with ZeroDivisionError: division by zero"):
        execute(_book("N = 1", "N / 0"), tmp_path)


def test_a_kernel_that_ends_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match="kernel ended by itself"):
        execute(_book("N = 1", "import os; os._exit(1)"), tmp_path)


def test_parameters_go_before_those_of_the_notebook(tmp_path: Path) -> None:
    done = execute(_book("N, M = 1, 2", "print(N + M)"), tmp_path, {"N": 5})
    assert _outputs(done)[0].text == "7\n"
    with pytest.raises(FlSimError, match="does not set 'K'"):
        execute(_book("N = 1"), tmp_path, {"K": 2})


def test_what_is_kept_has_no_bars_warnings_and_times(tmp_path: Path) -> None:
    bar = "from IPython.display import display\ndisplay({'text/html': ''}, raw=True)"
    source = "import sys; print('a', file=sys.stderr); print('b'); 3"
    done = tidied(execute(_book("N = 1", source, bar), tmp_path))
    assert [one.get("text", one.get("data")) for one in _outputs(done)] == [
        "b\n",
        {"text/plain": "3"},
    ]
    assert all(set(cell.metadata) <= {"tags"} for cell in done.cells)
    again = tidied(execute(_book("N = 1", source, bar), tmp_path))
    assert nbformat.writes(again) == nbformat.writes(done)
    done.cells[1].source += "\n"
    assert digest(done) != done.metadata[MARK]["sources"]


def test_they_are_written_from_real_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FL_SIM_DATA", raising=False)
    monkeypatch.setattr("sys.argv", ["notebooks"])
    with pytest.raises(SystemExit, match="set FL_SIM_DATA"):
        writing.main()
    with pytest.raises(FlSimError, match="Did you mean 'attack_and_look'"):
        writing.write("attack_and_loo")
