"""A gated recurrent unit over a sequence (Cho et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class RecurrentNetwork(nn.Module):
    """(R, channels, length) -> (R, outputs): a logit of the last step's state."""

    def __init__(self, shape: Sequence[int], *, hidden: int, layers: int, outputs: int = 1) -> None:
        super().__init__()
        self.recurrent = nn.GRU(shape[0], hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """What is predicted of each record."""
        states, _ = self.recurrent(x.transpose(1, 2))
        logit: Tensor = self.head(states[:, -1])
        return logit
