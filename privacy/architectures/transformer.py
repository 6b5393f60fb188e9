"""A small encoder over the patches of an image or of a sequence (Vaswani et al. 2017; Dosovitskiy et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward part (Xiong et al. 2020), without dropout: noise is drawn elsewhere."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self._heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, feedforward)
        self.narrow = nn.Linear(feedforward, width)

    def forward(self, x: Tensor) -> Tensor:
        """(R, tokens, width), the same."""
        records, tokens, width = x.shape
        parts = self.queries_keys_values(self.attention_norm(x)).reshape(records, tokens, 3, self._heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        found = scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(records, tokens, width)
        x = x + self.mixed(found)
        result: Tensor = x + self.narrow(gelu(self.wide(self.feedforward_norm(x))))
        return result


class Transformer(nn.Module):
    """(R, channels, length) or (R, channels, height, width) -> (R, outputs)."""

    def __init__(
        self,
        shape: Sequence[int],
        *,
        patch: int,
        width: int,
        heads: int,
        layers: int,
        feedforward: int,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self._patch = patch
        self._tokens = math.prod(size // patch for size in shape[1:])
        self.embed = nn.Linear(shape[0] * patch ** (len(shape) - 1), width)
        self.position = nn.Embedding(self._tokens, width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, feedforward) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """What is predicted of each record."""
        places = torch.arange(self._tokens, device=x.device).expand(x.shape[0], -1)
        tokens = self.embed(patches(x, self._patch)) + self.position(places)
        for layer in self.layers:
            tokens = layer(tokens)
        logit: Tensor = self.head(self.norm(tokens).mean(1))
        return logit


def patches(x: Tensor, patch: int) -> Tensor:
    """(R, C, L) -> (R, L / patch, C patch), or (R, C, H, W) -> (R, H W / patch^2, C patch^2); row by row."""
    records, channels = x.shape[:2]
    if x.ndim == 3:
        cut = x.reshape(records, channels, -1, patch).permute(0, 2, 1, 3)
    else:
        high, wide = x.shape[2] // patch, x.shape[3] // patch
        cut = x.reshape(records, channels, high, patch, wide, patch).permute(0, 2, 4, 1, 3, 5)
        cut = cut.reshape(records, high * wide, channels, -1)
    return cut.flatten(2)
