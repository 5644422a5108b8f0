"""What the README's tables show: files, columns, headings and formats."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Format = Literal["number", "precise", "count", "percent"]


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Args:
        heading: in the README.
        column: of the CSV; or a metric, of a sweep's summary.
        format: ``"number"`` (two digits), ``"precise"`` (three), ``"count"`` or ``"percent"``.
        stage: of the rows that it is taken from; all where not given.
        bounds: smallest and largest value that there can be. An interval that goes beyond is shown
            by its ends, cut off there, with the word "cut": it was made for values without bounds.
    """

    heading: str
    column: str
    format: Format = "number"
    stage: str | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)


@dataclass(frozen=True)
class ReadmeTable:
    """A table of the README: a row a group of the keys, means over what else differs (seeds).

    Behind a mean of several seeds stands half of its interval where the CSV has one, else their
    range.

    Args:
        files: CSVs in the folder of results, one below the other.
        keys: headings by column of the CSV.
        columns: the numbers.
        where: values that rows must have, by column.
        names: texts of keys that the README calls otherwise, up to a comma.
        without: values that rows must not have, by column.
    """

    files: tuple[str, ...]
    keys: Mapping[str, str]
    columns: tuple[Column, ...]
    where: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    without: Mapping[str, Sequence[str]] = field(default_factory=dict)


_FOUND = "identification_correlation strongest"
_SHARE = (0.0, 1.0)
_OF_64 = (0.0, 64.0)
_SECONDS = (0.0, math.inf)
_RELEASED = (
    Column("SSIM, raw", "ssim raw"),
    Column("SSIM, best", "ssim strongest"),
    Column("found by correlation", _FOUND, bounds=_SHARE),
    Column("AUC", "auc", "precise"),
)
_SCRATCH = Column("AUC from scratch", "auc_scratch", "precise")
_FACTORS = {"factor": "what is changed", "value": "to"}

_FLAGGED = (
    Column("networks", "networks", "count"),
    Column("flagged", "flagged", "count"),
    Column("share", "rate"),
    Column("from", "low"),
    Column("to", "high"),
    Column("not read", "not read", "count"),
    Column("not all checks ran", "not all checks ran", "count"),
)
_DELIVERED = (
    Column("intact at release", "images_intact", "count"),
    Column("bytes a round", "bytes_a_round", "count"),
    Column("bytes in the run", "bytes_of_run", "count"),
    Column("bits wrong", "bit_error_rate", "percent"),
    Column("AUC", "auc", "precise"),
)
_AGGREGATIONS = {
    "": "one",
    "alone": "one",
    "last round": "one, in the last round",
    "alternate rounds": "one, in every second round of three",
    "round 1, then 4 honest": "one, in the first round of five only",
    "honest norm": "one, at an honest norm",
    "damped": "one, damped",
    "4 none": "four, each for himself",
    "4 repeat": "four, repeating",
    "4 split": "four, sharing out the places",
    "8 repeat": "eight, repeating",
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "fedadam": "FedAdam",
    "fedmedian": "median",
    "fedtrimmedavg": "trimmed mean",
    "krum": "Krum",
    "multikrum": "Multi-Krum",
    "normclipping": "norm clipping",
}

TABLES: dict[str, ReadmeTable] = {
    "adaptive": ReadmeTable(
        ("adaptive_data_lake.csv", "adaptive_federated.csv"),
        {"attacker": "attacker", "mode": "where"},
        (
            Column("intact at upload", "images_intact", "count", "upload"),
            Column("intact at release", "images_intact", "count", "release"),
            Column("bits wrong at release", "bit_error_rate", "percent", "release"),
            Column("AUC at upload", "auc", "precise", "upload"),
            Column("AUC at release", "auc", "precise", "release"),
        ),
        names={"late signs, LDPC": "signs of late weights, LDPC"},
    ),
    "aggregations": ReadmeTable(
        ("aggregations.csv",),
        {"mode": "aggregation", "variant": "attackers"},
        _DELIVERED,
        {"stage": "release", "attacker": "fine lattices in dead weights"},
        _AGGREGATIONS,
    ),
    "other_attackers": ReadmeTable(
        ("aggregations.csv",),
        {"attacker": "payload", "mode": "aggregation", "variant": "attackers"},
        (*_DELIVERED[:3], Column("found by correlation", _FOUND), *_DELIVERED[3:]),
        {"stage": "release"},
        {"late signs, LDPC": "signs of late weights, LDPC", **_AGGREGATIONS},
        {"attacker": ("fine lattices in dead weights",)},
    ),
    "confirm_defenses": ReadmeTable(
        ("confirm_defenses.csv",),
        {"variant": "data, attack", "defense": "defence"},
        (*_RELEASED, Column("AUC from scratch", "auc_floor_scratch", "precise")),
        {"stage": "release"},
    ),
    "dec_federated": ReadmeTable(
        ("dec_federated.csv",),
        {"series": "payload"},
        (
            Column("intact at upload", "images_intact", "count", "upload"),
            Column("intact at release", "images_intact", "count", "release"),
            Column("damaged", "images_damaged", "count", "release"),
            Column("lost", "images_lost", "count", "release"),
            Column("bits wrong", "bit_error_rate", "percent", "release"),
            Column("SSIM, raw", "ssim", stage="release"),
            Column("found by correlation", "identification_correlation", stage="release"),
        ),
        names={
            "Z in low bits": "codes in the low bits",
            "Z as entries": "codes as further entries",
            "y in place of weights": "latents in place of late weights",
            "y in frozen weights": "latents in frozen early weights",
        },
    ),
    "dp_training": ReadmeTable(
        ("dp_training.csv",),
        {"training": "training", "attack": "attack"},
        (
            Column("epsilon", "dp_epsilon", stage="upload"),
            Column("SSIM, best", "ssim strongest", stage="release"),
            Column("found by correlation", _FOUND, stage="release"),
            Column("intact", "images_intact", "count", "release"),
            Column("AUC", "auc", "precise", "release"),
        ),
    ),
    "federation_defenses": ReadmeTable(
        ("federation_defenses.csv",),
        {"variant": "defence"},
        (
            Column("SSIM, best", "ssim strongest"),
            Column("found", _FOUND),
            Column("AUC", "auc", "precise"),
        ),
        {"stage": "release"},
    ),
    "defenses": ReadmeTable(
        ("defenses.csv",),
        {"defense": "defence"},
        (
            Column("SSIM, raw", "Transpose: ssim raw"),
            Column("SSIM, best", "Transpose: ssim strongest"),
            Column("found", f"Transpose: {_FOUND}", bounds=_SHARE),
            Column("AUC", "Transpose: auc", "precise"),
            Column(
                "lattices", "DEC in three places: images_intact[lattices]", "count", bounds=_OF_64
            ),
            Column("dead", "DEC in three places: images_intact[dead]", "count", bounds=_OF_64),
            Column("low bits", "DEC in three places: images_intact[low]", "count", bounds=_OF_64),
            Column("AUC of that model", "DEC in three places: auc", "precise"),
            Column("seconds", "Transpose: seconds", "count", bounds=_SECONDS),
        ),
    ),
    "detectors": ReadmeTable(
        ("detector_rates.csv",),
        {"population": "thresholds", "networks are": "networks are", "detector": "detector"},
        _FLAGGED,
        {"kind": "all"},
        {"tuned": "set on these networks", "untuned": "not set on these"},
    ),
    "detector_rates": ReadmeTable(
        ("detector_rates.csv",),
        {"networks are": "networks are", "kind": "kind", "detector": "detector"},
        _FLAGGED,
        {"population": "untuned"},
        without={"kind": ("all",)},
    ),
    "detector_errors": ReadmeTable(
        ("detector_errors.csv",),
        {"kind": "kind", "attack": "attack", "detector": "detector", "said": "what was said"},
        (Column("networks", "networks", "count"), Column("wrong", "wrong", "count")),
    ),
    "leaks_after_fine_tuning": ReadmeTable(
        ("leaks_after_fine_tuning.csv",), {"defence": "defence"}, _RELEASED
    ),
    "paper_tables": ReadmeTable(
        ("paper_tables.csv",),
        {"dataset": "dataset", "attack": "attack", "defense": "defence"},
        (
            *_RELEASED[:2],
            Column("SSIM published", "ssim published"),
            Column("intact", "images_intact", "count", bounds=_OF_64),
            _RELEASED[3],
            Column("AUC published", "auc published", "precise"),
            _SCRATCH,
        ),
    ),
    "federated_vs_centralized": ReadmeTable(
        ("federated_vs_centralized.csv",),
        {"where": "where", "partition": "images", "defense": "defence"},
        (*_RELEASED, _SCRATCH),
        {"stage": "release"},
    ),
    "lwlrd_ablation": ReadmeTable(("lwlrd_ablation.csv",), _FACTORS, (*_RELEASED, _SCRATCH)),
    "held_out": ReadmeTable(
        ("held_out.csv",),
        {"defense": "defence", "held-out images": "held-out images"},
        (*_RELEASED, _SCRATCH),
    ),
    "capacity": ReadmeTable(
        ("capacity.csv",),
        {"model": "model", "attack": "attack", "asked": "images", "defense": "defence"},
        (
            Column("hidden", "images", "count"),
            *_RELEASED,
            Column("intact", "images_intact", "count"),
        ),
        {"stage": "release"},
    ),
    "architectures": ReadmeTable(
        ("architectures.csv",), {"model": "model", "defense": "defence"}, (*_RELEASED, _SCRATCH)
    ),
    "usability_test": ReadmeTable(
        ("usability_test.csv",),
        {"defense": "defence", "trained on": "trained on", "defended": "defended"},
        (
            Column("AUC", "auc", "precise"),
            Column("their SSIM", "ssim"),
            Column("AUC of the model", "auc of the model", "precise"),
        ),
        without={"defended": ("before",)},  # what no defence leaves
    ),
}
