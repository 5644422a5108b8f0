"""``fl-sim membership``: which images any model file was trained on, as far as its answers tell."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from experiments.cli.model_file import (
    Channels,
    Classes,
    DataRoot,
    Json,
    Model,
    ModelFile,
    Normalize,
    Overrides,
    Size,
    StemChoice,
    settings_of,
)
from experiments.tables.console import plain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console

    from fl_sim.data.base import Dataset
    from fl_sim.membership_inference.outcome import Membership

_MOST_BYTES = 1 << 28
"""Of a file of numbers; 2 ** 24 images have them in less."""
_TEST = 2
_SPLITS = ("train", "validation")


def membership(
    model_file: ModelFile,
    dataset: Annotated[
        str, typer.Option(help="A registered dataset or .npz file that the model was trained on.")
    ],
    members: Annotated[
        str,
        typer.Option(
            help="Which images it was trained on: train or validation, the whole split, or a file "
            "of numbers of images in the train split, from 0 (.npy, or .csv with one a line)."
        ),
    ] = "train",
    method: Annotated[
        str, typer.Option(help="The attack: rmia, or lira for 16 reference models or more.")
    ] = "rmia",
    mode: Annotated[
        Literal["online", "offline"],
        typer.Option(help="Whether the attacker has reference models with the very image."),
    ] = "online",
    references: Annotated[
        int, typer.Option(help="Reference models to train, an even number.", min=2)
    ] = 4,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    model: Model = None,
    classes: Classes = None,
    channels: Channels = None,
    size: Size = None,
    stem: StemChoice = None,
    normalize: Normalize = None,
    json_out: Json = None,
    records: Annotated[
        Path | None,
        typer.Option(
            help="Write each image's risk here (.csv), for the owner alone: it says which images "
            "the model was trained on.",
            show_default=False,
        ),
    ] = None,
    patients: Annotated[
        Path | None,
        typer.Option(
            help="Write each patient's risk here (.csv), for the owner alone.", show_default=False
        ),
    ] = None,
) -> None:
    """Tell from a model's answers which images it was trained on, and how well that can be told.

    Reference models are trained like the model (--set epochs=6.5 and other keys of [training] say
    how) on halves of all images, and kept for the next call. Members are told from the test split,
    which the model must not have seen. Nothing in the file is run.
    """
    import numpy as np

    from experiments.tables.console import make_console
    from fl_sim.auditing.architecture import Statement
    from fl_sim.bars import make_progress
    from fl_sim.files import write_atomically
    from fl_sim.membership_inference.base import MembershipSettings, method_of
    from fl_sim.membership_inference.infer import infer
    from fl_sim.membership_inference.references import Recipe, pool_of
    from fl_sim.membership_inference.references import references as trained_references
    from fl_sim.membership_inference.signals import ask
    from fl_sim.settings import parse
    from fl_sim.training import TrainingSettings
    from fl_sim.verbs.opening import open_model_file

    console = make_console()
    chosen = {"name": method, "mode": mode, "references": references}
    settings = parse(MembershipSettings, chosen, "fl-sim membership")
    method_of(settings.name, settings.mode, settings.references)
    training = parse(TrainingSettings, settings_of(overrides), "--set")
    network = Statement(model, classes, channels, size, stem, normalize)
    opened = open_model_file(model_file, network, dataset, data_root, None, 0)
    console.print(f"Network: {plain(opened.known.words)}")
    built, loaded = opened.artifact.model(), opened.dataset
    opened.require_fitting(built)
    rows = _members(loaded, members)
    # The pool is the whole dataset, whatever is asked about, so that every call shares it.
    pool = pool_of(loaded.train, loaded.validation, loaded.test)
    asked = np.concatenate([pool.places[members == "validation"][rows], pool.places[_TEST]])
    known_patients = pool.split.patients
    if patients is not None and known_patients is None:
        raise _no_patients(loaded.name)
    recipe = Recipe(opened.artifact.spec, loaded.task, training)
    known = trained_references(pool, recipe, references, make_progress(console))
    found = infer(
        ask(built, pool.split.subset(asked), loaded.task),
        known.of(asked),
        len(rows),
        settings,
        None if known_patients is None else known_patients[asked],
    )
    if json_out is not None:
        write_atomically(json_out, (json.dumps(found.as_dict(), indent=1) + "\n").encode())
    _say(console, found)
    if records is not None:
        found.save_records(records)
        console.print(f"Risk by image, for the owner alone: {plain(records)}")
    if patients is not None:
        content = found.by_patient.to_csv(index=False).encode()
        write_atomically(patients, content, private=True)
        console.print(f"Risk by patient, for the owner alone: {plain(patients)}")


def _members(dataset: "Dataset", stated: str) -> "NDArray[np.int64]":
    """Return which images of the train split, or of the validation split, are members."""
    import numpy as np

    from fl_sim.errors import FlSimError, did_you_mean

    if stated in _SPLITS:
        split = dataset.train if stated == "train" else dataset.validation
        return np.arange(len(split), dtype=np.int64)
    path = Path(stated)
    if path.suffix.lower() not in (".npy", ".csv"):
        raise FlSimError(
            f"--members is {stated!r}; give train, validation, or a file of numbers of images in "
            f"the train split, .npy or .csv.{did_you_mean(stated, _SPLITS)}"
        )
    rows = _numbers_in(path)
    if len(rows) == 0 or len(np.unique(rows)) < len(rows):
        raise FlSimError(f"{plain(path)} should name images of the train split, each one once.")
    last = len(dataset.train) - 1
    if rows.min() < 0 or rows.max() > last:
        raise FlSimError(
            f"{plain(path)} names image {rows.min() if rows.min() < 0 else rows.max()}, and the "
            f"train split of {dataset.name} has images 0 to {last}."
        )
    return rows


def _numbers_in(path: Path) -> "NDArray[np.int64]":
    """Read whole numbers from a file that anybody may have made."""
    import numpy as np

    from fl_sim.errors import FlSimError

    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError
        if path.suffix.lower() == ".csv":
            words = path.read_text(encoding="utf-8").split()
            return np.array([int(word.rstrip(",")) for word in words], dtype=np.int64)
        # Mapped, so that a header cannot ask for more than the file has.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise ValueError
        return np.array(found, dtype=np.int64)
    except FileNotFoundError:
        raise FlSimError(f"There is no file {plain(path)} of members.") from None
    except (OSError, ValueError, OverflowError):
        raise FlSimError(
            f"{plain(path)} holds no list of whole numbers; give .npy of one axis of integers, or "
            f".csv with one number a line."
        ) from None


def _say(console: "Console", found: "Membership") -> None:
    from fl_sim.membership_inference.outcome import FAIRLY_SURE, SURE

    low, high = found.auc_interval
    console.print(
        f"{found.settings.name}, {found.settings.mode}, {found.settings.references} reference "
        f"models; {found.members} members, {found.nonmembers} images never seen"
    )
    console.print(f"AUC {found.auc:.3f} (95 %: {low:.3f} to {high:.3f}); guessing has 0.5")
    for rate in (FAIRLY_SURE, SURE):
        low, high = found.tpr_interval(rate)
        console.print(
            f"At {100 * rate:g} % of false alarms {100 * found.tpr(rate):.2f} % of the members are "
            f"found (95 %: {100 * low:.2f} to {100 * high:.2f} %); guessing finds "
            f"{100 * found.chance(rate):.2f} %"
        )


def _no_patients(name: str) -> Exception:
    from fl_sim.errors import FlSimError

    return FlSimError(
        f"No patients are known of the images of {name}, so that --patients has nothing to write; "
        f"--records tells the risk by image."
    )
