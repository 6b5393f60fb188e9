"""Model families as data: names, shapes and the order in which parameters stand in the flat vector.

The flat vector is what crosses: float64, little-endian, tensors in the order of `parameter_shapes`, row-major.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from protocol.architectures import NETWORKS, NetworkModel, PredictingNetwork, UNet, misfit
from protocol.dataset import MaskLabel, NumberLabel, Outcome, SurvivalLabel
from protocol.graph import MAX_PARAMETERS as MAX_PARAMETERS
from protocol.graph import ExportedGraph, ExportRefused
from protocol.graph_shapes import measure
from protocol.identifiers import Frozen
from protocol.media import Shape

MAX_INTERVALS = 50
COX = frozenset({"cox", "coxph", "cox_ph", "cox_partial_likelihood", "cox_proportional_hazards", "deepsurv"})


class LogisticRegression(Frozen):
    """sigmoid(w . x + b), binary cross-entropy."""

    architecture: Literal["logistic_regression"]


class MultilayerPerceptron(Frozen):
    """tanh hidden layers, one logit, binary cross-entropy."""

    architecture: Literal["mlp"]
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1, max_length=4)]


class DiscreteTimeSurvival(Frozen):
    """One logit for each interval of the schema's survival label: the log-odds of the event in it for a patient who
    lived to its beginning (Brown 1975). tanh hidden layers, or none. The loss is the person-period binary
    cross-entropy, which is a sum over patients, so that clipping one bounds what one can do."""

    architecture: Literal["discrete_time_survival"]
    intervals: Annotated[int, Field(ge=1, le=MAX_INTERVALS)]
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(max_length=4)] = ()


class LinearRegression(Frozen):
    """w . x + b for a label of kind number, in units of its scale; half the squared error."""

    architecture: Literal["linear_regression"]


TableModel = LogisticRegression | LinearRegression | MultilayerPerceptron | DiscreteTimeSurvival
Model = TableModel | NetworkModel | ExportedGraph


def _refuse_cox(value: Any) -> Any:
    if isinstance(value, dict) and str(value.get("architecture")).lower().replace("-", "_") in COX:
        raise ValueError(
            "the Cox partial likelihood couples patients, so clipping does not bound its sensitivity: use "
            "discrete_time_survival"
        )
    return value


ModelSpec = Annotated[Annotated[Model, Field(discriminator="architecture")], BeforeValidator(_refuse_cox)]


def layer_widths(model: TableModel, inputs: int) -> tuple[int, ...]:
    """(inputs, hidden ..., outputs)."""
    hidden = () if isinstance(model, LogisticRegression | LinearRegression) else model.hidden
    return (inputs, *hidden, model.intervals if isinstance(model, DiscreteTimeSurvival) else 1)


Loss = Literal["logistic", "hazard", "squared"]


def loss_of(model: Model) -> Loss:
    """What is minimised, by the name that `privacy.local.outcome` gives it."""
    if isinstance(model, ExportedGraph):
        return model.loss
    if isinstance(model, PredictingNetwork):
        return model.loss
    if isinstance(model, DiscreteTimeSurvival):
        return "hazard"
    return "squared" if isinstance(model, LinearRegression) else "logistic"


def label_misfit(model: Model, label: Outcome) -> str | None:
    """Why the model can't learn this outcome; None where it can."""
    if isinstance(model, ExportedGraph):
        return _graph_misfit(model, label)
    if isinstance(model, UNet) != isinstance(label, MaskLabel):
        return (
            f"{model.architecture} and the data set's label do not fit: unet, and no other, learns a label of kind mask"
        )
    edges = len(label.edges) if isinstance(label, SurvivalLabel) else 0
    intervals = model.intervals if isinstance(model, DiscreteTimeSurvival | PredictingNetwork) else 0
    if intervals != edges:
        return (
            f"the model predicts {intervals or 'no'} survival intervals and the data set's label has "
            f"{edges or 'none'}: discrete_time_survival, or a network with loss: hazard, needs a label with as many "
            "edges, other models one without"
        )
    if (loss_of(model) == "squared") != isinstance(label, NumberLabel):
        return (
            f"{model.architecture} and the data set's label do not fit: linear_regression, or a network with loss: "
            "squared, needs a label of kind number, other models one with an operator and a value"
        )
    return None


def model_misfit(model: Model, shape: Shape) -> str | None:
    """Why the model can't take records of this shape, or has more than 50 million parameters; None where it can."""
    if isinstance(model, NETWORKS):
        reason = misfit(model, shape)
    elif isinstance(model, ExportedGraph):
        fits = model.input == tuple(shape)
        reason = None if fits else f"the graph takes records of shape {model.input}, the data set has {tuple(shape)}"
    else:
        reason = (
            None if len(shape) == 1 else f"{model.architecture} takes a table, and the data set holds other records"
        )
    if reason is None and (count := parameter_count(model, shape)) > MAX_PARAMETERS:
        reason = f"the model has {count} parameters; at most {MAX_PARAMETERS} are taken"
    return reason


def _graph_misfit(graph: ExportedGraph, label: Outcome) -> str | None:
    """Every operator is checked here, whoever sent the graph: a plan that holds it is refused as a whole otherwise."""
    try:
        outputs = measure(graph).outputs
    except ExportRefused as error:
        return f"{error.message} {error.remedy}"
    loss, wanted = "logistic", 1
    if isinstance(label, MaskLabel):
        return "a graph predicts one row of outputs, and the data set's label is a mask: use unet"
    if isinstance(label, SurvivalLabel):
        loss, wanted = "hazard", len(label.edges)
    elif isinstance(label, NumberLabel):
        loss = "squared"
    if (graph.loss, outputs) != (loss, wanted):
        return (
            f"the graph has {outputs} outputs and was packed for the {graph.loss} loss; the data set's label needs "
            f"{wanted} and {loss}"
        )
    return None


def parameter_shapes(model: Model, inputs: int | Shape) -> list[tuple[str, Shape]]:
    """(name, shape) of each tensor in wire order; weights are (out, in) as in torch.nn.Linear.

    inputs: the shape of one encoded record; a number D stands for (D,).
    """
    shape = (inputs,) if isinstance(inputs, int) else inputs
    if isinstance(model, NETWORKS):
        return model.tensors(shape)
    if isinstance(model, ExportedGraph):
        return model.tensors()
    (width,) = shape
    widths = layer_widths(model, width)
    shapes: list[tuple[str, tuple[int, ...]]] = []
    for layer in range(len(widths) - 1):
        shapes.append((f"layers.{layer}.weight", (widths[layer + 1], widths[layer])))
        shapes.append((f"layers.{layer}.bias", (widths[layer + 1],)))
    return shapes


def parameter_count(model: Model, inputs: int | Shape) -> int:
    """Length of the flat vector, for records of the shape `inputs`."""
    return sum(math.prod(shape) for _, shape in parameter_shapes(model, inputs))
