"""The examples run as they stand, and do what they say."""

import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from experiments import examples
from experiments.run.scenario import Scenario
from fl_sim.artifact import Artifact, Key
from fl_sim.attacks.base import ATTACKS
from fl_sim.data.base import DATASETS
from fl_sim.defenses.base import DEFENSES
from fl_sim.engine.inprocess import InProcessGrid
from fl_sim.errors import FlSimError
from fl_sim.models import MODELS, ModelSpec, build, state_of
from fl_sim.results import read_table
from strategies.base import STRATEGIES, build_aggregator

FOLDER = Path(examples.__file__).parent
QUICKSTART = FOLDER / "flower_quickstart"
SERVER = QUICKSTART / "flower_quickstart" / "server_app.py"


@pytest.mark.slow
def test_a_strategy_of_ones_own_runs_by_name(script, tmp_path, capsys):
    script("own_strategy")
    assert "release" in capsys.readouterr().out
    (table,) = tmp_path.glob("runs/*-capped-*/results.csv")
    assert set(read_table(table)["aggregator"]) == {"capped"}


def test_it_is_a_plugin_whose_keys_a_scenario_may_set():
    from experiments.examples.own_strategy import CappedFedAvg

    federation = {"strategy": "capped", "most": 7, "engine": "inprocess"}
    scenario = Scenario.from_mapping(
        {
            "mode": "federated",
            "dataset": "phantoms",
            "model": "cnn",
            "plugins": ["experiments.examples.own_strategy"],
            "federation": federation,
        }
    )
    built = build_aggregator("capped", scenario.federation.strategy.settings).strategy
    assert isinstance(built, CappedFedAvg) and built.most == 7


def test_no_hospital_counts_for_more_than_its_cap():
    from experiments.examples.own_strategy import CappedFedAvg

    arrays, _ = CappedFedAvg(10).aggregate_train(1, [_reply(0.0, 10), _reply(1.0, 90)])
    assert float(arrays["w"].numpy()) == pytest.approx(0.5)


def _reply(value, images):
    from flwr.app import Array, ArrayRecord, MetricRecord

    class Reply:
        content = RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(np.asarray(value))}),
                "metrics": MetricRecord({"num-examples": images}),
            }
        )

        def has_error(self):
            return False

    return Reply()


# --------------------------------------------------------------------------- parts of one's own


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Runs an example as a script, copied into a folder of its own; what it registers goes away."""
    for registry in (ATTACKS, DATASETS, DEFENSES, MODELS, STRATEGIES):
        registry.entries()  # what the project registers stays
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    STRATEGIES._entries.pop("capped", None)  # another test has imported it from the package
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def run(name, as_script=True):
        copied = shutil.copy(FOLDER / f"{name}.py", tmp_path)
        return runpy.run_path(copied, run_name="__main__" if as_script else name)

    yield run
    for name in {path.stem for path in tmp_path.glob("*.py")} - before:
        sys.modules.pop(name, None)


def numbers(printed, row):
    """The numbers behind each row that a table has under this name."""
    found = re.findall(rf"\b{row}((?: +[\d.]+)+)$", printed, re.MULTILINE)
    return [[float(number) for number in line.split()] for line in found]


@pytest.mark.slow
def test_an_attack_of_ones_own_hides_and_reads_images(script, capsys):
    script("own_attack")
    printed = capsys.readouterr().out
    (upload,), (release,) = numbers(printed, "upload"), numbers(printed, "release")
    assert upload[0] > 0.7 and upload[1] == 1.0
    assert release[0] < 0.3 and release[1] < 0.3


def test_its_thumbnails_are_the_images_made_small_and_its_key_is_checked(script):
    own = script("own_attack", as_script=False)
    attack = own["Thumbnails"](own["ThumbnailSettings"](images=2))
    spec = ModelSpec(name="cnn", channels=3, size=28, classes=4)
    targets = torch.rand(2, 3, 14, 14).repeat_interleave(2, 2).repeat_interleave(2, 3)
    key = Key("thumbnails", settings={"images": 2, "tensor": "11.weight"})
    before = state_of(build(spec))
    plan = type("Plan", (), {"targets": targets, "key": key})
    after = attack.embed(before, spec, plan).state
    read = attack.extract(Artifact(spec, after), key).images
    small = torch.nn.functional.interpolate(targets, size=(14, 14), mode="area")
    wanted = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear")
    torch.testing.assert_close(read, wanted, rtol=0, atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close(after["11.weight"], before["11.weight"], rtol=1e-4, atol=0)
    attack.check_key(key, Artifact(spec, after))
    for wrong in ({"images": 10**6}, {"tensor": "nowhere"}, {"tensor": "1.weight"}, {"more": 1}):
        with pytest.raises(FlSimError, match="key of the attack 'thumbnails'"):
            attack.check_key(
                Key("thumbnails", settings=key.settings | wrong), Artifact(spec, after)
            )


@pytest.mark.slow
def test_a_defence_of_ones_own_takes_what_low_bits_held(script, capsys):
    script("own_defense")
    trained, rounded = numbers(capsys.readouterr().out, "strongest")
    assert trained[-2:] == [1.0, 1.0] and rounded[-2:] == [0.0, 0.0]


def test_it_rounds_to_the_nearest_value_of_so_few_bits(script):
    own = script("own_defense", as_script=False)
    model, entries = torch.nn.Linear(50, 20), {"extra": torch.randn(30)}
    before = model.weight.detach().clone()
    release = type("Release", (), {"model": model, "entries": entries})
    report = own["Rounding"](own["RoundingSettings"](bits=7)).apply(release)
    assert torch.equal(model.weight, before.bfloat16().float())
    assert not bool((entries["extra"].view(torch.int32) & 0xFFFF).any())
    assert 0 < report.relative_change["weight"] < 2**-8


@pytest.mark.slow
def test_images_of_ones_own_come_from_a_file_and_from_a_source(script, tmp_path, capsys):
    script("own_dataset")
    assert [row[1] for row in numbers(capsys.readouterr().out, "release")] == [16.0, 16.0]
    assert (tmp_path / "own-dataset" / "stripes.npz").exists()
    tables = [read_table(tmp_path / "own-dataset" / n / "results.csv") for n in ("file", "source")]
    assert [set(table["dataset"]) for table in tables] == [{"stripes"}, {"stripes"}]


@pytest.mark.slow
def test_a_network_of_ones_own_in_verbs_and_scenarios(script, tmp_path, capsys):
    script("own_model")
    printed = capsys.readouterr().out
    (leak,) = numbers(printed, "strongest")
    assert leak[0] > 0.7
    assert len(numbers(printed, "release")) == 3
    runs = {path.parent.name.partition("-honest")[0] for path in tmp_path.glob("runs/*/*.csv")}
    assert len(runs) == 3 and any("own_model:make" in name for name in runs)


@pytest.mark.slow
def test_a_checkpoint_of_ones_own_is_found_out_and_cleaned(script, tmp_path):
    example = script("own_checkpoint", as_script=False)["example"]
    came, leaves = example(tmp_path, images=16, steps=4)
    assert came.outcome == "carries" and leaves.outcome == "clean"
    assert torch.load(tmp_path / "leaves.pth", weights_only=True)["fc.weight"].shape == (4, 512)


@pytest.mark.slow
def test_the_same_attack_in_both_modes(script, capsys):
    script("compare_modes")
    printed = capsys.readouterr().out
    uploads, averages = numbers(printed, "upload"), numbers(printed, "aggregate")
    assert len(uploads) == 3 and len(averages) == 2
    assert min(row[1] for row in uploads) > 0.8 > averages[0][1]


# --------------------------------------------------------------------------- the Flower app


@pytest.fixture
def app(monkeypatch):
    """The app's modules, as Flower imports them."""
    monkeypatch.syspath_prepend(str(QUICKSTART))
    import flower_quickstart.client_app  # type: ignore[import-not-found]
    import flower_quickstart.server_app  # type: ignore[import-not-found]

    yield flower_quickstart
    for name in [name for name in sys.modules if name.split(".")[0] == "flower_quickstart"]:
        del sys.modules[name]


def serve(app, main, out):
    """Run a server's main function with two of the app's clients in this process."""
    config: Any = {
        "rounds": 2,
        "local-epochs": 1,
        "learning-rate": 0.02,
        "data": "",
        "out": str(out),
    }
    client = ClientApp()

    def configured(call):
        def handle(message: Message, context: Context) -> Message:
            context.run_config = config
            return call(message, context)

        return handle

    client.train()(configured(app.client_app.train))
    client.evaluate()(configured(app.client_app.evaluate))
    grid = InProcessGrid(client, 2)
    torch.manual_seed(0)
    main(grid, Context(1, 1, {}, RecordDict(), config))
    return torch.load(out, weights_only=True)


def test_the_readmes_two_lines_are_all_that_the_defence_needs(app, tmp_path, monkeypatch):
    """Without the two lines it is a plain Flower app, which runs too."""
    readme, source = (QUICKSTART / "README.md").read_text(), SERVER.read_text()
    added = re.findall(r"^\+(.+)$", readme, re.MULTILINE)
    assert len(added) == 2 and all(source.count(f"{line}\n") == 1 for line in added)
    plain = source
    for line in added:
        plain = plain.replace(f"{line}\n", "")
    assert "Defended" not in plain and "fl_sim" not in plain
    calls = []
    from fl_sim.verbs.arrays import Cleaning

    original = Cleaning.__call__

    def counted(*given):
        calls.append(1)
        return original(*given)

    monkeypatch.setattr(Cleaning, "__call__", counted)
    cleaned = serve(app, app.server_app.main, tmp_path / "cleaned.pt")
    assert len(calls) == 2
    module = type(sys)("flower_quickstart.plain_app")
    module.__package__ = "flower_quickstart"
    exec(compile(plain, "plain_app.py", "exec"), vars(module))
    trained = serve(app, module.main, tmp_path / "plain.pt")
    assert len(calls) == 2
    assert {n: v.dtype for n, v in cleaned.items()} == {
        n: v.dtype for n, v in app.task.Net().state_dict().items()
    }
    assert trained.keys() == cleaned.keys()


def test_the_apps_data_may_be_a_file(app, tmp_path):
    file, images = tmp_path / "own.npz", np.random.default_rng(0).integers(0, 256, (6, 28, 28, 3))
    np.savez(file, train_images=images.astype(np.uint8), train_labels=np.arange(6)[:, None] % 4)
    pixels, labels = app.task.load("train", str(file))
    assert pixels.shape == (6, 3, 28, 28) and labels.tolist() == [0, 1, 2, 3, 0, 1]
    share, _ = app.task.share((pixels, labels), 1, 4)
    assert torch.equal(share, pixels[[1, 5]])
