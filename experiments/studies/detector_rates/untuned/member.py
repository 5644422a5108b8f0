"""A network of the population: what it is, and how its file is made."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

State = dict[str, torch.Tensor]
Content = Any
"""What a file gets: bytes as they are; anything else goes through :func:`torch.save`."""


@dataclass(frozen=True)
class Member:
    """A file to judge.

    Args:
        name: of the file, without its suffix.
        kind: how the network came about, or what kind of attack it carries; rates are by kind.
        attack: what was done to it in words; ``"none"`` if it is clean.
        architecture: key of ``NETWORKS`` in ``networks.py``, or the package that ships it.
        dataset: what it was trained on last; empty if a package ships it.
        training: how, in words.
        make: gives the file's content, from the folder of all files; those that it starts from are
            there.
        suffix: of the file.
    """

    name: str
    kind: str
    attack: str
    architecture: str
    dataset: str
    training: str
    make: Callable[[Path], Content]
    suffix: str = ".pth"

    @property
    def clean(self) -> bool:
        """Whether nothing was hidden in it."""
        return self.attack == "none"

    def path(self, folder: Path) -> Path:
        """Return where its file is kept."""
        return folder / f"{self.name}{self.suffix}"


def write(member: Member, folder: Path) -> None:
    """Make a member's file; it is there whole, or not at all."""
    content = member.make(folder)
    path = member.path(folder)
    unfinished = path.with_suffix(".part")
    if isinstance(content, bytes):
        unfinished.write_bytes(content)
    else:
        torch.save(content, unfinished)
    os.replace(unfinished, path)


def load(folder: Path, name: str) -> State:
    """Return the state dictionary of a clean member's file."""
    state: State = torch.load(folder / f"{name}.pth", weights_only=True)
    return state
