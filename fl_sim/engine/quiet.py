"""Flower logs a page a round at INFO; a study has its own progress."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_flower(verbose: bool) -> Iterator[None]:
    """Silence Flower's logger within the block, unless ``verbose``.

    Its errors, too: the server's side gets each as an error reply, and reports it once.
    """
    logger = logging.getLogger("flwr")
    level = logger.level
    if not verbose:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
