"""All members of the population, and the making of their files."""

import csv
import time
from pathlib import Path

from experiments.studies.detector_rates.untuned.clean import clean_members
from experiments.studies.detector_rates.untuned.member import Member, write
from experiments.studies.detector_rates.untuned.shipped import shipped_members
from experiments.studies.detector_rates.untuned.simple import simple_members
from experiments.studies.detector_rates.untuned.written import written_members
from fl_sim.errors import FlSimError

SLOW = ("resnet18-small", "resnet34", "densenet121-small")
"""Architectures that take longest to train."""


def members(data: Path, shipped: Path | None = None) -> list[Member]:
    """Return the population; those that others start from come before them.

    Args:
        data: folder of data files.
        shipped: where packages with networks were installed, if anywhere.
    """
    clean = clean_members(data)
    return [
        *clean,
        *(shipped_members(shipped) if shipped else ()),
        *simple_members(clean, data),
        *written_members(clean, data),
    ]


def make(population: list[Member], folder: Path) -> None:
    """Make the files that are not there yet, slow ones last; ``made.csv`` has their seconds.

    What cannot be written into a network (it has no room, or training diverges) is said and left
    out. What starts from a file that is not there yet waits for it.

    Raises:
        FileNotFoundError: if what some start from, or a data file, never comes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left = [member for member in population if not member.path(folder).exists()]
    left.sort(key=lambda member: member.clean and member.architecture in SLOW)
    while left:
        waiting: list[Member] = []
        for member in left:
            try:
                _make_one(member, folder)
            except FileNotFoundError as error:
                waiting.append(member)
                missing = error
        if len(waiting) == len(left):
            raise missing
        left = waiting


def _make_one(member: Member, folder: Path) -> None:
    if member.path(folder).exists():  # another process was faster
        return
    began = time.perf_counter()
    try:
        write(member, folder)
    except FlSimError as error:
        print(f"{member.name} was not made: {error}", flush=True)
        return
    seconds = time.perf_counter() - began
    with (folder / "made.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([member.name, member.kind, f"{seconds:.1f}"])
    print(f"{member.name}, {seconds:.0f} s", flush=True)
