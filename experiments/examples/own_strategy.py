"""A strategy of one's own, by name: ``python -m experiments.examples.own_strategy`` runs it.

What a module registers is known to a scenario file that names it, ``plugins = ["my_module"]``:
``[federation]`` then takes ``strategy = "capped"`` and ``most = 100``. For a run from Python,
``run(..., strategy=CappedFedAvg(100))`` does without a registration.
"""

from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from pydantic import Field

from experiments.run.result import Result
from experiments.run.start import run
from fl_sim.settings import Settings
from strategies.base import STRATEGIES, StrategyEntry


class CappedFedAvg(FedAvg):
    """FedAvg in which no hospital counts for more than ``most`` images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Cap the weights, then average."""
        capped = list(replies)
        for reply in capped:
            for metrics in reply.content.metric_records.values():
                images = metrics[self.weighted_by_key]
                metrics[self.weighted_by_key] = min(images, self.most)
        return super().aggregate_train(server_round, capped)


class CappedSettings(Settings):
    """Keys of the strategy.

    Args:
        most: images that a hospital counts for at most.
    """

    most: int = Field(100, ge=1)


STRATEGIES.register("capped", "FedAvg in which no hospital outweighs all others")(
    StrategyEntry(CappedSettings, lambda settings: CappedFedAvg(settings.most))
)


def example(out: Path | None = None) -> Result:
    """Run a small federation of unequal hospitals on embedded images."""
    federation = {
        "hospitals": 3,
        "malicious": [],
        "rounds": 2,
        "strategy": {"name": "capped", "most": 50},
        "partition": {"scheme": "dirichlet", "alpha": 0.3},
        "engine": "inprocess",
    }
    images = {"name": "phantoms", "size": 16, "train": 240, "validation": 60, "test": 60}
    return run(
        {"mode": "federated", "dataset": images, "model": "cnn", "federation": federation}, out
    )


if __name__ == "__main__":
    print(example().summary().to_string())
