"""Shared by all tests: one thread a process, as in every worker, and what takes long, first."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, lest one process work on while others are done."""
    marked = ("slow", "ray")
    slow = {item.path for item in items if any(item.get_closest_marker(m) for m in marked)}
    items.sort(key=lambda item: item.path not in slow)
