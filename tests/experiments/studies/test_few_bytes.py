"""The study of images in a few bytes, on phantoms."""

import pytest

from experiments.studies.few_bytes import BYTES, measure


def test_more_bytes_tell_more_and_none_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.studies.few_bytes.VICTIMS", 64)
    table, pictures = measure("phantoms", None, public=100)
    assert list(table["bytes"]) == [0, *BYTES]
    none, most = table.iloc[0], table.iloc[-1]
    assert none["identification_correlation"] == pytest.approx(none["identification_chance"])
    assert most["ssim"] > table["ssim"].iloc[1] > none["ssim"]
    assert most["identification_correlation"] > 0.9
    assert pictures["48 bytes"].shape == pictures["original"].shape
