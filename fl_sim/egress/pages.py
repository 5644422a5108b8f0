"""The pages beside a released model: for a committee, for whoever uses it, and for the owner.

What leaves holds bars and words, and never a picture of a patient's image: those are on the owner's
page, which stays.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fl_sim.egress.clauses import CHECKLIST
from fl_sim.egress.decision import Criterion
from fl_sim.egress.policy import worded
from fl_sim.egress.record import Record

if TYPE_CHECKING:
    from jinja2 import Environment

    from fl_sim.egress.rehearsing import Played

SHOWN = 8
"""Pictures a rehearsed attack on the owner's page."""


@dataclass(frozen=True)
class Bar:
    """A bar of a chart.

    Args:
        name: of it.
        percent: of the chart's width, 0 to 100.
        said: the figure in words.
        kind: ``"before"``, ``"after"`` or ``"floor"``: its colour and pattern.
    """

    name: str
    percent: float
    said: str
    kind: str


def report_page(record: Record) -> str:
    """Return the committee's page as HTML: the decision first."""
    return (
        _environment(True)
        .get_template("report.html.j2")
        .render(
            record=record,
            style=_style(),
            found=[(one, _found(one)) for one in record.rehearsed],
            worth=_worth(record),
            said=_said,
            checklist=CHECKLIST,
        )
    )


def model_card(record: Record) -> str:
    """Return the model card as Markdown."""
    return _environment(False).get_template("model_card.md.j2").render(record=record, said=_said)


def owners_page(record: Record, played: Sequence["Played"], troubles: dict[str, str]) -> str:
    """Return the owner's page as HTML: what an attacker would see of his images.

    Args:
        record: of the decision.
        played: rehearsed attacks, with pictures.
        troubles: why checks could not run, by name.
    """
    pictures = [
        (one.summary, list(zip(_pictures(one.originals), _pictures(one.recovered), strict=True)))
        for one in played
    ]
    return (
        _environment(True)
        .get_template("owner.html.j2")
        .render(record=record, style=_style(), pictures=pictures, troubles=troubles, shown=SHOWN)
    )


def _found(one: Any) -> list[Bar]:
    shares = (
        ("in the attacked model", one.found_before, "before"),
        ("in what would have left", one.found_after, "after"),
        ("by guessing", one.found_by_guessing, "floor"),
    )
    return [
        Bar(name, 100 * share, f"{share * one.images:.0f} of {one.images}", kind)
        for name, share, kind in shares
    ]


def _worth(record: Record) -> list[Bar]:
    worth = record.utility
    if worth is None:
        return []
    values = (
        ("as it came", worth.before, "before"),
        ("as it leaves", worth.after, "after"),
        ("trained by the owner alone", worth.own, "floor"),
        ("knowing nothing", worth.chance, "floor"),
    )
    return [Bar(n, 100 * v, f"{v:.3f}", kind) for n, v, kind in values if v is not None]


def _said(criterion: Criterion) -> str:
    """Return a criterion's figure in words, with its interval."""
    if criterion.value is None:
        return "not measured"
    said = worded(criterion.value, criterion.unit)
    if criterion.low is None or criterion.high is None:
        return said
    ends = (worded(end, criterion.unit) for end in (criterion.low, criterion.high))
    return f"{said} ({' to '.join(ends)})"


def _pictures(images: torch.Tensor) -> list[str]:
    """Return images as PNG in data URIs."""
    from PIL import Image

    found = []
    for image in images[:SHOWN].detach().cpu().clamp(0, 1).nan_to_num():
        pixels = np.rint(image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
        found.append(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
    return found


@cache
def _style() -> str:
    return (Path(__file__).parent / "page.css").read_text()


@cache
def _environment(escaping: bool) -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=escaping,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
