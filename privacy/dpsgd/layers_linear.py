"""Linear layers over any leading axes: ghost norms (Li et al. 2022; Bu et al. 2023) or instantiated gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from privacy.dpsgd.layer_rules import (
    FLOPS_PER_FLOAT,
    LayerRule,
    PatientBatch,
    Target,
    matmul32,
    pieces,
    same_precision,
    squared_norms,
    zero_rows,
)


def ghost_cost(positions: int, inputs: int, outputs: int) -> float:
    """Two Gram matrices, their product, and the scaled copy of the gradients for the sum."""
    return 2.0 * positions**2 * (inputs + outputs) + FLOPS_PER_FLOAT * (3 * positions**2 + 1.5 * positions * outputs)


def instantiated_cost(inputs: int, outputs: int) -> float:
    """One gradient per patient written, measured and summed; its product stands in for that of plain training."""
    return 3.0 * FLOPS_PER_FLOAT * inputs * outputs


class LinearRule(LayerRule):
    """y = x W^T + b. weight, bias: None where frozen or absent. rows: the part of a packed weight, as in attention."""

    def __init__(self, weight: nn.Parameter | None, bias: nn.Parameter | None, rows: slice = slice(None)) -> None:
        self._weight = weight
        self._bias = bias
        self._rows = rows
        self._pair: tuple[Tensor, Tensor] | None = None
        self._gradients: Tensor | None = None
        self._bias_gradients: Tensor | None = None

    def close(self, calls: list[tuple[Tensor, Tensor]], batch: PatientBatch) -> Tensor:
        sequences = [
            (_sequence(a, batch.records), _sequence(g, batch.records))
            for a, g in (same_precision(a, g) for a, g in calls)
        ]
        a, g = sequences[0] if len(sequences) == 1 else (torch.cat(s, dim=1) for s in zip(*sequences, strict=True))
        if g.shape[1] == 1 and not batch.grouped:
            return self._close_single(a[:, 0], g[:, 0])
        norms = torch.zeros(batch.patients, dtype=torch.float32, device=g.device)
        if self._bias is not None:
            self._bias_gradients = batch.total(g.sum(1, dtype=torch.float32))
            norms += squared_norms(self._bias_gradients)
        if self._weight is not None:
            norms += self._close_weight(a, g, batch, self._weight)
        return norms

    def _close_single(self, a: Tensor, g: Tensor) -> Tensor:
        self._pair = (a, g)
        norms = squared_norms(g)
        if self._weight is None:
            return norms if self._bias is not None else torch.zeros_like(norms)
        inputs = squared_norms(a)
        return norms * (inputs + 1.0 if self._bias is not None else inputs)

    def _close_weight(self, a: Tensor, g: Tensor, batch: PatientBatch, weight: nn.Parameter) -> Tensor:
        positions, inputs, outputs = g.shape[1], a.shape[2], g.shape[2]
        span = positions * batch.most
        # Gathering pads every patient to the largest number of records: only where that about halves nothing.
        balanced = batch.patients * batch.most <= 2 * batch.records
        if balanced and ghost_cost(span, inputs, outputs) < instantiated_cost(inputs, outputs):
            self._pair = (a, g)
            return gram_norms(batch.gather(a), batch.gather(g))
        self._gradients, norms = instantiate(g.transpose(1, 2), a, batch, weight)
        return norms

    def add_weighted(self, weights: Tensor, batch: PatientBatch, target: Target) -> None:
        single = self._pair is not None and self._pair[1].dim() == 2
        if self._bias is not None:
            into = target(self._bias)[self._rows]
            if single and self._pair is not None:
                into.addmv_(self._pair[1].float().t(), weights)
            elif self._bias_gradients is not None:
                into.addmv_(self._bias_gradients.t(), weights)
        if self._weight is None:
            return
        into = target(self._weight)[self._rows]
        if self._gradients is not None:
            into.view(-1).addmv_(self._gradients.flatten(1).t(), weights)
        elif self._pair is not None:
            a, g = self._pair
            # In float32: rounding each position's product to half precision could exceed the clip.
            scaled = g * batch.of_records(weights).view(-1, *[1] * (g.dim() - 1))
            add_product(into, scaled.reshape(-1, g.shape[-1]), a.reshape(-1, a.shape[-1]))

    def forget(self, patients: Tensor, records: Tensor) -> None:
        if self._pair is not None:
            self._pair = (zero_rows(self._pair[0], records), zero_rows(self._pair[1], records))
        if self._gradients is not None:
            self._gradients = zero_rows(self._gradients, patients)
        if self._bias_gradients is not None:
            self._bias_gradients = zero_rows(self._bias_gradients, patients)


def gram_norms(a: Tensor, g: Tensor) -> Tensor:
    """(P,) squared norms of g^T a from a (P, T, d) and g (P, T, p), without forming it."""
    grams = matmul32(a, a.transpose(1, 2)).flatten(1)
    norms: Tensor = torch.linalg.vecdot(grams, matmul32(g, g.transpose(1, 2)).flatten(1))
    # Rounding can leave a tiny negative number where the gradient cancels.
    return norms.clamp_(min=0.0)


def instantiate(left: Tensor, right: Tensor, batch: PatientBatch, owner: nn.Parameter) -> tuple[Tensor, Tensor]:
    """left (R, p, T), right (R, T, d) -> one gradient per patient (P, p, d) float32, and its squared norms (P,)."""
    shape = (batch.patients, left.shape[1], right.shape[2])
    norms = torch.empty(batch.patients, dtype=torch.float32, device=left.device)
    gradients = batch.work.take(owner, shape, left.device)
    if batch.grouped:
        gradients.zero_()
        for part in pieces(batch.records, shape[1] * shape[2]):
            batch.total(matmul32(left[part], right[part]), gradients, part.start)
        return gradients, squared_norms(gradients)
    if left.dtype != torch.float32 or left.is_cuda:
        gradients = matmul32(left, right)
        return gradients, squared_norms(gradients)
    # Measured while it is still in the cache.
    for part in pieces(batch.records, shape[1] * shape[2]):
        torch.bmm(left[part], right[part], out=gradients[part])
        norms[part] = squared_norms(gradients[part])
    return gradients, norms


def add_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    """into += left^T right, for left (N, p) float32, right (N, d), into (p, d) float32."""
    if right.is_cuda and right.dtype != torch.float32:
        # Two halves of half precision carry 16 bits of the left side at the tensor cores' speed.
        high = left.to(right.dtype)
        low = (left - high).to(right.dtype)
        into += torch.mm(high.t(), right, out_dtype=torch.float32)
        into += torch.mm(low.t(), right, out_dtype=torch.float32)
    else:
        into.addmm_(left.t(), right.float())


def _sequence(tensor: Tensor, records: int) -> Tensor:
    return tensor.reshape(records, -1, tensor.shape[-1])
