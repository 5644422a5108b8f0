"""Options of commands whose findings pipelines read: SARIF, JUnit, SACRO-ML's report."""

from pathlib import Path
from typing import Annotated

import typer

Sarif = Annotated[
    Path | None,
    typer.Option(
        "--sarif", help="Also write SARIF 2.1.0 here, for code scanning.", show_default=False
    ),
]
Junit = Annotated[
    Path | None,
    typer.Option("--junit", help="Also write JUnit's XML here.", show_default=False),
]
Sacro = Annotated[
    Path | None,
    typer.Option(
        "--sacro",
        help="Also add an entry to this report.json of SACRO-ML's; begun where it is not there.",
        show_default=False,
    ),
]
