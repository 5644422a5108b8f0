"""Reading checkpoints that nobody here made, without running anything that is in them."""

from pathlib import Path

from fl_sim.checkpoints.archive import Archive, open_archive
from fl_sim.checkpoints.checkpoint import Checkpoint
from fl_sim.checkpoints.foreign import foreign
from fl_sim.checkpoints.numpy_file import is_numpy, read_numpy_zip
from fl_sim.checkpoints.safetensors_file import is_safetensors, read_safetensors
from fl_sim.checkpoints.shards import INDEX, read_folder, read_index
from fl_sim.checkpoints.source import Damaged, Source
from fl_sim.checkpoints.torch_legacy import read_bare_pickle
from fl_sim.checkpoints.torch_zip import is_torch, read_torch_zip
from fl_sim.errors import FlSimError, legible

_ZIP = b"PK\x03\x04"
_EMPTY_ZIP = b"PK\x05\x06"


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a model file, whatever its name says; nothing in it is run, imported or called.

    Read are torch's files (archives, the format before 1.6, TorchScript, pickled networks),
    plain pickles of arrays or tensors, safetensors, NumPy's .npz, and folders or indices of shards.
    Every byte is shown by a tensor, or is structure that was checked, or is a finding.

    Raises:
        FlSimError: if it is missing, damaged, something else, or has no weights.
    """
    shown = legible(str(path), None)
    if path.is_dir():
        return read_folder(path, read_checkpoint)
    if not path.is_file():
        raise FlSimError(f"The checkpoint {shown} does not exist.")
    if path.name.endswith(INDEX):
        return read_index(path, read_checkpoint)
    try:
        with open(path, "rb") as file:
            return _read(path, Source.of(path, file))
    except Damaged as error:
        raise FlSimError(
            f"The checkpoint {shown} cannot be read: {legible(str(error), 400)}."
        ) from None
    except OSError as error:
        raise FlSimError(f"The checkpoint {shown} cannot be read: {error.strerror}.") from None


def _read(path: Path, source: Source) -> Checkpoint:
    head = source.head(9)
    if is_safetensors(head):
        return read_safetensors(source)
    if head.startswith((_ZIP, _EMPTY_ZIP)):
        return _from_archive(path, open_archive(source))
    words = foreign(source)
    if words is not None:
        raise FlSimError(f"The checkpoint {path} {words}.")
    try:
        return read_bare_pickle(source)
    except Damaged as error:
        archive = _archive_behind(source)
        if archive is None:
            if head[:1] != b"\x80":
                raise Damaged("it is of no format that holds weights") from error
            raise
    return _from_archive(path, archive)


def _archive_behind(source: Source) -> Archive | None:
    """Return an archive with something before it, which programs for archives read."""
    try:
        return open_archive(source)
    except Damaged:
        return None


def _from_archive(path: Path, archive: Archive) -> Checkpoint:
    if is_torch(archive):
        return read_torch_zip(archive)
    if is_numpy(archive):
        return read_numpy_zip(archive)
    names = [legible(name, 40) for name in archive.records]
    if "config.json" in names and any(name.endswith(".weights.h5") for name in names):
        words = "is a Keras file: load it there and save its weights as safetensors"
    else:
        shown = ", ".join(names[:4]) or "nothing"
        words = f"is a zip archive without weights of torch or NumPy (it holds {shown}): unpack it"
    raise FlSimError(f"The checkpoint {path} {words}.")
