"""The models of the DP step's bench, small enough for one core, without dropout or batch statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 2))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group normalisation beside a skip (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.GroupNorm(8, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(8, outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(8, outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(inner)) + self.skip(x))


class ResNet18(nn.Module):
    """ResNet-18 with group normalisation: 11.2 million parameters."""

    def __init__(self, classes: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.GroupNorm(8, 64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks, width = [], 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [ResidualBlock(width, outputs, stride), ResidualBlock(outputs, outputs, 1)]
            width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class TransformerBlock(nn.Module):
    """Attention and a feed-forward layer, each normalised before (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        records, steps, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).reshape(records, steps, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(records, steps, width))
        return x + self.down(functional.gelu(self.up(self.feed_norm(x))))


def waves(steps: int, width: int) -> Tensor:
    """(steps, width): positions as sines and cosines (Vaswani et al. 2017)."""
    angles = torch.arange(steps)[:, None] * torch.exp(torch.arange(0, width, 2) * (-9.21 / width))
    return torch.stack([angles.sin(), angles.cos()], dim=2).reshape(steps, width)


class Transformer(nn.Module):
    """Two blocks over 64 tokens of a vocabulary of 1000."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(1000, 128)
        self.blocks = nn.Sequential(*[TransformerBlock(128, 4) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(128), nn.Linear(128, 2)
        self.register_buffer("positions", waves(64, 128))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(x) + self.positions)).mean(1))


@dataclass(frozen=True)
class Setting:
    """One model with its batch and the goal for its ratio to plain SGD."""

    make: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    goal: float


SETTINGS = {
    "mlp": Setting(mlp, lambda: (torch.randn(256, 128), torch.randint(2, (256,))), 1.25),
    "resnet18-gn": Setting(ResNet18, lambda: (torch.randn(32, 3, 64, 64), torch.randint(8, (32,))), 1.4),
    "transformer": Setting(Transformer, lambda: (torch.randint(1000, (32, 64)), torch.randint(2, (32,))), 1.15),
    "cnn": Setting(cnn, lambda: (torch.randn(64, 1, 28, 28), torch.randint(10, (64,))), 1.5),
}
