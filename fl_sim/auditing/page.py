"""An audit as one self-contained page that a browser opens without a network."""

from pathlib import Path
from typing import TYPE_CHECKING

from fl_sim.auditing.blind import BLIND
from fl_sim.files import write_atomically

if TYPE_CHECKING:
    from fl_sim.auditing.report import AuditReport


def write_page(path: Path, report: "AuditReport") -> Path:
    """Write an audit report as HTML. Returns ``path``."""
    return write_atomically(path, page(report).encode())


def page(report: "AuditReport") -> str:
    """Return an audit report as HTML; every text from the file is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    return template.render(report=report, limits=BLIND)
