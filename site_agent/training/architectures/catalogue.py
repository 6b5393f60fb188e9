"""From the plan's model to what computes it."""

from __future__ import annotations

from privacy.local.model import LocalModel
from privacy.local.network import Network
from protocol.model import Model, layer_widths, loss_of


def local_model(model: Model, inputs: int) -> LocalModel:
    """The plan's model over `inputs` encoded inputs. Keep it from round to round: its engine is warm then."""
    return Network(layer_widths(model, inputs), loss_of(model))
