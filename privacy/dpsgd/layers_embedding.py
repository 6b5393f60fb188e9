"""Embeddings: a patient's gradient touches the rows of its own tokens, so equal tokens are summed and no more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from privacy.dpsgd.layer_rules import LayerRule, PatientBatch, Target, squared_norms, zero_rows


class EmbeddingRule(LayerRule):
    """Rows of `weight` (V, d) looked up by whole numbers; those equal to `padding` are not trained."""

    def __init__(self, weight: nn.Parameter, padding: int | None) -> None:
        self._weight = weight
        self._padding = padding

    def close(self, calls: list[tuple[Tensor, Tensor]], batch: PatientBatch) -> Tensor:
        width = self._weight.shape[1]
        tokens = torch.cat([a.reshape(batch.records, -1) for a, _ in calls], dim=1)
        gradients = torch.cat([g.reshape(batch.records, -1, width) for _, g in calls], dim=1).float()
        records = torch.arange(batch.records, device=tokens.device) if batch.index is None else batch.index
        keys = records[:, None] * self._weight.shape[0] + tokens
        unique, place = torch.unique(keys, return_inverse=True)
        # The sum of a look-up's gradients by place is the look-up's own backward pass.
        self._sums: Tensor = torch.ops.aten.embedding_dense_backward(
            gradients.reshape(-1, width), place.reshape(-1), unique.numel(), -1, False
        )
        self._tokens = unique % self._weight.shape[0]
        self._patients = unique // self._weight.shape[0]
        if self._padding is not None:
            self._sums = self._sums.masked_fill((self._tokens == self._padding)[:, None], 0)
        norms = torch.zeros(batch.patients, dtype=torch.float32, device=gradients.device)
        return norms.index_add_(0, self._patients, squared_norms(self._sums))

    def add_weighted(self, weights: Tensor, batch: PatientBatch, target: Target) -> None:
        scaled = self._sums * weights[self._patients][:, None]
        target(self._weight).add_(
            torch.ops.aten.embedding_dense_backward(scaled, self._tokens, self._weight.shape[0], -1, False)
        )

    def forget(self, patients: Tensor, records: Tensor) -> None:
        self._sums = zero_rows(self._sums, patients[self._patients])
