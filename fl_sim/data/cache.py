"""Prepared images on disk: built once, memory-mapped ever after, safe against killed builds."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.files import built_once, sync_folder, write_atomically
from fl_sim.progress import SILENT, Progress, piece

_CHUNK = 256
_REPORT: ContextVar[Progress] = ContextVar("fl_sim_data_progress", default=SILENT)


@contextlib.contextmanager
def reporting(progress: Progress) -> Iterator[None]:
    """Report preparations within the block to ``progress``."""
    token = _REPORT.set(progress)
    try:
        yield
    finally:
        _REPORT.reset(token)


def cache_folder() -> Path:
    """Return where prepared images are kept: the environment's FL_SIM_CACHE or ~/.cache/fl-sim."""
    return Path(os.environ.get("FL_SIM_CACHE") or "~/.cache/fl-sim").expanduser()


def cached_images(
    name: str,
    key: str,
    shape: tuple[int, ...],
    rows: Callable[[int, int], NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    """Return images from the cache, building them first where they are not there yet.

    A build works under a temporary name and is renamed when it is complete and on disk. A killed
    build is resumed where it last synced; a second process waits for the first.

    Args:
        name: the dataset's name, a folder of the cache.
        key: names the content: equal keys must mean equal images.
        shape: of the whole array, ``[n, side, side, channels]``.
        rows: ``rows(first, last)`` returns the uint8 images first..last-1.

    Returns:
        A read-only memory-mapped uint8 array.

    Raises:
        FlSimError: if the cache cannot be written, and whatever ``rows`` raises.
    """
    folder = cache_folder() / name
    path = folder / f"{key}.npy"
    if not path.is_file():
        try:
            with built_once(path):
                if not path.is_file():
                    _build(path, shape, rows)
        except OSError as error:
            raise FlSimError(
                f"The image cache {folder} cannot be written ({error.strerror}); set FL_SIM_CACHE "
                "to a folder with room."
            ) from None
    return _open(path, shape)


def _build(
    path: Path, shape: tuple[int, ...], rows: Callable[[int, int], NDArray[np.uint8]]
) -> None:
    part, mark = path.with_suffix(".part.npy"), path.with_suffix(".done")
    done = _resumable(part, mark, shape)
    if done == 0:
        mark.unlink(missing_ok=True)
        _require_room(path.parent, shape)
    images = np.lib.format.open_memmap(
        part, mode="r+" if done else "w+", dtype=np.uint8, shape=None if done else shape
    )
    with piece(_REPORT.get(), f"preparing the images of {path.parent.name}", shape[0]) as report:
        report.step(advance=done)
        for first in range(done, shape[0], _CHUNK):
            last = min(first + _CHUNK, shape[0])
            images[first:last] = rows(first, last)
            # The mark must never run ahead of the images, so these go to disk first.
            images.flush()
            write_atomically(mark, str(last).encode())
            report.step(advance=last - first)
    del images
    _sync(part)
    os.replace(part, path)
    sync_folder(path.parent)
    mark.unlink(missing_ok=True)


def _resumable(part: Path, mark: Path, shape: tuple[int, ...]) -> int:
    """Return how many rows of a killed build can be kept."""
    try:
        done = int(mark.read_text())
        found = np.load(part, mmap_mode="r").shape
    except (OSError, ValueError):
        return 0
    return done if found == shape and 0 < done <= shape[0] else 0


def _open(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        images = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise FlSimError(
            f"The prepared images {path} cannot be read ({error}); delete that file."
        ) from None
    if images.shape != shape or images.dtype != np.uint8:
        raise FlSimError(f"The prepared images {path} are not what they should be; delete them.")
    result: NDArray[np.uint8] = images
    return result


def _require_room(folder: Path, shape: tuple[int, ...]) -> None:
    # A full disk under a memory map ends the process with a signal, so look first.
    need, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    if need + (64 << 20) > free:
        raise FlSimError(
            f"The image cache {folder} needs {need >> 20} MB but has {free >> 20} MB free; set "
            "FL_SIM_CACHE to a folder with room, or limit the images."
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
