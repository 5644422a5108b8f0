"""What ``import fl_sim`` offers, and what its calls give back; mkdocstrings fills the page."""

import fl_sim

RETURNED = (
    "fl_sim.verbs.attacking.Attacked",
    "fl_sim.verbs.attacking.AttackReport",
    "fl_sim.verbs.cleaning.Cleaned",
    "fl_sim.auditing.report.AuditReport",
    "fl_sim.verbs.gating.Gated",
    "fl_sim.auditing.gate_report.GateReport",
    "fl_sim.egress.releasing.Released",
    "fl_sim.egress.folder.Verified",
    "experiments.run.result.Result",
    "experiments.sweep.start.SweepResult",
    "experiments.sweep.compare.Runs",
)
"""Classes of what the calls return, in the order of the page."""


def public_names() -> dict[str, str]:
    """Return the dotted name of everything that the module exports, by the name it exports."""
    homes = fl_sim._HOMES
    return {name: f"{homes[name]}.{name}" for name in fl_sim.__all__}


def python_page() -> str:
    """Return the page of the Python interface, before mkdocstrings fills it."""
    parts = [
        "# Python",
        "Names that `import fl_sim` offers; each is imported when it is asked for.",
    ]
    for name, home in public_names().items():
        parts.append(_directive(home, f"fl_sim.{name}"))
    parts.append("## What the calls return { #returned }")
    parts += [_directive(home, home.rpartition(".")[2], 3) for home in RETURNED]
    return "\n\n".join(parts) + "\n"


def _directive(home: str, shown: str, level: int = 2) -> str:
    options = {"heading": shown, "toc_label": shown, "heading_level": level}
    lines = "\n".join(f"      {key}: {value}" for key, value in options.items())
    return f"::: {home}\n    options:\n{lines}"
