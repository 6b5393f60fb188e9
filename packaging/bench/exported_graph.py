"""What a researcher's graph costs a site, beside the listed family of the same sizes.

python packaging/bench/exported_graph.py
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from interleaved import row

RECORDS = 256
TURNS = 11


def rows() -> list[dict[str, Any]]:
    """The clipped sum of 256 patients' gradients, one thread: a graph's over the family's. vmap: what the same graph
    costs where no layers can be made of it."""
    import torch
    from torch import nn

    from privacy.architectures.catalogue import build, network
    from privacy.local.network import Network

    torch.set_num_threads(1)

    class Reversed(nn.Module):
        """The same network, its layers declared from the last to the first."""

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(32, 1)
            self.second, self.first = nn.Linear(64, 32), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.tanh(self.second(torch.tanh(self.first(x))))
            result: torch.Tensor = self.last(hidden)
            return result

    listed = Network((64, 64, 32, 1), "logistic")
    image, series = (1, 28, 28), (8, 96)
    cnn: dict[str, Any] = {"widths": (16, 32)}
    transformer: dict[str, Any] = {"patch": 4, "width": 32, "heads": 4, "layers": 2, "feedforward": 64}
    return [
        _row("exported graph mlp", listed.module(), listed, (64,), 1.1, 20),
        _row("exported graph mlp, layers declared in another order", Reversed(), listed, (64,), 2.0, 20),
        _row("exported graph cnn", build("cnn", image, cnn), network("cnn", image, cnn), image, 1.1, 1),
        _row("exported graph transformer", build("transformer", series, transformer),
             network("transformer", series, transformer), series, 1.25, 1),
    ]  # fmt: skip


def _row(name: str, module: Any, listed: Any, shape: tuple[int, ...], goal: float, times: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from privacy.local.graph_network import GraphNetwork, graph_model
    from privacy.local.outcome import TorchOutcome
    from privacy.local.patients import Group
    from privacy.local.torch_model import TorchModel
    from protocol.exported import read_exported

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), (torch.zeros(1, *shape),)).run_decompositions({})
    torch.export.save(program, file)
    graph, _ = read_exported(file.getvalue())
    random, outcome = np.random.default_rng(0), TorchOutcome("logistic", 1)
    x, y = random.normal(size=(RECORDS, *shape)), random.integers(0, 2, RECORDS).astype(float)
    people, vector = Group(x, y, np.arange(RECORDS), RECORDS), random.normal(size=listed.parameters) / 8

    def steps(model: Any, count: int) -> Callable[[], object]:
        return lambda: [model.gradient_sum(vector, people, 1.0) for _ in range(count)]

    slow = TorchModel(lambda: GraphNetwork(graph), outcome.loss, outcome.score, engine="vmap", **outcome.arguments())
    of = "the family of the same sizes"
    before = row(name, steps(slow, 1), steps(listed, times), 1, goal, of, floor_times=times, turns=3)
    ours = graph_model(graph, "logistic", 1)
    return row(name, steps(ours, times), steps(listed, times), times, goal, of, turns=TURNS, vmap=before["ratio"])


if __name__ == "__main__":
    print(json.dumps(rows(), indent=2))
