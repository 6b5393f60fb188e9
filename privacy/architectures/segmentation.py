"""A U-Net for masks (Ronneberger et al. 2015), normalised over groups of one record's channels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, max_pool2d, relu

from privacy.architectures.convolutional import Normalised


class DoubleConvolution(nn.Module):
    """Two 3x3 convolutions, each normalised and rectified."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Normalised(2, inputs, outputs, 3)
        self.second = Normalised(2, outputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(R, inputs, h, w) -> (R, outputs, h, w)."""
        return relu(self.second(relu(self.first(x))))


class UNet(nn.Module):
    """(R, channels, height, width) -> (R, height, width) logits."""

    def __init__(self, shape: Sequence[int], *, widths: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.ModuleList(DoubleConvolution(a, b) for a, b in pairwise((shape[0], *widths)))
        self.up = nn.ModuleList(DoubleConvolution(below + width, width) for width, below in pairwise(widths))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """A logit for each pixel of each record."""
        past: list[Tensor] = []
        for level, stage in enumerate(self.down):
            x = stage(x if level == 0 else max_pool2d(x, 2))
            past.append(x)
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat([interpolate(x, scale_factor=2.0, mode="nearest"), past[level]], dim=1))
        logits: Tensor = self.head(x)[:, 0]
        return logits


def mask_loss(outputs: Tensor, masks: Tensor) -> Tensor:
    """(r, h, w) logits and masks of 0 and 1 -> (r,): mean cross-entropy of the pixels plus 1 - soft Dice (Milletari et
    al. 2016), each of its record alone."""
    entropy = binary_cross_entropy_with_logits(outputs, masks, reduction="none").mean((1, 2))
    chances = torch.sigmoid(outputs)
    both, either = (chances * masks).sum((1, 2)), chances.sum((1, 2)) + masks.sum((1, 2))
    return entropy + 1.0 - (2.0 * both + 1.0) / (either + 1.0)


def dice(outputs: Tensor, masks: Tensor) -> Tensor:
    """(r, h, w) logits and masks -> (r,) in [0, 1]: 2 |A and B| / (|A| + |B|) of the pixels with a chance of at least
    1/2; 1 where both are empty."""
    found = (outputs >= 0).to(masks.dtype)
    both, either = (found * masks).sum((1, 2)), found.sum((1, 2)) + masks.sum((1, 2))
    return torch.where(either > 0, 2.0 * both / either.clamp(min=1.0), torch.ones_like(either))
