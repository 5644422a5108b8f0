"""The examples run as they stand, and do what they say."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from experiments import examples
from experiments.scenario import Scenario
from fl_sim.engine.inprocess import InProcessGrid
from fl_sim.results import read_table
from strategies.base import build_aggregator

FOLDER = Path(examples.__file__).parent
QUICKSTART = FOLDER / "flower_quickstart"
SERVER = QUICKSTART / "flower_quickstart" / "server_app.py"


@pytest.mark.slow
def test_a_strategy_of_ones_own_runs_by_name(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.examples.own_strategy"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "release" in done.stdout
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


# --------------------------------------------------------------------------- the Flower app


@pytest.fixture
def app(monkeypatch):
    """The app's modules, as Flower imports them."""
    monkeypatch.syspath_prepend(str(QUICKSTART))
    import flower_quickstart.client_app
    import flower_quickstart.server_app

    yield flower_quickstart
    for name in [name for name in sys.modules if name.split(".")[0] == "flower_quickstart"]:
        del sys.modules[name]


def serve(app, main, out):
    """Run a server's main function with two of the app's clients in this process."""
    config = {"rounds": 2, "local-epochs": 1, "learning-rate": 0.02, "data": "", "out": str(out)}
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
    from strategies import any_app

    original = any_app.Cleaning.__call__
    monkeypatch.setattr(
        any_app.Cleaning, "__call__", lambda *given: calls.append(1) or original(*given)
    )
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
