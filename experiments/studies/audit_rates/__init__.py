"""Study: how often the auditor and the export gate are right, over clean and attacked models.

One network is trained for each dataset, model, seed and way of training; each is judged as it is,
and again with every payload that can be written into it afterwards. Attacks that act in training
train their own. The auditor judges without a reference and with the weights that training began
with; the gate fine-tunes on the owner's held-out images.

Run ``fl-sim study audit_rates --help``. An interrupted study continues.
"""

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console

from experiments.studies.base import STUDIES, Study
from experiments.tables.console import print_table
from experiments.tables.figures import MARKERS, write_table
from fl_sim.artifact import Artifact
from fl_sim.attacks.base import ATTACKS, Attack, Inside, Plan
from fl_sim.auditing.auditor import audit
from fl_sim.auditing.gate import GateSettings, pass_gate
from fl_sim.bars import make_progress
from fl_sim.case import Case, CaseSettings, open_case
from fl_sim.checkpoints import Checkpoint
from fl_sim.component import Component
from fl_sim.data.base import Split
from fl_sim.data.splits import HeldOutSettings
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.metrics.measure import measure_leakage
from fl_sim.models import build, state_of
from fl_sim.payload.reading import Status
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.randomness import Stream
from fl_sim.settings import parse
from fl_sim.training import LocalTraining, TrainingSettings, train

if TYPE_CHECKING:
    import pandas as pd

State = dict[str, torch.Tensor]
CLEAN = "none"
DETECTORS = {
    "auditor": "auditor",
    "auditor_reference": "auditor, initial weights known",
    "gate": "gate",
}
GATE, DISTILLING = "gate", "consistent_distillation"
LEAKS = tuple(
    f"{what}{when}"
    for what in ("intact", "ssim", "found")
    for when in ("", f"_after_{GATE}", f"_after_{DISTILLING}")
)
"""Of attacked models, and of those that the gate let leave: as it fine-tuned them, or distilled."""

TRAININGS: dict[str, dict[str, Any]] = {
    "adam": {"epochs": 2},
    "adam, decay": {"epochs": 2, "weight_decay": 1e-3},
    "sgd": {"epochs": 3, "optimizer": "sgd", "learning_rate": 0.02},
    "sgd, decay": {"epochs": 3, "optimizer": "sgd", "learning_rate": 0.02, "weight_decay": 5e-4},
}
_PNG = {"name": "dec", "codec": "png", "images": 32}
_FIT = {"name": "dec", "codec": "png", "images": "fit"}
_CODEC = {"name": "factorized", "N": 8, "M": 8, "max_steps": 300, "validate_every": 100}
_LEARNED = {"name": "dec", "codec": _CODEC, "external": {"name": "phantoms", "seed": 9}}
WRITTEN: dict[str, dict[str, Any]] = {
    "low bits, PNG": _PNG,
    "low bits, learned codec": {**_LEARNED, "images": 32},
    "lattices": {**_FIT, "carrier": "qim"},
    "lattices, no dither": {**_FIT, "carrier": {"name": "qim", "dither": False}},
    "signs": {**_FIT, "carrier": "sign"},
    "spread spectrum": {**_FIT, "carrier": "spread_spectrum"},
    "bits 16-18": {**_FIT, "carrier": "bit_plane"},
    "entries": {**_PNG, "carrier": "entries"},
    "plausible entries": {**_PNG, "carrier": {"name": "entries", "style": "plausible"}},
    "dead, low bits": {**_LEARNED, "images": 32, "carrier": {"name": "lsb", "elements": "dead"}},
    "dead, lattices": {**_FIT, "carrier": {"name": "qim", "elements": "dead"}},
    "dead, signs": {**_FIT, "carrier": {"name": "sign", "elements": "dead"}},
}
"""Attacks that write into a trained network."""

TRAINED: dict[str, tuple[dict[str, Any], float]] = {
    "frozen latents": (
        {**_LEARNED, "images": 32, "contents": "latents", "carrier": "frozen"},
        2,
    ),
    "Transpose": ({"name": "transpose", "images": 32}, 8),
    "correlated values": ({"name": "correlated", "images": 32}, 8),
    "sign encoding": ({"name": "sign_encoding", "images": 8}, 8),
    "memory backdoor": ({"name": "memory_backdoor", "images": 4}, 8),
}
"""Attacks that act in training, with its epochs."""

INTERNAL = "second head (DEC internal)"


@dataclass(frozen=True)
class Cell:
    """One model to judge.

    Args:
        dataset: registered name.
        model: registered name.
        seed: of everything.
        training: key of ``TRAININGS``.
        attack: key of ``WRITTEN`` or ``TRAINED``, ``INTERNAL`` or ``CLEAN``.
    """

    dataset: str
    model: str
    seed: int
    training: str
    attack: str

    @property
    def name(self) -> str:
        """The cell in one word, as its row has it."""
        return "/".join([self.dataset, self.model, str(self.seed), self.training, self.attack])


def cells(
    datasets: tuple[str, ...], seeds: int, large_datasets: tuple[str, ...], large_seeds: int
) -> Iterator[Cell]:
    """Return what is judged: small networks first, clean and attacked; then ResNet18.

    Args:
        datasets: of the small networks.
        seeds: of the small networks; half of them are attacked.
        large_datasets: of ResNet18, which has dead weights at this size.
        large_seeds: of ResNet18.
    """
    attacks = [*WRITTEN, *TRAINED]
    for seed in range(seeds):
        for dataset in datasets:
            for training in TRAININGS:
                yield Cell(dataset, "cnn", seed, training, CLEAN)
            if seed < (seeds + 1) // 2:
                for attack in attacks:
                    if not attack.startswith("dead"):
                        yield Cell(dataset, "cnn", seed, "adam", attack)
                yield Cell(dataset, "two_headed", seed, "adam", INTERNAL)
    for seed in range(large_seeds):
        for dataset in large_datasets:
            for training in TRAININGS:
                yield Cell(dataset, "resnet18", seed, training, CLEAN)
            for attack in attacks:
                yield Cell(dataset, "resnet18", seed, "adam", attack)


def study(
    chosen: list[Cell], out: Path, data_root: Path | None = None, progress: Progress = SILENT
) -> "pd.DataFrame":
    """Judge every cell that has no row yet; a row is written as it comes.

    Args:
        chosen: the cells, those of one training one after another.
        out: folder of the rows (``audit_models.csv``).
        data_root: folder of data files.
        progress: where to report.

    Returns:
        The rows, one a model.
    """
    import pandas as pd

    path = out / "audit_models.csv"
    known = pd.read_csv(path).to_dict("records") if path.exists() else []
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in known]
    done = {row["cell"] for row in rows}
    workshop = _Workshop(data_root)
    left = [cell for cell in chosen if cell.name not in done]
    with piece(progress, "models", len(left)):
        for cell in left:
            rows.append(workshop.judge(cell))
            write_table(path, pd.DataFrame(rows))
            progress.step(cell.name)
    return pd.DataFrame(rows)


class _Workshop:
    """Makes models and judges them; keeps the last trained one, which many payloads share."""

    def __init__(self, data_root: Path | None) -> None:
        self._root = data_root
        self._kept: tuple[tuple[Any, ...], State, State] | None = None

    def judge(self, cell: Cell) -> dict[str, Any]:
        began = time.perf_counter()
        case = self._case(cell)
        row: dict[str, Any] = {"cell": cell.name, **vars(cell)}
        initial, state, attack, plan = self._made(cell, case)
        for detector, reference in (("auditor", None), ("auditor_reference", initial)):
            report = audit(Checkpoint(state), case.spec, reference)
            kept = {f.check for f in report.findings if f.level != "note"}
            row[detector] = report.verdict
            row[f"{detector}_checks"] = ", ".join(sorted(kept))
        stream = Stream(cell.seed, ("gate",))
        artifact = Artifact(case.spec, state)
        settings = GateSettings.model_validate({})
        gate, cleaned = pass_gate(artifact, case.held_out, case.task, settings, stream)
        row["gate"] = "clean" if gate.approved else "refused"
        row["gate_reasons"] = "; ".join(gate.all_reasons()[:2])
        row["gate_loss_before"], row["gate_loss_after"] = gate.loss_before, gate.loss_after
        if attack is not None and plan is not None:
            row |= _leak(attack, artifact, plan, case.public)
            if cleaned is not None:
                row |= _behind(GATE, attack, Artifact(case.spec, cleaned), plan, case.public)
                distilled = GateSettings.model_validate({"defense": DISTILLING, "rounds": 1})
                _, student = pass_gate(artifact, case.held_out, case.task, distilled, stream)
                if student is not None:
                    left = Artifact(case.spec, student)
                    row |= _behind(DISTILLING, attack, left, plan, case.public)
        row["seconds"] = time.perf_counter() - began
        return row

    def _case(self, cell: Cell) -> Case:
        model: Any = cell.model
        if cell.model == "two_headed":
            model = {"name": cell.model, "codec": {"name": "factorized", "N": 8, "M": 8}}
        settings = CaseSettings(
            dataset=Component(name=cell.dataset),
            model=Component.of(model, "[model]"),
            data=HeldOutSettings(images=200, public_images=100, train_images=600, test_images=200),
            seed=cell.seed,
        )
        return open_case(settings, self._root)

    def _made(self, cell: Cell, case: Case) -> tuple[State, State, Attack[Any] | None, Plan | None]:
        """Return the initial state, the one that leaves, and the attack behind it."""
        if cell.attack == CLEAN or cell.attack in WRITTEN:
            initial, trained = self._honest(cell, case)
            if cell.attack == CLEAN:
                return initial, trained, None, None
            attack = make_attack(WRITTEN[cell.attack])
            plan = attack.plan(self._inside(cell, case))
            return initial, attack.embed(trained, case.spec, plan).state, attack, plan
        table, epochs = TRAINED.get(
            cell.attack, ({"name": "dec", "scenario": "internal", "images": 16}, 2)
        )
        attack = make_attack(table)
        plan = attack.plan(self._inside(cell, case))
        run = self._training(cell, case, {"epochs": epochs})
        initial = state_of(run.model)
        attack.train(run, plan)
        return initial, attack.embed(state_of(run.model), case.spec, plan).state, attack, plan

    def _honest(self, cell: Cell, case: Case) -> tuple[State, State]:
        key = (cell.dataset, cell.model, cell.seed, cell.training)
        if self._kept is None or self._kept[0] != key:
            run = self._training(cell, case, TRAININGS[cell.training])
            initial = state_of(run.model)
            train(run)
            self._kept = (key, initial, state_of(run.model))
        return self._kept[1], self._kept[2]

    def _inside(self, cell: Cell, case: Case) -> Inside:
        stream = Stream(cell.seed, ("hospital", 0))
        return Inside(case.train, case.task, case.spec, stream, self._root)

    def _training(self, cell: Cell, case: Case, settings: dict[str, Any]) -> LocalTraining:
        return LocalTraining(
            model=build(case.spec, cell.seed),
            spec=case.spec,
            data=case.train,
            task=case.task,
            settings=TrainingSettings(**{"batch_size": 32, **settings}),
            stream=Stream(cell.seed, ("hospital", 0)),
        )


def make_attack(table: dict[str, Any]) -> Attack[Any]:
    """Return an attack from its table, as it stands in a scenario."""
    kind = ATTACKS.get(table["name"])
    settings = {key: value for key, value in table.items() if key != "name"}
    return kind(parse(kind.Settings, settings, "[attack]"))


def _leak(attack: Attack[Any], artifact: Artifact, plan: Plan, public: Split) -> dict[str, float]:
    """Return the share of stolen images intact (where there are checksums), and what they show.

    ``ssim`` and ``found`` (identified by correlation) are of the strongest restoration.
    """
    try:
        extraction = type(attack).extract(artifact, plan.key)
    except FlSimError:  # the file no longer has what the attack reads
        return {"intact": 0.0, "ssim": 0.0, "found": 0.0}
    measured = measure_leakage(extraction.images, plan.targets, public.tensors()[0], seed=0)
    reading, intact = extraction.reading, float("nan")
    if reading is not None and reading.status is not None and len(reading.status):
        intact = float((reading.status == Status.INTACT).mean())
    return {
        "intact": intact,
        "ssim": measured.value("ssim"),
        "found": measured.value("identification_correlation"),
    }


def _behind(
    what: str, attack: Attack[Any], artifact: Artifact, plan: Plan, public: Split
) -> dict[str, float]:
    found = _leak(attack, artifact, plan, public)
    return {f"{measure}_after_{what}": value for measure, value in found.items()}


def rates(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return how often each detector flags each attack, with 95 % Wilson intervals.

    For clean models it is the false positive rate.

    Args:
        rows: of :func:`study`.
    """
    import pandas as pd
    from scipy.stats import binomtest

    found = []
    for (attack, model), own in rows.groupby(["attack", "model"], sort=False):
        for detector, name in DETECTORS.items():
            flagged = int((own[detector] != "clean").sum())
            interval = binomtest(flagged, len(own)).proportion_ci(method="wilson")
            row = {"attack": attack, "model": model, "detector": name, "models": len(own)}
            row |= {"flagged": flagged, "rate": flagged / len(own)}
            row |= {"low": interval.low, "high": interval.high}
            if detector == "gate":
                for measure in LEAKS:
                    row[measure] = own.get(measure, pd.Series(dtype=float)).mean()
            found.append(row)
    return pd.DataFrame(found)


def draw(path: Path, table: "pd.DataFrame") -> Path:
    """Draw the share of flagged models by attack, with intervals, a panel a model; write a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(table["model"]))
    counts = [table.loc[table["model"] == m, "attack"].nunique() for m in models]
    figure = Figure(figsize=(9.0, 1.6 + 0.32 * sum(counts)), dpi=130)
    panels = figure.subplots(
        len(models), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": counts}
    )[:, 0]
    for panel, model in zip(panels, models, strict=True):
        own = table[table["model"] == model]
        attacks = list(dict.fromkeys(own["attack"]))
        for number, (name, rows) in enumerate(own.groupby("detector", sort=False)):
            places = [attacks.index(a) + 0.22 * (number - 1) for a in rows["attack"]]
            errors = [rows["rate"] - rows["low"], rows["high"] - rows["rate"]]
            panel.errorbar(
                rows["rate"],
                places,
                xerr=[e.clip(lower=0) for e in errors],
                fmt=MARKERS[number],
                markersize=4,
                linewidth=1,
                capsize=2,
                label=str(name),
            )
        sizes = own.drop_duplicates("attack")["models"]
        words = [
            f"{'clean' if a == CLEAN else a} ({n})" for a, n in zip(attacks, sizes, strict=True)
        ]
        panel.set_yticks(range(len(attacks)), words, fontsize=8)
        panel.invert_yaxis()
        panel.set_title(model, fontsize=9, loc="left")
        panel.set_xlim(-0.03, 1.03)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("share of models flagged (95 % Wilson interval)")
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="lower center", ncol=3, fontsize=8)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def main(
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/audit"),
    seeds: Annotated[int, typer.Option(help="Of the small networks; half are attacked.")] = 4,
    large_seeds: Annotated[int, typer.Option(help="Of ResNet18; 0 leaves it out.")] = 2,
    data_root: Annotated[Path | None, typer.Option(help="Folder of data files.")] = None,
) -> None:
    """Judge clean and attacked networks; write audit.csv (rates) and audit.png."""
    console = Console()
    datasets = ("phantoms", "dermamnist", "pneumoniamnist")
    chosen = list(cells(datasets, seeds, ("dermamnist", "pneumoniamnist"), large_seeds))
    rows = study(chosen, out, data_root, make_progress(console))
    table = rates(rows)
    write_table(out / "audit.csv", table)
    print_table(console, table, "Share of models flagged")
    draw(out / "audit.png", table)
    console.print(f"Table  {out / 'audit.csv'}\nFigure {out / 'audit.png'}")


STUDIES.register(
    "audit_rates", "how often the auditor and the gate are right, over clean and attacked models"
)(Study(main))
