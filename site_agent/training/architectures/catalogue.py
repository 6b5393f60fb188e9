"""From the plan's model to what computes it."""

from __future__ import annotations

from privacy.local.model import LocalModel
from privacy.local.network import Network
from protocol.architectures import NETWORKS
from protocol.graph import ExportedGraph
from protocol.graph_shapes import measure
from protocol.media import Shape
from protocol.model import Model, layer_widths, loss_of


def local_model(model: Model, inputs: int | Shape) -> LocalModel:
    """The plan's model for encoded records of the shape `inputs`; a number D stands for (D,). Keep it from round to
    round: its engine is warm then."""
    shape = (inputs,) if isinstance(inputs, int) else inputs
    if isinstance(model, NETWORKS):
        from privacy.architectures.catalogue import network

        return network(model.architecture, shape, model.model_dump(exclude={"architecture"}))
    if isinstance(model, ExportedGraph):
        from privacy.local.graph_network import graph_model

        return graph_model(model, model.loss, measure(model).outputs)
    (width,) = shape
    return Network(layer_widths(model, width), loss_of(model))
