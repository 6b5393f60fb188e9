"""FedAvg with its defaults; notes when each round began, by the clock of the machine."""

import json
import logging
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class _RoundClock(logging.Handler):
    """Flower's strategy logs "[ROUND i/n]" as a round begins: each mark is a time.monotonic() of that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("[ROUND"):
            self.marks.append(time.monotonic())


@app.main()
def main(grid: Grid, context: Context) -> None:
    nodes = int(context.run_config["nodes"])
    clock = _RoundClock()
    logging.getLogger("flwr").addHandler(clock)
    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    start = ArrayRecord({"w": Array(np.zeros(31))})
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=int(context.run_config["rounds"]))
    clock.marks.append(time.monotonic())
    metrics = {str(k): dict(v) for k, v in result.evaluate_metrics_clientapp.items()}
    report = {"marks": clock.marks, "evaluated": metrics}
    Path(str(context.run_config["report"])).write_text(json.dumps(report))
