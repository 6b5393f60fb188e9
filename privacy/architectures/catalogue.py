"""The networks by name: a closed table, so that a document can choose one and can't bring its own.

torch is imported here, so import this module where a model is computed and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from privacy.architectures.convolutional import ConvolutionalNetwork, ResidualNetwork, TemporalConvolution
from privacy.architectures.recurrent import RecurrentNetwork
from privacy.architectures.segmentation import UNet, dice, mask_loss
from privacy.architectures.transformer import Transformer
from privacy.local.outcome import TorchOutcome
from privacy.local.torch_model import TorchModel

MODULES: Mapping[str, Callable[..., nn.Module]] = {
    "cnn": ConvolutionalNetwork,
    "resnet": ResidualNetwork,
    "unet": UNet,
    "cnn_1d": TemporalConvolution,
    "gru": RecurrentNetwork,
    "transformer": Transformer,
}


def build(architecture: str, shape: Sequence[int], sizes: Mapping[str, Any]) -> nn.Module:
    """The module for records of `shape`; sizes: its class's keyword arguments, loss and intervals apart. KeyError for
    another name."""
    own = {name: value for name, value in sizes.items() if name not in ("loss", "intervals")}
    if sizes.get("intervals"):
        own["outputs"] = sizes["intervals"]
    return MODULES[architecture](tuple(shape), **own)


def network(architecture: str, shape: Sequence[int], sizes: Mapping[str, Any]) -> TorchModel:
    """The network as a site trains and evaluates it: for its `loss` (see `privacy.local.outcome`), logistic by default;
    or for a unet masks, `mask_loss` and the Dice score of a record."""
    outcome = TorchOutcome(sizes.get("loss", "logistic"), sizes.get("intervals") or 1)
    if architecture == "unet":
        return TorchModel(lambda: build(architecture, shape, sizes), mask_loss, outcome.score, fit=dice)
    return TorchModel(lambda: build(architecture, shape, sizes), outcome.loss, outcome.score, **outcome.arguments())
