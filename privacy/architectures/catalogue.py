"""The networks by name: a closed table, so that a document can choose one and can't bring its own.

torch is imported here, so import this module where a model is computed and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from privacy.architectures.convolutional import ConvolutionalNetwork, ResidualNetwork, TemporalConvolution
from privacy.architectures.recurrent import RecurrentNetwork
from privacy.architectures.segmentation import UNet, dice, mask_loss
from privacy.architectures.transformer import Transformer
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
    """The module for records of `shape`; sizes: its class's keyword arguments. KeyError for another name."""
    return MODULES[architecture](tuple(shape), **sizes)


def network(architecture: str, shape: Sequence[int], sizes: Mapping[str, Any]) -> TorchModel:
    """The network as a site trains and evaluates it: a yes-or-no outcome, cross-entropy, the probability of yes; or for
    a unet masks, `mask_loss` and the Dice score of a record."""
    if architecture == "unet":
        return TorchModel(lambda: build(architecture, shape, sizes), mask_loss, probability, fit=dice)
    return TorchModel(lambda: build(architecture, shape, sizes), cross_entropy, probability)


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """(r, 1) logits and (r,) labels 0 or 1 -> (r,) losses."""
    return binary_cross_entropy_with_logits(outputs[:, 0], labels, reduction="none")


def probability(outputs: Tensor) -> Tensor:
    """(r, 1) logits -> (r,) in [0, 1]."""
    return torch.sigmoid(outputs[:, 0])
