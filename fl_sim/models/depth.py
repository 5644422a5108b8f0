"""How deep each node of a traced graph lies: the longest path to it from the input."""

from collections.abc import Callable, Iterable

import torch
from torch import fx

_CONCATENATIONS = (torch.cat, torch.concat)


def depths(nodes: list[fx.Node], counts: Callable[[fx.Node], bool]) -> dict[fx.Node, int]:
    """Return for each node how many counted nodes the longest path from an input to it has.

    A chain of growing concatenations, in which each has all parts of the one before and more (a
    dense block), is one step: its layers all see the block's input.

    Args:
        nodes: in forward order.
        counts: whether a node is a step by itself, such as a convolution.
    """
    block_of = _dense_blocks(nodes)
    depth: dict[fx.Node, int] = {}
    above: dict[fx.Node, int] = {}  # by a block's first concatenation
    for node in nodes:
        before = max((depth[source] for source in node.all_input_nodes), default=0)
        first = block_of.get(node)
        if first is None:
            depth[node] = before + counts(node)
        else:
            depth[node] = above.setdefault(first, before) + 1
    return depth


def _dense_blocks(nodes: list[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Map each node inside a chain of growing concatenations to the first of these."""
    chains: list[list[fx.Node]] = []
    for node in nodes:
        if node.op != "call_function" or node.target not in _CONCATENATIONS:
            continue
        parts = set(node.all_input_nodes)
        chain = next((c for c in chains if set(c[-1].all_input_nodes) < parts), None)
        if chain is None:
            chains.append([node])
        else:
            chain.append(node)
    result: dict[fx.Node, fx.Node] = {}
    for chain in (c for c in chains if len(c) > 1):
        after = _reached(chain[:1], lambda node: node.users)
        before = _reached(chain[-1:], lambda node: node.all_input_nodes)
        result.update((node, chain[0]) for node in nodes if node in after and node in before)
    return result


def _reached(start: list[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(step(node))
    return found
