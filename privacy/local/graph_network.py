"""A researcher's graph as a model of a site.

Two modules compute the same. `GraphNetwork` interprets the graph node by node on one record, as it is written: it is
the reference, and its gradients come through torch.func.vmap over grad. `privacy.local.graph_layers` takes many records
and holds the parameters in layers that the book-keeping engine knows. Whatever a graph's operators do, no record's
output or gradient depends on another patient's: in both there is no axis of patients that an operator could reach.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from privacy.entropy import Float64
from privacy.local.graph_layers import layered_module
from privacy.local.graph_operators import Graph, require_listed, run_node
from privacy.local.outcome import Loss, TorchOutcome
from privacy.local.torch_model import TorchModel


class GraphNetwork(nn.Module):
    """The graph as a torch module (float32) over (1, *input) -> (1, J). Parameters p0, p1 ... in wire order (0).

    The graph must have been checked before (`protocol.graph_shapes.measure`); an operator that is not in the table
    raises ParameterError here all the same.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        require_listed(graph)
        self._graph = graph
        for place, shape in enumerate(graph.parameters):
            self.register_parameter(f"p{place}", nn.Parameter(torch.zeros(tuple(shape))))

    def forward(self, x: Tensor) -> Tensor:
        """One record, (1, *input) -> (1, J)."""
        values: dict[str, Tensor] = dict(self.named_parameters())
        values["x"] = x
        for place, node in enumerate(self._graph.nodes):
            values[f"n{place}"] = run_node(node, values)
        return values[self._graph.output]


def graph_outputs(graph: Graph, parameters: Float64, records: Float64) -> Float64:
    """(N, *input) encoded records -> (N, J) outputs, each record by itself. parameters: (P,) in wire order."""
    module, start = GraphNetwork(graph), 0
    with torch.no_grad():
        for parameter in module.parameters():
            values = torch.from_numpy(np.array(parameters[start : start + parameter.numel()]))
            parameter.copy_(values.reshape(parameter.shape))
            start += parameter.numel()
        found = [module(record.unsqueeze(0)) for record in torch.from_numpy(records.astype(np.float32))]
        return torch.cat(found).double().numpy()


def graph_model(graph: Graph, loss: Loss, outputs: int) -> TorchModel:
    """A checked graph with `outputs` outputs as a LocalModel, each record by itself: through book-keeping where its
    parameters fit into layers, else with every patient's gradient at full length (vmap)."""
    outcome = TorchOutcome(loss, outputs)
    layered = layered_module(graph)
    if layered is None:
        return TorchModel(
            lambda: GraphNetwork(graph), outcome.loss, outcome.score, engine="vmap", **outcome.arguments()
        )
    return TorchModel(lambda: layered, outcome.loss, outcome.score, **outcome.arguments())
