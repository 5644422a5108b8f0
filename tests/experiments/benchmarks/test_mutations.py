"""Some of the mutants that the benchmark makes by the thousand, and that it notices a traceback."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from experiments.benchmarks import mutations
from experiments.benchmarks.mutation_kinds import KINDS, Kind
from fl_sim.errors import FlSimError


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("key", 120),
        pytest.param("results.csv", 60, marks=pytest.mark.slow),
        pytest.param("scenario.json", 60, marks=pytest.mark.slow),
        pytest.param("table.parquet", 60, marks=pytest.mark.slow),
    ],
)
def test_mutants_are_read_or_refused_in_a_sentence(tmp_path: Path, kind: str, count: int) -> None:
    outcomes = mutations.mutate(kind, count, 7, tmp_path)
    assert not [o.text for o in outcomes if o.kind == mutations.TRACEBACK]
    counts = Counter(outcome.kind for outcome in outcomes)
    assert len(outcomes) == count and counts[mutations.REFUSED] > count / 4
    assert not list(tmp_path.iterdir())


def test_what_is_no_sentence_is_counted_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> None:
        number = path.read_bytes()[0]
        if number == 1:
            raise KeyError("settings")
        if number == 2:
            raise SystemExit(3)
        if number == 3:
            raise FlSimError("one\x1b[31m")
        if number == 4:
            raise FlSimError("It is wrong.")

    def mutate(random: Random) -> bytes:
        return bytes([random.randrange(5)])

    def kind(folder: Path) -> Kind:
        return Kind([b"\x00"], mutate, read, folder / "f")

    monkeypatch.setitem(KINDS, "fake", kind)
    outcomes = mutations.mutate("fake", 40, 0, tmp_path)
    kept = {path.read_bytes()[0] for path in tmp_path.glob("*.mutant")}
    assert kept == {1, 2, 3} and {o.kind for o in outcomes} == {"accepted", "refused", "traceback"}
    assert "KeyError" in "".join(p.read_text() for p in tmp_path.glob("*.txt"))
    again = mutations.mutate("fake", 40, 0, tmp_path)
    assert [o.kind for o in again] == [o.kind for o in outcomes]
