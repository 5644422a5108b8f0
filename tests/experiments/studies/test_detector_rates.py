"""Rates of auditor and gate on networks made elsewhere: how these are made, attacked, counted."""

import ast
import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from experiments.studies.detector_rates import errors, flagged, judge, judged, rates, untuned
from experiments.studies.detector_rates.untuned import loop, simple
from experiments.studies.detector_rates.untuned.clean import clean_members
from experiments.studies.detector_rates.untuned.loop import Images, Training, fit
from experiments.studies.detector_rates.untuned.member import Member, load
from experiments.studies.detector_rates.untuned.networks import NETWORKS, build
from experiments.studies.detector_rates.untuned.population import make, members
from experiments.studies.detector_rates.untuned.written import spec_of
from fl_sim.errors import FlSimError

ROOM = Path(untuned.__file__).parent
APART = ("member", "networks", "loop", "clean", "simple", "shipped")


def test_what_makes_clean_networks_and_simple_attacks_knows_nothing_of_the_project() -> None:
    for name in APART:
        tree = ast.parse((ROOM / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for imported in names:
                assert not imported.startswith("fl_sim"), f"{name} imports {imported}"
                if imported.startswith("experiments."):
                    assert imported.rpartition(".")[2] in APART


def test_members_have_names_of_their_own_and_start_from_ones_before_them(tmp_path: Path) -> None:
    (tmp_path / "shipped" / "package").mkdir(parents=True)
    (tmp_path / "shipped" / "package" / "net.pt").write_bytes(bytes(6000))
    (tmp_path / "shipped" / "package" / "tiny.pt").write_bytes(bytes(60))
    population = members(tmp_path, tmp_path / "shipped")
    assert len({m.name for m in population}) == len(population)
    assert [m.name for m in population if m.kind.startswith("shipped")] == ["shipped-package-net"]
    clean = [m for m in population if m.clean]
    attacked = [m for m in population if not m.clean]
    assert len(clean) >= 60 and len(attacked) >= 60
    assert {m.architecture for m in clean} >= set(NETWORKS)


@pytest.fixture
def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    pixels = torch.randn(64, 1, 28, 28, generator=generator) * 0.1 + labels[:, None, None, None]
    return Images(pixels, labels)


@pytest.mark.parametrize("average", [None, "ema", "swa"])
def test_the_plain_loop_learns_and_repeats_itself(images: Images, average: str | None) -> None:
    training = Training("adam", 1e-4, True, 20, 64, average=average, seed=1)
    architecture = "mlp" if average else "cnn"
    one, other = (fit(build(architecture, 1, 2, 0), images, training) for _ in range(2))
    assert average == "ema" or loop.accuracy(one, images) > 0.9  # so slow an average lags behind
    state = one.state_dict()
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in state.items())
    assert ("module.fc1.weight" in state) is (average is not None)
    stopped = fit(build("cnn", 1, 2, 0), images, Training("sgd", 0, False, 8, 64, steps=1, seed=1))
    assert stopped.state_dict()["layer1.1.num_batches_tracked"] == 1


def test_networks_have_the_names_that_torchvision_gives() -> None:
    import torchvision

    own = build("resnet18-small", 3, 7, 0)
    assert own.state_dict().keys() == torchvision.models.resnet18().state_dict().keys()
    assert own.conv1.weight.shape == (64, 3, 3, 3)
    for architecture in NETWORKS:
        network = build(architecture, 1, 5, 0).eval()
        assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 5)


@pytest.mark.parametrize("number", range(6))
def test_pruned_networks_have_zeros_and_no_hooks(number: int, tmp_path: Path) -> None:
    pruned = [m for m in clean_members(tmp_path) if m.name.startswith(f"pruned-{number}-cnn")]
    host = pruned[0].name.removeprefix(f"pruned-{number}-")
    channels = 3 if pruned[0].dataset == "dermamnist" else 1
    before = build("cnn", channels, loop.CLASSES[pruned[0].dataset], 0).state_dict()
    torch.save(before, tmp_path / f"{host}.pth")
    state = pruned[0].make(tmp_path)
    masks = [n for n in state if n.endswith("weight_mask")]
    assert bool(masks) is (number == 2)
    zeros = sum(int((t == 0).sum()) for n, t in state.items() if n.endswith("weight"))
    assert zeros > 1000 or masks


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(64, 64))
    return {f"body.{n}": t.clone() for n, t in network.state_dict().items()}


@pytest.mark.parametrize(
    ("dtype", "width", "bits"),
    [(torch.float16, np.uint16, 3), (torch.float32, np.uint32, 5), (torch.float64, np.uint64, 28)],
)
def test_low_bits_hold_the_secret_and_high_ones_stay(
    dtype: torch.dtype, width: type[np.unsignedinteger], bits: int
) -> None:
    content = np.random.default_rng(0).bytes(300)
    before = {n: t.to(dtype) if t.is_floating_point() else t for n, t in _state().items()}
    after = simple.low_bits(_state(), content, bits, dtype)
    words = after["body.2.weight"].numpy().reshape(-1).view(width)
    sent = np.unpackbits(np.frombuffer(content, np.uint8))
    carried = (words[:, None] >> np.arange(bits - 1, -1, -1, dtype=width)) & 1
    read = carried.reshape(-1)[: min(len(sent), carried.size) // bits * bits]
    assert (read == sent[: len(read)]).all()
    old = before["body.2.weight"].numpy().reshape(-1).view(width)
    assert ((words >> bits) == (old >> bits)).all()
    assert after["body.2.weight"].dtype == dtype


def test_signs_and_signs_of_zeros_are_the_secrets_bits() -> None:
    content = bytes([0b10110001] * 64)
    sent = np.unpackbits(np.frombuffer(content, np.uint8))
    signs = simple.signs(_state(), content)["body.2.weight"].flatten().signbit().numpy()
    assert (signs[: len(sent)] == sent).all()
    values = simple.signed_zeros(_state(), content)["body.2.weight"].flatten()
    zeros = values[values == 0].signbit().numpy()
    assert len(zeros) == 2048
    assert (zeros[: len(sent)] == sent).all()


def test_what_stands_beside_the_tensors_is_in_the_file_and_torch_reads_on() -> None:
    state, content = _state(), np.random.default_rng(1).bytes(5000)
    for way in (simple.trailing, simple.record):
        file = way(state, content)
        assert content in file
        loaded = torch.load(io.BytesIO(file), weights_only=True)
        assert all(torch.equal(t, state[n]) for n, t in loaded.items())
    with zipfile.ZipFile(io.BytesIO(simple.record(state, content))) as archive:
        assert content in [archive.read(name) for name in archive.namelist()]


def test_secrets_are_images_packed_or_not_to_be_told_from_noise(tmp_path: Path) -> None:
    (tmp_path / "medmnist").mkdir()
    pixels = (np.arange(20 * 784) // 50 % 251).astype(np.uint8).reshape(20, 28, 28)
    np.savez(tmp_path / "medmnist" / loop.FILES["chestmnist"], train_images=pixels)
    raw, packed, drawn = (
        simple.secret(tmp_path, "chestmnist", how, 2000) for how in simple.SECRETS
    )
    assert raw == pixels.tobytes()[:2000]
    assert packed[:2] == b"\x1f\x8b"
    assert len(drawn) == 2000 and drawn != simple.secret(tmp_path, "chestmnist", "encrypted", 1999)


def _member(name: str, attack: str, content: object, kind: str = "k") -> Member:
    def give(folder: Path) -> object:
        if isinstance(content, Exception):
            raise content
        return content

    return Member(name, kind, attack, "mlp", "", "", give)


def test_files_are_made_once_and_one_that_cannot_be_is_left_out(tmp_path: Path) -> None:
    population = [
        _member("a", "none", _state()),
        _member("b", "x", FlSimError("no room")),
        _member("c", "x", b"bytes"),
    ]
    make(population, tmp_path)
    assert load(tmp_path, "a").keys() == _state().keys()
    assert (tmp_path / "c.pth").read_bytes() == b"bytes"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "c.pth", "made.csv"]
    times = (tmp_path / "a.pth").stat().st_mtime_ns
    make(population, tmp_path)
    assert (tmp_path / "a.pth").stat().st_mtime_ns == times
    assert len((tmp_path / "made.csv").read_text().splitlines()) == 2


def test_what_starts_from_another_file_waits_for_it(tmp_path: Path) -> None:
    host, other = _member("host", "none", _state()), _member("other", "none", _state())
    after = Member("after", "k", "x", "mlp", "", "", lambda folder: load(folder, "host"))
    slow = Member(
        "slow",
        "k",
        "none",
        "resnet34",
        "",
        "",
        lambda folder: {"order": len(list(folder.glob("*.pth")))},
    )
    make([after, slow, host, other], tmp_path)
    assert load(tmp_path, "after").keys() == _state().keys()
    assert load(tmp_path, "slow")["order"] == 2  # not before the others could be made
    with pytest.raises(FileNotFoundError):
        make([Member("lost", "k", "x", "mlp", "", "", lambda f: load(f, "nobody"))], tmp_path)


def test_files_are_judged_once_and_every_verdict_has_its_place(tmp_path: Path) -> None:
    noisy = {**_state(), "body.2.weight": _state()["body.2.weight"].sign() * 0.05}
    population = [
        _member("good", "none", _state()),
        _member("bad", "rounded", noisy),
        _member("broken", "rounded", b"no archive"),
        _member("absent", "none", _state()),
    ]
    make(population[:1], tmp_path)
    assert list(judge(population, tmp_path, tmp_path, "alone")["name"]) == ["good"]
    make(population[:3], tmp_path)
    (tmp_path / "good.pth").write_bytes(b"would no longer be read")
    verdicts = judge(population, tmp_path, tmp_path, "alone").set_index("name")["verdict"]
    assert set(verdicts.index) == {"good", "bad", "broken"}
    assert not flagged(verdicts["good"])
    assert flagged(verdicts["bad"])
    assert verdicts["broken"] == "not read"
    assert str(tmp_path) not in (tmp_path / "judged-alone.csv").read_text()  # no one's folders
    assert list(judged(tmp_path)["detector"]) == ["auditor, file alone"] * 3
    with pytest.raises(FlSimError, match="judge first"):
        judged(tmp_path / "elsewhere")


def test_a_network_can_be_stated_that_the_project_does_not_know(tmp_path: Path) -> None:
    host = _member("own", "none", build("mlp", 3, 7, 0).state_dict())
    host = Member(host.name, "k", "none", "mlp", "dermamnist", "", host.make)
    shipped = Member("shipped", "k", "none", "a package", "", "", lambda folder: _state())
    make([host, shipped], tmp_path)
    rows = judge([host, shipped], tmp_path, tmp_path, "stated")
    assert list(rows["name"]) == ["own"]  # nobody can state what a package ships
    assert not flagged(rows["verdict"][0]) and rows["verdict"][0] != "not read"
    assert spec_of("mlp", "dermamnist").input_shape == (3, 28, 28)


def test_rates_have_intervals_and_name_what_is_missed() -> None:
    def row(
        name: str, kind: str, attack: str, verdict: str, detector: str = "alone"
    ) -> dict[str, str]:
        return {
            "name": name,
            "kind": kind,
            "attack": attack,
            "verdict": verdict,
            "checks": "values",
            "detector": detector,
        }

    rows = pd.DataFrame(
        [
            row("a", "trained", "none", "nothing found; 3 of 10 checks could not run"),
            row("b", "trained", "none", "suspicious; 3 of 10 checks could not run"),
            row("c", "pruned", "none", "clean"),
            row("c", "pruned", "none", "refused", "gate"),
            row("d", "signs", "x", "carries something"),
            row("e", "signs", "x", "clean"),
            row("f", "signs", "y", "not read"),
            row("d", "signs", "x", "clean", "gate"),
        ]
    )
    table = rates(rows, tuned=None).set_index(["networks are", "kind", "detector"])
    alone = table.xs("alone", level="detector")
    counts = ["networks", "flagged", "not read", "not all checks ran"]
    assert list(alone.loc[("clean", "all"), counts]) == [3, 1, 0, 2]
    assert list(alone.loc[("attacked", "all"), counts]) == [3, 1, 1, 0]
    assert list(alone.loc[("clean", "pruned"), counts]) == [1, 0, 0, 0]
    attacked = alone.loc[("attacked", "all")]
    assert attacked["low"] < 1 / 3 < attacked["high"]
    assert list(table.loc[("attacked", "all", "gate"), counts]) == [1, 0, 0, 0]
    wrong = errors(rows).set_index(["kind", "attack", "detector"])
    assert dict(wrong["which"]) == {
        ("trained", "none", "alone"): "b",
        ("pruned", "none", "gate"): "c",
        ("signs", "x", "alone"): "e",
        ("signs", "y", "alone"): "f",
        ("signs", "x", "gate"): "d",
    }
    assert wrong.loc[("signs", "y", "alone"), "said"] == "not read"
    assert wrong.loc[("signs", "x", "alone"), "networks"] == 2


def test_the_tuned_population_stands_apart() -> None:
    rows = pd.DataFrame(
        [{"kind": "trained", "attack": "none", "verdict": "clean", "detector": "gate"}]
    )
    table = rates(rows)
    tuned = table[(table["population"] == "tuned") & (table["kind"] == "all")]
    assert list(tuned["networks"]) == [28, 28, 49, 49]
    assert tuned["high"].iloc[0] == pytest.approx(0.121, abs=1e-3)
    assert (table["population"] == "untuned").sum() == 2
