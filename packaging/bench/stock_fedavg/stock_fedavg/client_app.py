"""One site of the yardstick: a logistic regression on 30 features, one pass of gradient descent a round."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def _patients(node_id: int) -> tuple[np.ndarray, np.ndarray]:
    source = np.random.default_rng(node_id)
    x = source.normal(size=(140, 30))
    y = (x @ np.linspace(-1, 1, 30) + source.normal(size=140) > 0).astype(float)
    return np.hstack([x, np.ones((140, 1))]), y


@app.train()
def train(message: Message, context: Context) -> Message:
    x, y = _patients(context.node_id)
    w = message.content["arrays"]["w"].numpy()
    for _ in range(10):
        w = w - 0.1 * x.T @ (1 / (1 + np.exp(-x @ w)) - y) / len(y)
    content = {"arrays": ArrayRecord({"w": Array(w)}), "metrics": MetricRecord({"num-examples": len(y)})}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    x, y = _patients(context.node_id)
    right = float(np.mean((x @ message.content["arrays"]["w"].numpy() > 0) == (y > 0)))
    metrics = MetricRecord({"accuracy": right, "num-examples": len(y)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
