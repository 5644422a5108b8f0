"""Which elements carry, and in which order: true permutations, the same for both sides."""

import itertools
import zlib

import numpy as np
import pytest
import torch

from fl_sim.carriers.placement import BLOCK, Order, choose, permutation, tensor_by_tensor
from fl_sim.errors import FlSimError

STATE = {
    "layer10.weight": torch.zeros(2, 3),
    "layer2.weight": torch.zeros(4),
    "bn.running_mean": torch.zeros(5),
    "bn.running_var": torch.zeros(5),
    "bn.num_batches_tracked": torch.tensor(0),
    "index": torch.zeros(9, dtype=torch.int64),
    "empty": torch.zeros(0),
}


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_every_order_is_a_permutation(seed: int | None) -> None:
    sizes = [1, 2, 7, 127, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK + 3]
    for chosen in itertools.chain(
        ([n] for n in range(1, 2 * BLOCK + 2)), itertools.product(sizes, repeat=2), [sizes]
    ):
        order = Order(chosen, seed)
        ranks = np.concatenate([order.ranks(i) for i in range(len(chosen))])
        assert np.array_equal(np.sort(ranks), np.arange(sum(chosen))), chosen
        assert [len(order.ranks(i)) for i in range(len(chosen))] == list(chosen)


def test_blocks_and_the_rest_are_moved_by_the_seed() -> None:
    sizes = [40 * BLOCK + 300, 10 * BLOCK + 200]
    one, other = Order(sizes, 1), Order(sizes, 2)
    for a, b in ((one.block_ranks, other.block_ranks), (one.rest_ranks, other.rest_ranks)):
        assert np.mean(np.concatenate(a) == np.concatenate(b)) < 0.2
        # Uniform: a tensor's share of the first half is near its share of all.
        share = len(a[0]) / sum(map(len, a))
        half = np.concatenate(a) < sum(map(len, a)) / 2
        assert abs(half[: len(a[0])].sum() / half.sum() - share) < 0.15
    plain = Order(sizes, None)
    assert plain.ranks(0)[: 40 * BLOCK].tolist() == list(range(40 * BLOCK))


def test_the_keyed_order_stays_as_it_is() -> None:
    """Files outlive the program and the NumPy that wrote them."""
    assert permutation(8, 5).tolist() == [7, 4, 3, 5, 6, 2, 0, 1]
    ranks = Order([3 * BLOCK + 5, 2 * BLOCK], 5).ranks(0)
    assert zlib.crc32(ranks.astype("<i8").tobytes()) == 1607570549


def test_only_floating_point_tensors_that_match_are_chosen_in_natural_order() -> None:
    assert choose(STATE) == ["layer2.weight", "layer10.weight"]
    assert choose(dict(reversed(STATE.items()))) == choose(STATE)
    assert choose(STATE, ["*10*"]) == ["layer10.weight"]
    assert choose(STATE, exclude=["layer2.*"]) == ["layer10.weight"]
    assert choose(STATE, ["bn.*"], running_statistics=True) == ["bn.running_mean", "bn.running_var"]
    with pytest.raises(FlSimError, match=r"choose no floating-point tensor.*for example 'bn"):
        choose(STATE, ["Layer2.weight"])
    with pytest.raises(FlSimError, match="choose no"):
        choose({"index": STATE["index"]})


def test_tensor_by_tensor_begins_a_tensor_when_the_one_before_is_full() -> None:
    state = {"a": torch.zeros(700), "b": torch.zeros(30, 20), "c": torch.zeros(9)}
    ranked = dict(tensor_by_tensor(state, ["a", "b", "c"], 710, 3))
    assert list(ranked) == ["a", "b"]
    assert sorted(ranked["a"]) == list(range(700))
    assert sorted(ranked["b"]) == list(range(700, 1300))
    more = dict(tensor_by_tensor(state, ["a", "b", "c"], 1309, 3))
    assert all(np.array_equal(more[name], ranked[name]) for name in ranked)
