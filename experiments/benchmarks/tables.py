"""What a long table costs by its rows: to append, write, read, summarise and report on.

Run ``python -m experiments.benchmarks.tables``; it prints a Markdown table. The table is that of a
made-up sweep: cells of an attack and a defence with ten seeds, each with the metrics of a
federation's uploads, aggregate and release over rounds, as a real one has them. Each number of rows
has a process of its own, whose peak memory is told; seconds are CPU time of one thread.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from experiments.report import write_report
from experiments.sweep.start import write_parquet
from experiments.tables.summary import CELL, LABEL, summarise
from fl_sim.randomness import numpy_generator
from fl_sim.results import COLUMNS, Results, read_table

if TYPE_CHECKING:
    import pandas as pd

SEEDS = 10
ROUNDS = 2
STAGES = ("upload", "aggregate", "release")
EXTRACTIONS = ("raw", "affine", "matched", "chosen", "strongest")
LEAKS = (
    "ssim",
    "psnr",
    "identification_distance",
    "identification_correlation",
    "non_finite",
)
OTHERS = (
    "auc",
    "accuracy",
    "stolen_images",
    "identification_chance",
    "identification_floor",
    "ssim_floor_mean",
    "ssim_floor_random",
)
PER_CELL = ROUNDS * len(STAGES) * (len(LEAKS) * len(EXTRACTIONS) + len(OTHERS))

Result = TypeVar("Result")


def sweep_table(rows: int, seeds: int = SEEDS) -> "pd.DataFrame":
    """Return a sweep's long table of about as many rows, so many seeds a scenario."""
    import pandas as pd

    cells = max(seeds, rows // PER_CELL // seeds * seeds)
    places = [
        (number, stage, extraction, metric)
        for number in range(1, ROUNDS + 1)
        for stage in STAGES
        for extraction, metrics in (*((e, LEAKS) for e in EXTRACTIONS), ("-", OTHERS))
        for metric in metrics
    ]
    one = pd.DataFrame(places, columns=["round", "stage", "extraction", "metric"])
    table = pd.concat([one] * cells, ignore_index=True)
    cell = pd.Series(range(cells)).repeat(len(one)).reset_index(drop=True)
    kind = cell // seeds
    attack, defense = _named("transpose ", kind % 20), _named("noise ", kind // 20)
    facts: dict[str, Any] = {
        "scenario": _named("federated-made-up-cnn-", kind),
        "seed": cell % seeds,
        "mode": "federated",
        "dataset": "made-up",
        "model": "cnn",
        "attack": "transpose",
        "defense": "gaussian_noise",
        "aggregator": "fedavg",
        "clients": 4,
        "value": numpy_generator(0, "benchmark", "tables").random(len(table)),
    }
    table = table.assign(**facts)[[*COLUMNS]]
    table.insert(0, CELL, _named("cell-", cell))
    table.insert(1, f"{LABEL}attack", attack)
    table.insert(2, f"{LABEL}defense", defense)
    return table


def _named(prefix: str, numbers: "pd.Series[Any]") -> "pd.Series[str]":
    return numbers.map(lambda number: f"{prefix}{number}")


def measure(rows: int) -> list[str]:
    """Make a table and do everything with it; return its row."""
    import pandas as pd

    table = sweep_table(rows)
    plain = table[[*COLUMNS]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = folder / "report.html"
        appending, _ = timed(lambda: append(plain, folder / "results.csv"))
        reading, again = timed(lambda: read_table(folder / "results.csv"))
        pd.testing.assert_frame_equal(again, plain, check_dtype=False)
        (folder / "results.csv").unlink()
        writing, _ = timed(lambda: write_parquet(folder / "table.parquet", table))
        summing, _ = timed(lambda: summarise(table))
        command = [sys.executable, "-m", "experiments.benchmarks.tables", "--report", name]
        reporting = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        size = page.stat().st_size
    seconds = (f"{s:.2f}" for s in (appending, reading, writing, summing))
    return [f"{len(plain):,}", *seconds, *reporting.split(), f"{size / 1e6:.2f}"]


def report(folder: Path) -> str:
    """Report a folder's table, and return CPU seconds and the peak of this process' memory, MB."""
    seconds, _ = timed(lambda: write_report(folder, folder / "report.html"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return f"{seconds:.2f} {peak:.0f}"


def append(table: "pd.DataFrame", path: Path) -> None:
    """Append a table as runs do, the rows of a stage at a time."""
    results = Results(path)
    step = PER_CELL // ROUNDS // len(STAGES)
    for start in range(0, len(table), step):
        part = table.iloc[start : start + step].to_dict("records")
        results.add([{str(name): value for name, value in row.items()} for row in part])


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Return the CPU time of a call in seconds, and what it returned."""
    began = time.process_time()
    result = call()
    return time.process_time() - began, result


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--here", action="store_true", help="in this process, and the rows alone")
    parser.add_argument("--report", type=Path, help="report this folder, and nothing else")
    options = parser.parse_args(arguments)
    if options.report is not None:
        print(report(options.report))
        return
    if options.here:
        for rows in options.rows:
            print(f"| {' | '.join(measure(rows))} |", flush=True)
        return
    print(
        "| rows | append, s | read, s | Parquet, s | summary, s | report, s | its peak, MB |"
        " page, MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for rows in options.rows:
        command = [sys.executable, "-m", "experiments.benchmarks.tables", "--here", "--rows"]
        subprocess.run([*command, str(rows)], check=True)


if __name__ == "__main__":
    main()
