"""What a researcher's graph costs a site, beside the listed family of the same sizes.

python packaging/bench/exported_graph.py
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from interleaved import row

WIDTHS, RECORDS, STEPS = (64, 64, 32, 1), 256, 20
GOALS = {"exported graph mlp": 1.1, "exported graph mlp, layers declared in another order": 2.0}


def rows() -> list[dict[str, Any]]:
    """The clipped sum of 256 patients' gradients, 64-64-32-1, one thread: a graph's over the family's. vmap: what the
    same graph costs where no layers can be made of it."""
    import numpy as np
    import torch
    from torch import nn

    from privacy.local.graph_network import GraphNetwork, graph_model
    from privacy.local.network import Network
    from privacy.local.outcome import TorchOutcome
    from privacy.local.patients import Group
    from privacy.local.torch_model import TorchModel
    from protocol.exported import read_exported

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

    listed, outcome = Network(WIDTHS, "logistic"), TorchOutcome("logistic", 1)
    random = np.random.default_rng(0)
    people = Group(
        random.normal(size=(RECORDS, 64)), random.integers(0, 2, RECORDS).astype(float), np.arange(RECORDS), RECORDS
    )
    vector = random.normal(size=listed.parameters) / 8

    def steps(model: Any, count: int = STEPS) -> Any:
        return lambda: [model.gradient_sum(vector, people, 1.0) for _ in range(count)]

    found = []
    for name, module in zip(GOALS, (listed.module(), Reversed()), strict=True):
        file = io.BytesIO()
        torch.export.save(torch.export.export(module.eval(), (torch.zeros(1, 64),)), file)
        graph, _ = read_exported(file.getvalue())
        slow = TorchModel(
            lambda graph=graph: GraphNetwork(graph), outcome.loss, outcome.score, engine="vmap", **outcome.arguments()
        )  # fmt: skip
        of = "the family mlp of the same sizes"
        before = row(name, steps(slow, 2), steps(listed), 2, 1.0, of, floor_times=STEPS)
        ours = steps(graph_model(graph, "logistic", 1))
        found.append(row(name, ours, steps(listed), STEPS, GOALS[name], of, turns=11, vmap=before["ratio"]))
    return found


if __name__ == "__main__":
    print(json.dumps(rows(), indent=2))
