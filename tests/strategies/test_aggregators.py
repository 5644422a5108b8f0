import subprocess
import sys

import pytest
from flwr.serverapp import strategy as flower

from fl_sim.errors import FlSimError
from strategies.base import STRATEGIES, build_aggregator, check_strategy
from strategies.clipping import NormClippedFedAvg

NAMES = {
    "bulyan": flower.Bulyan,
    "fedadagrad": flower.FedAdagrad,
    "fedadam": flower.FedAdam,
    "fedavg": flower.FedAvg,
    "fedavgm": flower.FedAvgM,
    "fedmedian": flower.FedMedian,
    "fedprox": flower.FedProx,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "fedyogi": flower.FedYogi,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "normclipping": NormClippedFedAvg,
}


def test_all_are_registered_and_build():
    assert STRATEGIES.names() == sorted(NAMES)
    for name, kind in NAMES.items():
        assert type(build_aggregator(name).strategy) is kind


def test_listing_them_imports_no_flower():
    code = (
        "import sys; from strategies.base import STRATEGIES; assert STRATEGIES.names();"
        "assert not {'flwr', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_keys_reach_the_strategy():
    assert build_aggregator("fedprox").strategy.proximal_mu == 0.1
    adam = build_aggregator("fedadam", {"eta": 0.5, "beta_1": 0.8, "tau": 0.25}).strategy
    assert (adam.eta, adam.beta_1, adam.beta_2, adam.tau) == (0.5, 0.8, 0.99, 0.25)
    assert build_aggregator("fedtrimmedavg", {"beta": 0.3}).strategy.beta == 0.3
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
