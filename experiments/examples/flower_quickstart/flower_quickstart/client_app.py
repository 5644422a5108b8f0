"""The clients, as in any Flower app."""

from typing import cast

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from . import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the network on this client's images."""
    net, data = _ready(message, context, "train")
    config = context.run_config
    epochs, rate = cast(int, config["local-epochs"]), cast(float, config["learning-rate"])
    loss = task.train(net, data, epochs, rate)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(data[1])})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the network on this client's part of the test images."""
    net, data = _ready(message, context, "test")
    metrics = MetricRecord({"accuracy": task.accuracy(net, data), "num-examples": len(data[1])})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def _ready(message: Message, context: Context, split: str) -> tuple[task.Net, task.Data]:
    arrays = cast(ArrayRecord, message.content["arrays"])
    net = task.Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    number, of = context.node_config["partition-id"], context.node_config["num-partitions"]
    whole = task.load(split, str(context.run_config["data"]))
    return net, task.share(whole, cast(int, number), cast(int, of))
