"""Normalisation within a record (group, instance, layer, root mean square): gradients as small as a bias."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from privacy.dpsgd.layer_rules import LayerRule, PatientBatch, Target, pieces, squared_norms, zero_rows

Normalise = Callable[[Tensor], Tensor]


class NormRule(LayerRule):
    """y = normalise(x) * weight + bias. channels_first: parameters run along axis 1, else along the last axes."""

    def __init__(
        self, normalise: Normalise, weight: nn.Parameter | None, bias: nn.Parameter | None, *, channels_first: bool
    ) -> None:
        self._normalise = normalise
        self._weight = weight
        self._bias = bias
        self._channels_first = channels_first
        self._rows: list[tuple[nn.Parameter, Tensor]] = []

    def close(self, calls: list[tuple[Tensor, Tensor]], batch: PatientBatch) -> Tensor:
        weight = bias = None
        for a, g in calls:
            if self._weight is not None:
                more = self._per_record(g, a, self._weight)
                weight = more if weight is None else weight + more
            if self._bias is not None:
                more = self._per_record(g, None, self._bias)
                bias = more if bias is None else bias + more
        norms = torch.zeros(batch.patients, dtype=torch.float32, device=calls[0][1].device)
        for parameter, rows in ((self._weight, weight), (self._bias, bias)):
            if parameter is not None and rows is not None:
                total = batch.total(rows)
                self._rows.append((parameter, total))
                norms += squared_norms(total)
        return norms

    def _per_record(self, g: Tensor, a: Tensor | None, parameter: nn.Parameter) -> Tensor:
        """(R, size of the parameter) float32, worked on in pieces that stay in the cache."""
        out = torch.empty((g.shape[0], parameter.numel()), dtype=torch.float32, device=g.device)
        parts = iter([slice(None)]) if g.is_cuda else pieces(g.shape[0], g[0].numel())
        for part in parts:
            rows = g[part].float()
            if a is not None:
                rows = self._normalise(a[part].float()).mul_(rows)
            if self._channels_first:
                out[part] = rows.flatten(2).sum(2) if rows.dim() > 2 else rows
            else:
                out[part] = rows.reshape(rows.shape[0], -1, parameter.numel()).sum(1)
        return out

    def add_weighted(self, weights: Tensor, batch: PatientBatch, target: Target) -> None:
        for parameter, rows in self._rows:
            target(parameter).view(-1).addmv_(rows.t(), weights)

    def forget(self, patients: Tensor, records: Tensor) -> None:
        self._rows = [(parameter, zero_rows(rows, patients)) for parameter, rows in self._rows]
