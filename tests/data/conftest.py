"""Fixtures for the data room: no network, a private cache, and the real files where there are."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def private_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests off the network, the user's cache, home and data root."""
    monkeypatch.setenv("FL_SIM_OFFLINE", "1")
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FL_SIM_DATA", raising=False)


_REAL = os.environ.get("FL_SIM_DATA")


@pytest.fixture
def real_data() -> Path:
    """The folder with real data files."""
    if not _REAL or not Path(_REAL).is_dir():
        pytest.skip("needs real data: set FL_SIM_DATA to a data root")
    return Path(_REAL)
