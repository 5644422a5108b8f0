"""Gives files a cache of their own."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let a file's tests, and its fixtures of the same scope, cache in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_SIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _networks_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a network that a test states by a function's name be unknown to the next."""
    from fl_sim.models import MODELS

    MODELS.entries()  # what the project registers stays
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
