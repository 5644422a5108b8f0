"""All members of the population, and the making of their files."""

import csv
import time
from pathlib import Path

from experiments.untuned.clean import clean_members
from experiments.untuned.member import Member, write
from experiments.untuned.shipped import shipped_members
from experiments.untuned.simple import simple_members
from experiments.untuned.written import written_members
from fl_sim.errors import FlSimError


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
    """Make the files that are not there yet, a line for each; ``made.csv`` has their seconds.

    What cannot be written into a network (it has no room, or training diverges) is said and left
    out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left = [member for member in population if not member.path(folder).exists()]
    for number, member in enumerate(left, 1):
        began = time.perf_counter()
        try:
            write(member, folder)
        except FlSimError as error:
            print(f"{number} of {len(left)}: {member.name} was not made: {error}", flush=True)
            continue
        seconds = time.perf_counter() - began
        with (folder / "made.csv").open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([member.name, member.kind, f"{seconds:.1f}"])
        print(f"{number} of {len(left)}: {member.name}, {seconds:.0f} s", flush=True)
