"""Convolutions in one to three dimensions: five ways to the same norms.

One gradient per patient is formed from the unfolded input, by a convolution whose groups are the records, or record by
record ("unfolded", "grouped", "looped"): for many positions and small kernels.
Gram: ghost norms from the unfolded input. Diagonal: with stride 1, the Gram matrix of the unfolded input is a sum of
diagonal shifts of the Gram matrix of the pixels, so nothing is unfolded and the product is smaller by the kernel's
volume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.dpsgd.layer_rules import (
    FLOPS_PER_FLOAT,
    Clock,
    LayerRule,
    PatientBatch,
    Target,
    matmul32,
    pieces,
    same_precision,
    squared_norms,
    zero_rows,
)
from privacy.dpsgd.layers_linear import ghost_cost, instantiated_cost

ConvLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d
# Gram matrices beyond this many positions leave the cache and are never worth it.
_MOST_POSITIONS = 400
_WORK_FLOATS = 1 << 20
# Beyond 8 MB of per-patient gradients, ghost norms save the memory.
_MOST_KEPT = 1 << 21


class ConvRule(LayerRule):
    """Any stride, padding (also "same", reflected, circular, replicated), dilation and groups."""

    def __init__(self, layer: ConvLayer, weight: nn.Parameter | None, bias: nn.Parameter | None) -> None:
        self._layer = layer
        self._weight = weight
        self._bias = bias
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._gradients: Tensor | None = None
        self._bias_gradients: Tensor | None = None

    def close(self, calls: list[tuple[Tensor, Tensor]], batch: PatientBatch) -> Tensor:
        calls = [same_precision(a, g) for a, g in calls]
        norms = torch.zeros(batch.patients, dtype=torch.float32, device=calls[0][1].device)
        if self._bias is not None:
            per_record = torch.stack([g.flatten(2).sum(2, dtype=torch.float32) for _, g in calls]).sum(0)
            self._bias_gradients = batch.total(per_record)
            norms += squared_norms(self._bias_gradients)
        if self._weight is not None:
            norms += self._close_weight(self._way(calls, batch), calls, batch, self._weight)
        return norms

    def _way(self, calls: list[tuple[Tensor, Tensor]], batch: PatientBatch) -> str:
        """The cheapest way for this layer and these shapes, found once."""
        a, g = calls[0]
        work = batch.work
        key = (id(self._layer), a.shape, g.shape, a.dtype, batch.patients, batch.grouped, len(calls))
        if key not in work.choices:
            costs = self.costs(calls, batch)
            if work.clock is not None and not a.is_cuda:
                # What is estimated far behind is not worth the memory of a trial.
                likely = [way for way, cost in costs.items() if cost <= 2.0 * min(costs.values())]
                costs = {way: self._measure(way, calls, batch, work.clock) for way in likely}
                work.give_back(self._weight)
            work.choices[key] = min(costs, key=lambda way: costs[way])
        return work.choices[key]

    def _measure(self, way: str, calls: list[tuple[Tensor, Tensor]], batch: PatientBatch, clock: Clock) -> float:
        """Seconds from the gradients to the sum, the better of two."""
        assert self._weight is not None
        weights = torch.ones(batch.patients, device=calls[0][1].device)
        into = torch.zeros_like(self._weight, dtype=torch.float32)
        seconds = []
        for _ in range(2):
            start = clock()
            rule = ConvRule(self._layer, self._weight, None)
            rule._close_weight(way, calls, batch, self._weight)
            rule.add_weighted(weights, batch, lambda _: into)
            seconds.append(clock() - start)
        return min(seconds)

    def costs(self, calls: list[tuple[Tensor, Tensor]], batch: PatientBatch) -> dict[str, float]:
        """The ways that could serve, each with its estimated cost per record beyond plain training."""
        a, g = calls[0]
        layer = self._layer
        inputs = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        outputs = layer.out_channels // layer.groups
        positions = math.prod(g.shape[2:])
        unfolding = 2.0 * FLOPS_PER_FLOAT * inputs * positions * layer.groups
        kept = instantiated_cost(inputs, outputs) * layer.groups
        product = 2.0 * positions * inputs * outputs
        simple = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        costs = {"unfolded": unfolding + kept}
        # A patient's records share one Gram matrix only if laid side by side; there, instantiating is simpler.
        alone = not batch.grouped and len(calls) == 1
        if alone and positions <= _MOST_POSITIONS:
            costs["gram"] = unfolding + ghost_cost(positions, inputs, outputs) * layer.groups
            if layer.groups == 1 and all(s == 1 for s in layer.stride) and layer.padding_mode == "zeros":
                costs["diagonal"] = self._diagonal_cost(a, g)
        if alone and simple and not a.is_cuda and g.dtype == torch.float32:
            # torch's kernel for groups is fast for channels in blocks of 16, and slow for many or with a stride.
            if (
                min(layer.in_channels, outputs) >= 16
                and max(layer.in_channels, outputs) <= 64
                and max(layer.stride) == 1
            ):
                costs["grouped"] = product * 0.3 + kept
            costs["looped"] = product * 0.5 + 2e6 + kept
        if alone and len(costs) > 1 and batch.patients * self._layer.weight.numel() > _MOST_KEPT and "gram" in costs:
            costs = {way: cost for way, cost in costs.items() if way in ("gram", "diagonal")}
        return costs

    def _diagonal_cost(self, a: Tensor, g: Tensor) -> float:
        layer = self._layer
        padded = _padded_sizes(layer, a)
        pixels, length = math.prod(padded), g.shape[2] * math.prod(padded[1:])
        return (
            2.0 * pixels**2 * layer.in_channels
            + 2.0 * length**2 * layer.out_channels
            + FLOPS_PER_FLOAT * (2.5 * sum(layer.kernel_size) * pixels**2 + 1.5 * length * layer.out_channels)
        )

    def _close_weight(
        self, way: str, calls: list[tuple[Tensor, Tensor]], batch: PatientBatch, weight: nn.Parameter
    ) -> Tensor:
        if way == "unfolded":
            self._gradients, norms = self._unfolded(calls, batch, weight)
            return norms
        a, g = calls[0]
        if way in ("grouped", "looped"):
            together = batch.records if way == "grouped" else 1
            self._gradients, norms = self._convolved(a, g, batch, weight, together)
            return norms
        self._pairs = calls
        return self._diagonal_norms(a, g) if way == "diagonal" else self._gram_norms(a, g)

    def _convolved(
        self, a: Tensor, g: Tensor, batch: PatientBatch, weight: nn.Parameter, together: int
    ) -> tuple[Tensor, Tensor]:
        """One gradient per record from torch's own kernel: records as groups, or record by record."""
        gradients = batch.work.take(weight, (batch.patients, *weight.shape), a.device)
        many = weight.detach().expand(together, *weight.shape).flatten(0, 1)
        norms = torch.empty(batch.patients, dtype=torch.float32, device=a.device)
        for start in range(0, batch.records, together):
            part = slice(start, start + together)
            rows = _weight_gradient(
                self._layer, a[part].flatten(0, 1)[None], g[part].flatten(0, 1)[None], many, groups=together
            )
            gradients[part] = rows.view(together, *weight.shape)
            norms[part] = squared_norms(gradients[part])
        return gradients, norms

    def _unfolded(
        self, calls: list[tuple[Tensor, Tensor]], batch: PatientBatch, weight: nn.Parameter
    ) -> tuple[Tensor, Tensor]:
        layer, device = self._layer, calls[0][1].device
        # (records, groups, outputs, inputs) has the weight's own layout.
        shape = (batch.patients, layer.groups, layer.out_channels // layer.groups, weight[0].numel())
        sums = batch.grouped or len(calls) > 1
        gradients = batch.work.take(weight, shape, device)
        if sums:
            gradients.zero_()
        norms = torch.empty(batch.patients, dtype=torch.float32, device=device)
        for a, g in calls:
            work = weight[0].numel() * layer.groups * math.prod(g.shape[2:])
            for part in _parts(batch.records, work, a):
                columns = self._unfold(a[part]).flatten(0, 1)
                rows = g[part].reshape(columns.shape[0], shape[2], -1)
                if sums:
                    products = matmul32(rows, columns.transpose(1, 2)).view(-1, *shape[1:])
                    batch.total(products, gradients, part.start)
                    continue
                matmul32(rows, columns.transpose(1, 2), out=gradients[part].flatten(0, 1))
                norms[part] = squared_norms(gradients[part])
        return gradients, (squared_norms(gradients) if sums else norms)

    def _gram_norms(self, a: Tensor, g: Tensor) -> Tensor:
        layer, positions = self._layer, math.prod(g.shape[2:])
        out = torch.empty(g.shape[0], dtype=torch.float32, device=g.device)
        work = layer.in_channels * math.prod(layer.kernel_size) * positions
        for part in _parts(g.shape[0], work, a):
            columns = self._unfold(a[part]).flatten(0, 1)
            rows = g[part].reshape(columns.shape[0], -1, positions)
            grams = matmul32(columns.transpose(1, 2), columns).flatten(1)
            products = torch.linalg.vecdot(grams, matmul32(rows.transpose(1, 2), rows).flatten(1))
            out[part] = products.view(-1, layer.groups).sum(1).clamp_(min=0.0)
        return out

    def _diagonal_norms(self, a: Tensor, g: Tensor) -> Tensor:
        layer = self._layer
        sizes = _padded_sizes(layer, a)
        # In the padded grid a position and a kernel offset are both plain distances, which add.
        distances = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        length = g.shape[2] * distances[0]
        widths = [(kernel - 1) * dilation for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        reach = sum(width * distance for width, distance in zip(widths, distances, strict=True))
        grid: list[int] = []
        for have, want in zip(reversed(g.shape[3:]), reversed(sizes[1:]), strict=True):
            grid += [0, want - have]
        out = torch.empty(g.shape[0], dtype=torch.float32, device=g.device)
        for part in _parts(g.shape[0], 3 * (length + reach) ** 2, a):
            pixels = functional.pad(a[part], _padding(layer)).flatten(2)
            pixels = functional.pad(pixels, (0, length + reach - pixels.shape[2]))
            gram = matmul32(pixels.transpose(1, 2), pixels)
            for axis in reversed(range(len(sizes))):
                step = distances[axis] * layer.dilation[axis]
                size = gram.shape[1] - widths[axis] * distances[axis]
                shifted = gram[:, :size, :size]
                for k in range(1, layer.kernel_size[axis]):
                    corner = slice(k * step, k * step + size)
                    shifted = shifted + gram[:, corner, corner]
                gram = shifted
            rows = functional.pad(g[part], grid).flatten(2)
            products = torch.linalg.vecdot(gram.flatten(1), matmul32(rows.transpose(1, 2), rows).flatten(1))
            out[part] = products.clamp_(min=0.0)
        return out

    def _unfold(self, a: Tensor) -> Tensor:
        """(r, C, ...) -> (r, groups, C/groups * kernel, positions): a strided view, copied once."""
        layer = self._layer
        padded = _pad(layer, a).contiguous()
        sizes, strides = padded.shape[2:], padded.stride()
        spans = [
            (size - (kernel - 1) * dilation - 1) // stride + 1
            for size, kernel, dilation, stride in zip(
                sizes, layer.kernel_size, layer.dilation, layer.stride, strict=True
            )
        ]
        view = padded.as_strided(
            (*padded.shape[:2], *layer.kernel_size, *spans),
            (
                *strides[:2],
                *(step * dilation for step, dilation in zip(strides[2:], layer.dilation, strict=True)),
                *(step * stride for step, stride in zip(strides[2:], layer.stride, strict=True)),
            ),
        )
        return view.reshape(a.shape[0], layer.groups, -1, math.prod(spans))

    def add_weighted(self, weights: Tensor, batch: PatientBatch, target: Target) -> None:
        if self._bias is not None and self._bias_gradients is not None:
            target(self._bias).addmv_(self._bias_gradients.t(), weights)
        if self._weight is None:
            return
        if self._gradients is not None:
            target(self._weight).view(-1).addmv_(self._gradients.flatten(1).t(), weights)
        for a, g in self._pairs:
            # In float32, also on a GPU: rounding each position's product further could exceed the clip.
            scaled = g * batch.of_records(weights).view(-1, *[1] * (g.dim() - 1))
            with torch.backends.cudnn.flags(allow_tf32=False):
                target(self._weight).add_(_weight_gradient(self._layer, a.float(), scaled, self._weight))

    def forget(self, patients: Tensor, records: Tensor) -> None:
        self._pairs = [(zero_rows(a, records), zero_rows(g, records)) for a, g in self._pairs]
        if self._gradients is not None:
            self._gradients = zero_rows(self._gradients, patients)
        if self._bias_gradients is not None:
            self._bias_gradients = zero_rows(self._bias_gradients, patients)


def _parts(records: int, floats: int, like: Tensor) -> Iterator[slice]:
    """All records at once on a GPU, else a few whose work space keeps within four megabytes."""
    return pieces(records, floats, _WORK_FLOATS) if not like.is_cuda else iter([slice(0, records)])


def _weight_gradient(layer: ConvLayer, a: Tensor, g: Tensor, weight: Tensor, groups: int | None = None) -> Tensor:
    padding = list(layer.padding)
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        a, padding = _pad(layer, a), [0] * len(layer.stride)
    gradients = torch.ops.aten.convolution_backward(
        g, a, weight.detach().to(g.dtype), None, layer.stride, padding, layer.dilation, False,
        [0] * len(padding), layer.groups if groups is None else groups, [False, True, False],
    )  # fmt: skip
    return cast(Tensor, gradients[1])


def _padding(layer: ConvLayer) -> list[int]:
    """Both sides of each axis, the last axis first, as torch's own padding wants it."""
    sides: list[int] = []
    for axis in reversed(range(len(layer.kernel_size))):
        if layer.padding == "same":
            both = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            sides += [both // 2, both - both // 2]
        elif isinstance(layer.padding, str):
            sides += [0, 0]
        else:
            sides += [int(layer.padding[axis])] * 2
    return sides


def _padded_sizes(layer: ConvLayer, a: Tensor) -> list[int]:
    sides = _padding(layer)
    axes = len(layer.kernel_size)
    return [a.shape[2 + i] + sides[2 * (axes - 1 - i)] + sides[2 * (axes - 1 - i) + 1] for i in range(axes)]


def _pad(layer: ConvLayer, a: Tensor) -> Tensor:
    sides = _padding(layer)
    if not any(sides):
        return a
    return functional.pad(a, sides, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
