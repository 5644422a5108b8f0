import pkgutil
import subprocess
import sys
from typing import Any

import pytest
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

import strategies.aggregators
from fl_sim.errors import FlSimError
from fl_sim.settings import Settings
from strategies.base import STRATEGIES, StrategyEntry, build_aggregator, check_strategy

NAMES = STRATEGIES.names()


def test_all_are_registered_and_build():
    files = {file.name for file in pkgutil.iter_modules(strategies.aggregators.__path__)}
    makers = {type(STRATEGIES.get(name).build(STRATEGIES.get(name).settings())) for name in NAMES}
    assert len(makers) == len(NAMES) >= len(files)
    for name in NAMES:
        aggregator = build_aggregator(name)
        assert isinstance(aggregator.strategy, Strategy)
        assert aggregator.name == name and aggregator.min_replies >= 1
        flowers = getattr(flower, type(aggregator.strategy).__name__, None)
        assert flowers is None or flowers.__name__.lower() == name


def test_listing_them_imports_no_flower():
    code = (
        "import sys; from strategies.base import STRATEGIES; assert STRATEGIES.names();"
        "assert not {'flwr', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_keys_reach_the_strategy():
    def built(name: str, **keys: float) -> Any:
        return build_aggregator(name, keys).strategy

    assert built("fedprox").proximal_mu == 0.1
    adam = built("fedadam", eta=0.5, beta_1=0.8, tau=0.25)
    assert (adam.eta, adam.beta_1, adam.beta_2, adam.tau) == (0.5, 0.8, 0.99, 0.25)
    assert built("fedtrimmedavg", beta=0.3).beta == 0.3
    assert build_aggregator("bulyan", {"num_malicious_nodes": 2}).min_replies == 11


def test_a_wrong_key_is_explained():
    with pytest.raises(FlSimError, match=r"\[aggregator\] has no key 'mu'.*proximal_mu"):
        build_aggregator("fedprox", {"mu": 1.0})


@pytest.mark.parametrize(
    ("name", "keys", "needed"),
    [
        ("krum", {"num_malicious_nodes": 1}, 5),
        ("multikrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 6}, 7),
        ("bulyan", {"num_malicious_nodes": 1}, 7),
    ],
)
def test_too_few_hospitals_are_told_up_front(name, keys, needed):
    check_strategy(name, keys, needed)
    with pytest.raises(FlSimError, match=f"'{name}' needs at least {needed} hospitals"):
        check_strategy(name, keys, needed - 1)


class NoKeys(Settings):
    pass


def nothing(settings) -> Any:
    return None


def stop(*arguments):
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (StrategyEntry(NoKeys, lambda settings: [][0]), "IndexError"),
        (StrategyEntry(NoKeys, stop), "SystemExit"),
        (StrategyEntry(NoKeys, nothing), "NoneType"),
        (StrategyEntry(NoKeys, lambda settings: flower.FedAvg(), stop), "SystemExit"),
    ],
)
def test_a_strategy_that_cannot_be_built_is_named(entry, word, monkeypatch):
    monkeypatch.setattr(STRATEGIES, "get", lambda name: entry)
    with pytest.raises(FlSimError, match=f"The strategy 'mine'.*{word}"):
        build_aggregator("mine")


def test_a_strategy_that_cannot_say_what_it_needs_is_named(monkeypatch):
    entry = StrategyEntry(NoKeys, lambda settings: flower.FedAvg(), stop)
    monkeypatch.setattr(STRATEGIES, "get", lambda name: entry)
    with pytest.raises(FlSimError, match="The strategy 'mine' failed: SystemExit"):
        check_strategy("mine", {}, 4)
