"""The server: Flower's own, but for two lines."""

from typing import cast

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from strategies import Defended

from .task import Net, accuracy, load

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for some rounds, and write the model that leaves."""
    config = context.run_config
    path, out = str(config["data"]), str(config["out"])

    def central_accuracy(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        net = Net()
        net.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": accuracy(net, load("test", path))})

    strategy: Strategy = FedAvg(fraction_train=0.5, min_train_nodes=2)
    strategy = Defended(strategy, defense="lwlrd", model=Net, held_out=load("val", path))
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=cast(int, config["rounds"]),
        evaluate_fn=central_accuracy,
    )
    if out:
        torch.save(result.arrays.to_torch_state_dict(), out)
