"""Where the tracebacks of a run go: to a file in its folder, not to the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fl_sim.errors import FlSimError

_LOGGERS = ("strategies", "fl_sim.faults")


class _Log(logging.FileHandler):
    """A log that a full disk only silences; whatever is logged has a sentence of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, opening the file for the first."""
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing."""


@contextmanager
def failures_logged(out: Path) -> Iterator[None]:
    """Write what hospitals, a strategy, a defence or an observer raise to ``failures.log``.

    Where nothing fails there is no file.

    Args:
        out: folder of the run; one that goes on adds to its file.

    Raises:
        FlSimError: what the block raises; it names the file if something was written.
    """
    path = out / "failures.log"
    handler = _Log(path, encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        yield
    except FlSimError as error:
        if handler.stream is None or isinstance(error, OSError):
            raise
        raise FlSimError(f"{str(error).rstrip('.')} (more in {path}).") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()
