"""The leaderboard: what is left to steal, a line a data set, network, attack and defence.

It is made of what is kept: of every study's ``rows.csv`` (a row a seed, with the intervals of
:mod:`fl_sim.metrics.intervals`), of rows that were handed in (:data:`SUBMITTED`, made by ``fl-sim
leaderboard add``), and, where no rows are kept, of published means, which say so. Leakage is that
of the extraction that an attacker would choose, and of the strongest; beside it stand its floors,
and beside the AUC its controls.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.words import plain
from experiments.studies.base import RESULTS, STUDIES
from experiments.studies.origin import read_origin
from experiments.studies.published import inside, widened
from experiments.studies.rows import ROWS, identity_of, long_of, read_rows
from experiments.sweep.grid import UNLABELLED
from experiments.tables.summary import CELL, LABEL, VARIANT, wide, with_interval
from fl_sim.cells import read_texts
from fl_sim.errors import FlSimError, did_you_mean
from fl_sim.metrics.intervals import metric_interval
from fl_sim.metrics.vocabulary import metric_of
from fl_sim.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

    from experiments.run.scenario import Scenario

SUBMITTED = RESULTS / "submitted"
"""Files of rows that were handed in, one a defence."""

KEYS = ("data", "network", "place", "attack", "defence", "setting")
"""What tells lines apart. Place: the data lake, or a federation's aggregation. Setting: what else
a study varies."""

WITH_INTERVAL = {
    "ssim_chosen": "ssim chosen",
    "ssim_best": "ssim strongest",
    "found_chosen": "identification_correlation chosen",
    "found_best": "identification_correlation strongest",
    "images_intact": "images_intact",
    "auc": "auc",
    "seconds": "seconds",
    "cap_bytes": "cap_bytes",
}
"""Columns with ``_low`` and ``_high`` of their 95 % interval, and the metric that each is."""
ALONE = {
    "ssim_floor": "ssim_floor_mean",
    "found_floor": "identification_floor",
    "found_floor_high": "identification_floor_high",
    "auc_held_out_alone": "auc_floor_scratch",
}
"""Floors, and the metric that each is the mean of."""
CONTROLS = {"auc_from_scratch": "from scratch", "auc_trusted": "trusted training"}
"""AUC of a control on the same data, network, attack and setting, by how its label begins; means
have those of their own table."""
SAME_VIEWS = "same views"
"""Of several such controls the one with the views and the budget of distillation is taken."""
ROWS_KEPT, MEANS_KEPT, HANDED_IN = "rows", "means only", "handed in"

COLUMNS = (
    *KEYS,
    "seeds",
    *(name + end for name in WITH_INTERVAL for end in ("", "_low", "_high")),
    *ALONE,
    *CONTROLS,
    "kept",
    "study",
)

_REBUILT = "DermaMNIST rebuilt"
_LAKE = "data lake"
_FILES = {"266d5d8b": _REBUILT}
"""Data files that are not the official ones of their name, by the first digits of their SHA-256."""


@dataclass(frozen=True)
class Means:
    """A published table of a study that keeps no rows by seed.

    Args:
        file: in the folder of the studies.
        keys: columns of the leaderboard by those of the file.
        same: what holds for all lines.
        prefix: before the names of its metrics.
        names: texts of keys that the leaderboard calls otherwise.
        split: a column of two keys, ``"a, b"``.
    """

    file: str
    keys: Mapping[str, str]
    same: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    split: str = ""


_NAMES = {
    "DermaMNIST (dermamnist.npz, not the official file)": _REBUILT,
    "ChestMNIST (chestmnist_nih1000.npz, 1,000-image subset)": "ChestMNIST subset",
    "DermaMNIST": _REBUILT,
    "resnet18": "ResNet18",
    "cnn": "CNN",
}
MEANS = (
    Means(
        "defenses/defenses_means.csv",
        {"defense": "defence"},
        {"data": _REBUILT, "network": "ResNet18", "attack": "Transpose", "place": _LAKE},
        prefix="Transpose: ",
    ),
    Means(
        "paper_tables/paper_tables.csv",
        {"dataset": "data", "model": "network", "attack": "attack", "defense": "defence"},
        {"place": _LAKE},
        names=_NAMES,
    ),
    Means(
        "confirm_defenses/confirm_defenses.csv",
        {"data": "data", "attack": "attack", "defense": "defence"},
        {"network": "CNN", "place": _LAKE},
        names=_NAMES,
        split="variant",
    ),
    Means(
        "federated_vs_centralized/federated_earlier.csv",
        {"where": "place", "partition": "setting", "defense": "defence"},
        {"data": _REBUILT, "network": "CNN", "attack": "Transpose, 32"},
    ),
)
"""Tables of before rows were kept; a study whose rows are kept needs no entry."""


def board(results: Path = RESULTS, submitted: Path = SUBMITTED) -> "pd.DataFrame":
    """Return the leaderboard, with the columns :data:`COLUMNS`.

    A line of published means stands there where no rows of its data, network, place, attack and
    defence are kept.

    Args:
        results: folder of the studies' folders.
        submitted: folder of rows that were handed in.

    Raises:
        FlSimError: if a file of rows is damaged.
    """
    lines = [*_kept(results), *_handed_in(submitted)]
    there = {tuple(line.get(key, "") for key in KEYS[:-1]) for line in lines}
    for means in MEANS if results == RESULTS else ():
        own = list(of_means(results / means.file, means))
        lines += [one for one in own if tuple(one.get(key, "") for key in KEYS[:-1]) not in there]
    frame = _with_controls(_framed(lines))
    order = frame["found_chosen"].fillna(frame["found_best"])
    frame = frame.assign(order=order, means=frame["kept"] == MEANS_KEPT)
    frame = frame.sort_values(["means", *KEYS[:4], "order"], kind="stable")
    return frame[[*COLUMNS]].reset_index(drop=True)


def lines_of(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return the lines of a file of rows that was handed in, with the columns :data:`COLUMNS`."""
    return _framed(list(of_rows(rows, {})))


def _framed(lines: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame(lines).reindex(columns=COLUMNS)
    texts = [*KEYS, "kept", "study"]
    numbers = [name for name in COLUMNS if name not in texts]
    return frame.astype(dict.fromkeys(numbers, "float64")).assign(
        **{name: frame[name].fillna("") for name in texts}
    )


def _kept(results: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of every study that keeps rows."""
    for folder in sorted(path.parent for path in results.glob(f"*/{ROWS}")):
        known: Mapping[str, Scenario] = {}
        if folder.name in STUDIES.names():
            origin = read_origin(folder / f"{folder.name}.json")
            study = STUDIES.get(folder.name)
            known = study.known(origin.get("full", False), origin.get("set", [])).scenarios
        for line in of_rows(read_rows(folder / ROWS), known):
            yield {**line, "kept": ROWS_KEPT, "study": folder.name}


def _handed_in(submitted: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(submitted.glob("*.csv")):
        for line in of_rows(read_rows(path), {}):
            yield {**line, "kept": HANDED_IN, "study": path.stem}


def of_rows(rows: "pd.DataFrame", scenarios: "Mapping[str, Scenario]") -> Iterator[dict[str, Any]]:
    """Yield the lines of a file of rows: what was measured at release, over seeds.

    Cells without an attack have none.

    Args:
        rows: as :func:`experiments.studies.rows.read_rows` returns them.
        scenarios: a cell each by identity, which say what the rows' labels do not.
    """
    if rows.empty:
        return
    labels = [str(name) for name in rows if str(name).startswith(LABEL)]
    heads = rows.drop_duplicates(CELL)
    keys = {
        head[CELL]: _keys(head, labels, scenarios.get(identity_of(head[CELL])))
        for head in heads.to_dict("records")
    }
    frame = wide(long_of(rows.drop(columns=labels)))
    frame = frame[frame["stage"] == "release"]
    named = frame.assign(**{key: [keys[cell][key] for cell in frame[CELL]] for key in KEYS})
    named = named[~named["attack"].isin(("", "none"))]
    for values, group in named.groupby([*KEYS], sort=False):
        yield {**dict(zip(KEYS, values, strict=True)), **_measured(group)}


def _keys(
    head: Mapping[Any, Any], labels: Sequence[str], scenario: "Scenario | None"
) -> dict[str, str]:
    """Return what a cell's line is called: the labels of its study, else what its scenario says."""
    given = {name.removeprefix(LABEL): str(head[name]) for name in labels}
    called = {axis: label for axis, label in given.items() if label not in ("", UNLABELLED)}
    own = _of_scenario(scenario) if scenario is not None else {}
    data = _FILES.get(head["data"], "") or called.get("dataset") or own.get("dataset", "")
    place = called.get("place") or own.get("place", _LAKE)
    names = ("model", "attack", "defense")
    network, attack, defence = (called.get(name) or own.get(name, "") for name in names)
    attack = _named(attack, own.get("attack", ""))
    used = {*names, "dataset", "place"}
    if defence.endswith(f", {called.get(VARIANT)}"):  # it says so itself
        used.add(VARIANT)
    setting = ", ".join(label for axis, label in called.items() if axis not in used)
    return dict(zip(KEYS, (data, network, place, attack, defence, setting), strict=True))


def _named(label: str, name: str) -> str:
    """Return an attack's label, with its name in front where only its study's page tells it."""
    words = plain(name)
    return label if words.lower() in label.lower() or label in ("", "none") else f"{words}, {label}"


def _of_scenario(scenario: "Scenario") -> dict[str, str]:
    parts = {"dataset": scenario.dataset, "model": scenario.model}
    chosen = {"attack": scenario.attack, "defense": scenario.defense}
    names = {key: _NAMES.get(part.name, part.name) for key, part in parts.items()}
    names |= {key: part.name if part is not None else "none" for key, part in chosen.items()}
    federation = scenario.federation
    return {**names, "place": _LAKE if federation is None else federation.strategy.name}


def _measured(group: "pd.DataFrame", prefix: str = "") -> dict[str, Any]:
    """Return what a line says of a group of rows, one a seed: means and their intervals."""
    line: dict[str, Any] = {"seeds": int(group["seed"].nunique())}
    for name, metric in WITH_INTERVAL.items():
        if metric in group and group[metric].notna().any():
            found = metric_interval(metric, group[metric], lambda other: group.get(other, []))
            line |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    floors = {name: group[metric].mean() for name, metric in ALONE.items() if metric in group}
    return line | floors


def of_means(path: Path, means: Means) -> Iterator[dict[str, Any]]:
    """Yield the lines of a published table: by seed, or means that have their intervals.

    Raises:
        FlSimError: if the file is missing, or a column of it.
    """
    table = _numbers(path)
    frame = widened(table)
    if frame is not table:
        frame = frame.assign(n=table["n"].max())
    if means.split:
        parts = frame[means.split].str.split(", ", n=1, expand=True)
        frame = frame.assign(data=parts[0], attack=parts[1])
    for key in means.keys:
        if key not in frame:
            known = [str(name) for name in frame]
            raise FlSimError(f"{path} has no column '{key}'.{did_you_mean(key, known)}")
    if "stage" in frame:
        frame = frame[frame["stage"] == "release"]
    frame = frame.rename(columns={"auc_scratch": "auc_floor_scratch"})
    study = means.file.partition("/")[0]
    for values, group in frame.groupby([*means.keys], sort=False):
        texts = (means.names.get(value, value) for value in map(str, values))
        line = {**means.same, **dict(zip(means.keys.values(), texts, strict=True))}
        said = _measured(group) if "seed" in frame else _said(group.iloc[0], means.prefix)
        yield {**line, **said, "kept": MEANS_KEPT, "study": study}


def _numbers(path: Path) -> "pd.DataFrame":
    """Read a table whose texts stay texts."""
    import pandas as pd

    if not path.is_file():
        raise FlSimError(f"The leaderboard shows {path}, which is not there.")
    texts = read_texts(path)
    numbers = texts.apply(lambda column: pd.to_numeric(column.replace("", "nan"), errors="coerce"))
    names = [str(name) for name in texts]
    number = {name: numbers[name].notna() | (texts[name] == "") for name in names}
    return texts.assign(**{name: numbers[name] for name in names if number[name].all()})


def _said(row: "pd.Series[Any]", prefix: str) -> dict[str, Any]:
    """Return what a line says of a row of means with their intervals."""
    line: dict[str, Any] = {"seeds": row.get("n", row.get(f"{prefix}n"))}
    for name, metric in WITH_INTERVAL.items():
        mean, low, high = (
            float(row.get(f"{prefix}{metric}{end}", math.nan)) for end in ("", " low", " high")
        )
        found = inside(Interval(mean, low, high, 1), metric_of(metric).range)
        line |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    return line | {name: row.get(metric) for name, metric in ALONE.items()}


def _with_controls(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return lines with the AUC of their controls beside their own."""
    same = [*(key for key in KEYS if key != "defence"), "means"]
    frame = frame.assign(means=frame["kept"] == MEANS_KEPT)
    for name, label in CONTROLS.items():
        own = frame[frame["defence"].str.startswith(label) & frame["auc"].notna()]
        first = own["defence"].str.contains(SAME_VIEWS).sort_values(ascending=False, kind="stable")
        control = own.loc[first.index].drop_duplicates(same).set_index(same)["auc"].to_dict()
        frame[name] = [control.get(key) for key in frame[same].itertuples(index=False, name=None)]
    return frame


def chosen(frame: "pd.DataFrame", wanted: Mapping[str, str]) -> "pd.DataFrame":
    """Return the lines whose keys have given words in them, capitals or not.

    Args:
        frame: the leaderboard.
        wanted: words by key.

    Raises:
        FlSimError: if no line is left.
    """
    left = frame
    for key, words in wanted.items():
        kept = left[left[key].str.contains(words, case=False, regex=False)]
        if kept.empty:
            known = [str(text) for text in left[key].unique()]
            raise FlSimError(f"The leaderboard has no {key} '{words}'.{did_you_mean(words, known)}")
        left = kept
    return left.reset_index(drop=True)


HEADINGS = {
    "defence": "Defence",
    "attack": "Attack",
    "data": "Data",
    "network": "Network",
    "place": "Place",
    "setting": "Setting",
    "seeds": "Seeds",
    "found_chosen": "Found, chosen",
    "found_best": "Found, best",
    "found_floor": "Found, floor",
    "ssim_chosen": "SSIM, chosen",
    "ssim_best": "SSIM, best",
    "ssim_floor": "SSIM, floor",
    "images_intact": "Intact",
    "auc": "AUC",
    "auc_from_scratch": "AUC, from scratch",
    "auc_trusted": "AUC, trusted",
    "auc_held_out_alone": "AUC, held-out alone",
    "seconds": "Seconds",
    "cap_bytes": "Cap, bytes",
    "kept": "Kept",
}
"""Columns that people are shown, and what they are called."""
BRIEFLY = tuple(
    name
    for name in HEADINGS
    if name not in ("ssim_chosen", "ssim_floor", "images_intact", "auc_held_out_alone")
)
"""Those that a terminal has room for."""
UNBOUNDED = "unbounded"


def as_text(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return the leaderboard for people: :data:`HEADINGS`, a mean with its interval in a cell.

    What was not measured is empty; a cap that is infinite is :data:`UNBOUNDED`.
    """
    import pandas as pd

    lines = [
        {heading: _text(line, name) for name, heading in HEADINGS.items()}
        for line in frame.to_dict("records")
    ]
    return pd.DataFrame(lines, columns=[*HEADINGS.values()])


def _text(line: Mapping[Any, Any], name: str) -> str:
    value = line[name]
    if name in (*KEYS, "kept"):
        return str(value)
    if value != value or value is None:
        return ""
    if math.isinf(value):
        return UNBOUNDED
    metric = metric_of(WITH_INTERVAL.get(name) or ALONE.get(name) or name.partition("_")[0])
    whole = name in ("seeds", "seconds", "cap_bytes") or metric.format in ("count", "bytes")
    digits = 0 if whole else metric.brief
    low, high = (float(line.get(name + end, math.nan)) for end in ("_low", "_high"))
    interval = Interval(float(value), low, high, 1)
    return with_interval(interval, lambda one: f"{one:,.{digits}f}")
