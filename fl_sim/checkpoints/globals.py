"""Which names in a pickle are ordinary, which are not, and which would do harm if loaded."""

from collections.abc import Iterable

from fl_sim.checkpoints.finding import Finding, Level
from fl_sim.checkpoints.nodes import DICTIONARIES, Global
from fl_sim.checkpoints.tensors import DTYPES, FORMS, is_storage
from fl_sim.errors import legible

_PLAIN_WORDS = """
    torch.Size torch.device torch.Tensor torch.nn.parameter.Parameter torch.nn.parameter.Buffer
    torch.serialization._get_layout torch.storage._load_from_bytes torch.per_tensor_affine
    torch.per_channel_affine torch.per_tensor_symmetric torch.per_channel_symmetric torch.strided
    torch.per_channel_affine_float_qparams torch._tensor.Tensor torch.memory_format
    torch.contiguous_format torch.preserve_format torch.channels_last torch.storage.TypedStorage
    numpy.ndarray numpy.dtype _codecs.encode copyreg._reconstructor builtins.object builtins.set
    builtins.frozenset builtins.list builtins.tuple builtins.int builtins.float builtins.str
    builtins.bool builtins.bytes builtins.bytearray builtins.complex builtins.slice builtins.range
    torch.jit._pickle.build_intlist torch.jit._pickle.build_boollist
    torch.jit._pickle.build_doublelist torch.jit._pickle.build_tensorlist
    torch.jit._pickle.restore_type_tag
"""
_PLAIN = frozenset(_PLAIN_WORDS.split())
_NUMPY = frozenset(
    f"numpy.{core}.{name}"
    for core in ("core", "_core")
    for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
)
_HARMFUL_WORDS = """
    _posixsubprocess aiohttp asyncio atexit bdb builtins cProfile cloudpickle code codeop commands
    copyreg ctypes dill distutils doctest faulthandler ftplib functools gc glob http httpx idlelib
    imp importlib inspect io joblib lib2to3 linecache logging marshal mmap multiprocessing nt
    operator os pdb pickle _pickle pip pkgutil platform poplib posix posixpath profile pty pydoc
    requests resource runpy setuptools shelve shutil signal site smtplib socket socketserver sqlite3
    ssl subprocess sys tarfile tempfile telnetlib test threading _thread timeit trace types unittest
    urllib urllib2 urllib3 uuid venv webbrowser xmlrpc zipfile zipimport
"""
_HARMFUL = frozenset(_HARMFUL_WORDS.split())
_HARMFUL_PARTS_WORDS = """
    torch.hub torch.load torch.serialization torch.jit torch.package torch.ops
    torch.utils.cpp_extension torch.utils.data.datapipes torch.utils._config_module
    torch.utils.collect_env torch.utils.bottleneck torch._dynamo torch._inductor
    torch.fx.experimental torch.distributed torch.multiprocessing torch._utils_internal numpy.load
    numpy.testing numpy.distutils numpy.f2py numpy.lib numpy.save pandas.read_pickle pandas.eval
    scipy.io tensorflow.io
"""
_HARMFUL_PARTS = tuple(_HARMFUL_PARTS_WORDS.split())
_RUNS = "It would run code when loaded by torch.load(weights_only=False): its pickle names"
_MAY_RUN = (
    "Its pickle names classes that would run code when loaded by torch.load(weights_only=False), "
    "and were not imported here:"
)
_SHOWN = 8
_LONG_NAME = 200


def judge(names: Iterable[Global]) -> list[Finding]:
    """Report classes and functions that a pickle names beside those of tensors and plain data."""
    ordinary: list[Global] = []
    harmful: list[Global] = []
    for name in names:
        if not _known(name):
            (harmful if _is_harmful(name) else ordinary).append(name)
    unscripted = [name for name in ordinary if not _scripted(name)]
    return [
        *_told(harmful, "carries", _RUNS),
        *_told(unscripted, "suspicious", _MAY_RUN),
    ]


def _told(names: list[Global], level: Level, words: str) -> list[Finding]:
    if not names:
        return []
    listed = ", ".join(legible(name.path, 80) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    size = sum(len(name.path.encode("utf-8", "replace")) for name in names)
    evidence: dict[str, float] = {"names": len(names), "bytes": size}
    return [Finding("pickle", level, f"{words} {listed}{more}.", None, evidence)]


def _known(name: Global) -> bool:
    if name.path in _PLAIN or name.path in _NUMPY or name.path in FORMS:
        return True
    if name.path in DICTIONARIES or is_storage(name):
        return True
    return name.module == "torch" and name.name in DTYPES


def _is_harmful(name: Global) -> bool:
    """Whether a name leads to running commands, opening files, or to anything by further names."""
    if name.module.split(".")[0] in _HARMFUL or "." in name.name or name.name.startswith("__"):
        return True
    path = name.path
    return any(path == part or path.startswith(part + ".") for part in _HARMFUL_PARTS)


def _scripted(name: Global) -> bool:
    """TorchScript's own classes are descriptions, and no Python runs for them."""
    return name.module.split(".")[0] == "__torch__" and len(name.path) <= _LONG_NAME
