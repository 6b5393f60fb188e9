"""What a layer must answer for book-keeping: its share of each patient's squared norm, and its clipped sum.

A batch has R records of P patients. A layer sees its input `a` and the gradient `g` of its output, both with the
records first; a patient's gradient is the sum over its records (the weights 1/n are already inside `g`).
Which way a layer takes is chosen by the estimated cost, in multiplications; the constants were measured on one
AVX-512 core and only shift the point where two ways cost the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator

import torch
from torch import Tensor, nn

# One float read or written costs as much as this many multiply-adds of a large matrix product, twice over.
FLOPS_PER_FLOAT = 23
# Work space in floats that stays in a core's second cache.
CACHE_FLOATS = 1 << 18

Clock = Callable[[], float]
Target = Callable[[nn.Parameter], Tensor]
"""Where a parameter's clipped sum belongs: a view, shaped like the parameter, of the flat result."""


class Workspace:
    """What is kept from step to step: memory, since fresh pages from the system cost as much as the arithmetic on
    them, and which way was the cheapest for a layer and its shapes.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        """clock: seconds, of the thread by preference, to measure ways by; without one, costs are estimated."""
        self.clock = clock
        self.choices: dict[Hashable, str] = {}
        self._kept: dict[int, Tensor] = {}

    def take(self, owner: object, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """A float32 tensor of that shape with anything in it; the same memory for the same owner. An owner must
        outlive the workspace, as a layer's parameter does.
        """
        size = math.prod(shape)
        kept = self._kept.get(id(owner))
        if kept is None or kept.numel() < size or kept.device != device:
            kept = self._kept[id(owner)] = torch.empty(size, dtype=torch.float32, device=device)
        return kept[:size].view(shape)

    def give_back(self, owner: object) -> None:
        """Let the owner's memory go."""
        self._kept.pop(id(owner), None)


class PatientBatch:
    """Which record belongs to which patient; `index` is None where record i is patient i alone."""

    def __init__(self, records: int, patients: int, index: Tensor | None, work: Workspace | None = None) -> None:
        """index: (R,) int64 in 0..patients-1, or None, which needs records == patients."""
        self.work = Workspace() if work is None else work
        self.records = records
        self.patients = patients
        self.index = index
        self._slots: Tensor | None = None
        self.most = 1
        if index is not None and records:
            counts = torch.bincount(index, minlength=patients)
            self.most = int(counts.max())

    @property
    def grouped(self) -> bool:
        """Whether some patient may have several records, or none."""
        return self.index is not None

    def total(self, rows: Tensor, out: Tensor | None = None, start: int = 0) -> Tensor:
        """(r, ...) for the records from `start` -> (P, ...): each patient's sum, added to `out` where given."""
        if self.index is None and out is None:
            return rows
        if out is None:
            out = rows.new_zeros((self.patients, *rows.shape[1:]))
        if self.index is None:
            out[start : start + rows.shape[0]] += rows
        else:
            out.index_add_(0, self.index[start : start + rows.shape[0]], rows)
        return out

    def of_records(self, values: Tensor) -> Tensor:
        """(P,) -> (R,): each record gets its patient's value."""
        return values if self.index is None else values[self.index]

    def gather(self, rows: Tensor) -> Tensor:
        """(R, T, d) -> (P, most * T, d): a patient's records one after the other, then zeros."""
        if self.index is None:
            return rows
        padded = torch.cat([rows, rows.new_zeros((1, *rows.shape[1:]))])
        return padded[self._places()].flatten(1, 2)

    def _places(self) -> Tensor:
        if self._slots is None:
            index = self.index
            assert index is not None
            order = torch.argsort(index, stable=True)
            sorted_index = index[order]
            counts = torch.bincount(index, minlength=self.patients)
            starts = torch.cumsum(counts, 0) - counts
            slots = torch.full((self.patients, self.most), self.records, dtype=torch.int64, device=index.device)
            slots[sorted_index, torch.arange(self.records, device=index.device) - starts[sorted_index]] = order
            self._slots = slots
        return self._slots


class LayerRule(ABC):
    """One layer's book for one step: made by the forward pass, closed by the backward pass, then summed."""

    @abstractmethod
    def close(self, calls: list[tuple[Tensor, Tensor]], batch: PatientBatch) -> Tensor:
        """(P,) float32 squared norms, from every call's (a, g). Keeps only what `add_weighted` needs."""

    @abstractmethod
    def add_weighted(self, weights: Tensor, batch: PatientBatch, target: Target) -> None:
        """Add the sum over patients of weights[p] times p's gradient, (P,) float32, into the target views."""

    @abstractmethod
    def forget(self, patients: Tensor, records: Tensor) -> None:
        """Replace by zeros all that is kept of some patients: bool (P,) and, alike, (R,). For refused patients,
        whose NaN or infinity would outlive a weight of 0.
        """


def matmul32(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Batched product in float32 whatever came in; bf16 operands keep their speed on a GPU, summed in float32."""
    if left.is_cuda and left.dtype == right.dtype != torch.float32:
        product: Tensor = torch.bmm(left, right, out_dtype=torch.float32)
        return product if out is None else out.copy_(product)
    return torch.bmm(left.float(), right.float(), out=out)


def same_precision(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Under autocast a layer multiplied its input in the precision of its output: follow it."""
    return (a if a.dtype == g.dtype else a.to(g.dtype)), g


def squared_norms(rows: Tensor) -> Tensor:
    """(r, ...) -> (r,) float32."""
    norms: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1, dtype=torch.float32)
    return norms.square_()


def pieces(records: int, floats_per_record: int, floats: int = CACHE_FLOATS) -> Iterator[slice]:
    """Consecutive records whose work space keeps within `floats`, at least one at a time."""
    step = max(1, floats // max(1, floats_per_record))
    for start in range(0, records, step):
        yield slice(start, min(records, start + step))


def zero_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """A copy whose rows where `rows` (n,) is true are exactly 0, whatever was in them."""
    return tensor.masked_fill(rows.view(-1, *[1] * (tensor.dim() - 1)), 0)
