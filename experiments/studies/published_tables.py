"""What pages show of the tables of studies: files, columns, headings and formats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fl_sim.metrics.vocabulary import Metric, known

Format = Literal["number", "count", "percent"]


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Args:
        heading: in the README.
        column: of the CSV; or a metric, of a sweep's summary.
        format: ``"number"``, ``"count"`` or ``"percent"``; by default the metric's.
        stage: of the rows that it is taken from; all where not given.
        bounds: smallest and largest value that there can be; by default the metric's range.
        metric: whose digits, format and range it has; by default the one that the column's name
            says: ``ssim`` of ``"Transpose: ssim strongest"``.
    """

    heading: str
    column: str
    format: Format | None = None
    stage: str | None = None
    bounds: tuple[float, float] | None = None
    metric: str = ""

    @property
    def about(self) -> Metric:
        """What is known of its numbers."""
        return known(self.metric or self.column.rpartition(": ")[2].partition(" ")[0])


@dataclass(frozen=True)
class PublishedTable:
    """A table of a page: a row a group of the keys, means over what else differs (seeds).

    Behind a mean of several seeds stands its interval where the CSV has one (half of it where it is
    symmetric), else their range.

    Args:
        files: CSVs in the folder of results, one below the other.
        keys: headings by column of the CSV.
        columns: the numbers.
        where: values that rows must have, by column.
        names: texts of keys that the page calls otherwise, up to a comma.
        without: values that rows must not have, by column.
        only: values of which rows must have one, by column.
    """

    files: tuple[str, ...]
    keys: Mapping[str, str]
    columns: tuple[Column, ...]
    where: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    without: Mapping[str, Sequence[str]] = field(default_factory=dict)
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)


FOUND = "identification_correlation strongest"
OF_64 = (0.0, 64.0)
RELEASED = (
    Column("SSIM, raw", "ssim raw"),
    Column("SSIM, best", "ssim strongest"),
    Column("found by correlation", FOUND),
    Column("AUC", "auc"),
)
FROM_SCRATCH = Column("AUC from scratch", "auc_scratch", metric="auc_floor_scratch")
