"""Convolutional networks for images and for sequences, normalised over groups of one record's channels.

Parameters stand in the order of `Module.parameters()`, which is the order of the flat vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import max_pool1d, max_pool2d, relu


def groups_of(width: int) -> int:
    """Groups of a GroupNorm over `width` channels: up to 8, of two channels or more (Wu and He 2018)."""
    return math.gcd(width // 2, 8)


class Normalised(nn.Module):
    """A convolution without bias, padded to keep the size at stride 1, and the GroupNorm after it."""

    def __init__(self, axes: int, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        layer = nn.Conv1d if axes == 1 else nn.Conv2d
        self.convolution = layer(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.GroupNorm(groups_of(outputs), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(R, inputs, ...) -> (R, outputs, ...)."""
        result: Tensor = self.norm(self.convolution(x))
        return result


class ConvolutionalNetwork(nn.Module):
    """(R, channels, height, width) -> (R, outputs)."""

    def __init__(self, shape: Sequence[int], *, widths: Sequence[int], outputs: int = 1) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Normalised(2, a, b, 3) for a, b in pairwise((shape[0], *widths)))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """What is predicted of each record."""
        for stage in self.stages:
            x = max_pool2d(relu(stage(x)), 2)
        logit: Tensor = self.head(x.mean((2, 3)))
        return logit


class TemporalConvolution(nn.Module):
    """(R, channels, length) -> (R, outputs)."""

    def __init__(self, shape: Sequence[int], *, widths: Sequence[int], kernel: int, outputs: int = 1) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Normalised(1, a, b, kernel) for a, b in pairwise((shape[0], *widths)))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """What is predicted of each record."""
        for stage in self.stages:
            x = max_pool1d(relu(stage(x)), 2)
        logit: Tensor = self.head(x.mean(2))
        return logit


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and what goes past them (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, *, halve: bool) -> None:
        super().__init__()
        self.first = Normalised(2, inputs, outputs, 3, 2 if halve else 1)
        self.second = Normalised(2, outputs, outputs, 3)
        self.shortcut = Normalised(2, inputs, outputs, 1, 2) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(R, inputs, h, w) -> (R, outputs, h, w), or half the size."""
        return relu(self.second(relu(self.first(x))) + self.shortcut(x))


class ResidualNetwork(nn.Module):
    """(R, channels, height, width) -> (R, outputs)."""

    def __init__(
        self, shape: Sequence[int], *, widths: Sequence[int], blocks: int, stem: str, outputs: int = 1
    ) -> None:
        super().__init__()
        self._large = stem == "large"
        self.stem = Normalised(2, shape[0], widths[0], 7, 2) if self._large else Normalised(2, shape[0], widths[0], 3)
        inputs = (widths[0], *widths[:-1])
        self.stages = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(width if block else before, width, halve=block == 0 and stage > 0)
                for block in range(blocks)
            )
            for stage, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """What is predicted of each record."""
        x = relu(self.stem(x))
        if self._large:
            x = max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x)
        logit: Tensor = self.head(x.mean((2, 3)))
        return logit
