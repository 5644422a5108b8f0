"""Codecs from the command line and from Python."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from experiments.cli.main import app
from fl_sim.codecs.workbench import evaluate_codec, open_codec, train_codec
from fl_sim.errors import FlSimError
from tests.experiments.cli_kit import fl_sim

SMALL = {"name": "factorized", "N": 8, "M": 8, "max_steps": 60, "validate_every": 20}


def test_a_codec_is_trained_written_and_measured(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    report = train_codec(SMALL, "phantoms", path, images=100)
    assert report.steps == 60
    told = json.loads((tmp_path / "small.safetensors.json").read_text())
    assert told["dataset"] == "phantoms"
    assert told["images"] == 100
    assert len(told["curves"]["psnr"]) == 3
    values = evaluate_codec(path, "phantoms", "test", images=20)
    assert values["images"] == 20
    assert values["undecoded"] == 0
    assert 0 < values["bpp"] < 24
    assert values["psnr"] > 8


def test_training_again_gives_the_same_file(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path in paths:
        train_codec(SMALL, "phantoms", path, images=50)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_lossless_codec_needs_no_file() -> None:
    values = evaluate_codec("png", "phantoms", images=10)
    assert values["psnr"] == 100
    assert values["ssim"] == 1
    assert evaluate_codec("gzip", "phantoms", images=10)["p_ratio"] == pytest.approx(0.97, abs=0.05)


def test_the_command_line_trains_and_measures(tmp_path: Path) -> None:
    path, runner = tmp_path / "codec.safetensors", CliRunner()
    settings = [f"{k}={v}" for k, v in SMALL.items() if k != "name"]
    words = [word for setting in settings for word in ("--set", setting)]
    arguments = ["codec", "train", "factorized", "--dataset", "phantoms", "--out", str(path)]
    result = runner.invoke(app, [*arguments, "--images", "64", *words])
    assert result.exit_code == 0, result.output
    assert "60 steps" in result.output
    result = runner.invoke(
        app, ["codec", "evaluate", str(path), "--dataset", "phantoms", "--images", "8"]
    )
    assert result.exit_code == 0, result.output
    assert "p_ratio" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate", "factorized", "--dataset", "phantoms"], "has to be trained first"),
        (["evaluate", "missing.safetensors", "--dataset", "phantoms"], "missing.safetensors"),
        (["evaluate", "png", "--dataset", "phantom"], "phantoms"),
        (["evaluate", "png", "--dataset", "phantoms", "--split", "tets"], "test"),
        (["train", "factorised", "--dataset", "phantoms", "--out", "x"], "factorized"),
        (["train", "factorized", "--dataset", "phantoms", "--out", "x", "--set", "K=3"], "no key"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    done = fl_sim("codec", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_codec_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(FlSimError, match=r"x\.safetensors"):
        open_codec(tmp_path / "x.safetensors")
