"""FedAdam, FedYogi and FedAdagrad against Algorithm 2 of Reddi et al. 2021, by hand."""

import pytest
import torch

from strategies.base import STRATEGIES
from tests.engine.federation_kit import federate, halve, initial, settings

WEIGHT = "4.weight"
KEYS = {"eta": 0.02, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.01}
ROUNDS = 3


def mean(recorder, server_round):
    sizes = [recorder.metrics[server_round, h]["num-examples"] for h in range(4)]
    stack = torch.stack([recorder.uploads[server_round, h][WEIGHT] for h in range(4)]).double()
    share = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    return (share[:, None, None] * stack).sum(0)


def second_moment(name, before, delta, beta_2):
    """Lines 11, 12 and 13 of Algorithm 2: FedAdagrad, FedYogi, FedAdam."""
    square = delta**2
    if name == "fedadagrad":
        return before + square
    if name == "fedyogi":
        return before - (1 - beta_2) * square * torch.sign(before - square)
    return beta_2 * before + (1 - beta_2) * square


def algorithm_2(recorder, name, keys, correction):
    """The aggregate of every round, from moments that start at zero, as Flower's do."""
    beta_1, beta_2 = keys.get("beta_1", 0.0), keys.get("beta_2", 0.0)
    first = second = torch.zeros_like(initial()[WEIGHT]).double()
    results = []
    for server_round in range(1, ROUNDS + 1):
        sent = recorder.releases.get(server_round - 1, initial())[WEIGHT].double()
        delta = mean(recorder, server_round) - sent
        first = beta_1 * first + (1 - beta_1) * delta
        second = second_moment(name, second, delta, beta_2)
        factor = correction(server_round, beta_1, beta_2)
        results.append(sent + factor * keys["eta"] * first / (second.sqrt() + keys["tau"]))
    return results


def none(server_round, beta_1, beta_2):
    return 1.0


def adams(ahead):
    """The factor of Kingma and Ba 2015, section 2, some steps ahead."""

    def factor(server_round, beta_1, beta_2):
        step = server_round + ahead
        return (1 - beta_2**step) ** 0.5 / (1 - beta_1**step)

    return factor


def close(recorder, expected):
    return all(
        torch.allclose(recorder.aggregates[r + 1][WEIGHT].double(), value, rtol=0, atol=1e-6)
        for r, value in enumerate(expected)
    )


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("fedadam", adams(ahead=1), [none, adams(ahead=0)]),
        ("fedyogi", none, [adams(ahead=0), adams(ahead=1)]),
        ("fedadagrad", none, []),
    ],
)
def test_the_bias_correction_is_adams_and_fedadams_alone(name, right, wrong):
    keys = KEYS if name != "fedadagrad" else {"eta": 0.02, "tau": 0.01}
    recorder, _ = federate(settings(rounds=ROUNDS), name, keys, release=halve)
    assert close(recorder, algorithm_2(recorder, name, keys, right))
    for other in wrong:
        assert not close(recorder, algorithm_2(recorder, name, keys, other))


def test_statistics_are_averaged_and_not_stepped():
    for name in ("fedadam", "fedyogi", "fedadagrad"):
        stepped, _ = federate(settings(rounds=1), name)
        plain, _ = federate(settings(rounds=1))
        for entry in ("1.running_mean", "1.running_var"):
            assert torch.allclose(stepped.aggregates[1][entry], plain.aggregates[1][entry])
        assert not torch.equal(stepped.aggregates[1][WEIGHT], plain.aggregates[1][WEIGHT])


def test_the_lists_words_say_so():
    words = {entry.name: entry.summary for entry in STRATEGIES.entries()}
    assert "bias correction" in words["fedadam"]
    assert "bias correction" not in words["fedyogi"] + words["fedadagrad"]
