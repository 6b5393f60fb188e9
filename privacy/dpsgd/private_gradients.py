"""The clipped sum of per-patient gradients of a torch module, whatever the engine. Noise is the caller's next step."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privacy.dpsgd.bookkeeping import MARGIN, BookKeeping, NotDispatchable
from privacy.dpsgd.chain import Chain
from privacy.dpsgd.clipping import NOT_FINITE, clip_gradients
from privacy.dpsgd.compiled import CompiledStep
from privacy.dpsgd.layer_rules import Clock, PatientBatch
from privacy.dpsgd.module_gradients import RECORDS_AT_ONCE, module_gradients
from privacy.dpsgd.per_patient import average_by_patient
from privacy.dpsgd.record_parts import Part, pad_batch, patients_of, take
from privacy.dpsgd.step import PrivateSum
from privacy.dpsgd.validation import require_private
from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.parameters import require_count, require_positive

Engine = Literal["auto", "bookkeeping", "compiled", "vmap", "opacus"]
Losses = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) of R records -> (R,): one loss per record, each depending on its own record alone."""

# Pairs of records tried before a batch is left to another engine.
MOST_PROOFS = 8
SMALLEST_CLIP, LARGEST_CLIP = 1e-12, 1e12


@dataclass(frozen=True)
class GradientSum:
    """total: (D,) float32 or float64 in parameter order, on the module's device, not yet noised.

    sensitivity: the clip, for one patient zeroed out. refused: patients that counted as 0 for NaN or infinity.
    """

    total: Tensor
    sensitivity: float
    refused: int
    reason: str | None

    def private_sum(self) -> PrivateSum:
        """The same with the total as a numpy vector of float64, as `privacy.dpsgd.step` gives it."""
        return PrivateSum(self.total.double().cpu().numpy(), self.sensitivity, self.refused, self.reason)


class PrivateGradients:
    """Clipped sums for one module. Engine "auto" keeps books where it can prove itself right, else uses torch.func.

    Before book-keeping is first trusted, two records' gradients are computed one by one with plain autograd and must
    agree: that catches a layer that mixes records, a parameter used outside its layer, a foreign axis order.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Losses,
        *,
        clip: float,
        engine: Engine = "auto",
        micro_batch: int | None = None,
        autocast: torch.dtype | None = None,
        clock: Clock | None = None,
    ) -> None:
        """clip: C in 1e-12..1e12. micro_batch: most records worked on at once, for memory; the result is the same.

        autocast: the precision of the forward pass (torch.bfloat16 on a GPU); norms and sums stay float32.
        clock: seconds (time.thread_time) to choose each convolution's way by; without it costs are estimated.
        Raises ParameterError for layers that cannot be private (see `validation`) and numbers out of range.
        """
        require_positive("the clip", clip)
        if not SMALLEST_CLIP <= clip <= LARGEST_CLIP:
            raise ParameterError(
                f"A clip of {clip} is outside {SMALLEST_CLIP} to {LARGEST_CLIP}.", "Use one near the gradients' size."
            )
        if micro_batch is not None:
            require_count("the micro-batch", micro_batch, 1)
        if engine not in get_args(Engine):
            raise ParameterError(f"There is no engine {engine}.", f"Use one of {', '.join(get_args(Engine))}.")
        require_private(module)
        self._module, self._loss, self._clip = module, loss, clip
        self._micro_batch, self._autocast, self._asked = micro_batch, autocast, engine
        self._length = sum(p.numel() for p in module.parameters() if p.requires_grad)
        self._books: BookKeeping | None = None
        self._chain: Chain | None = None
        self._proved: set[Chain | BookKeeping] = set()
        self._compiled = CompiledStep(module, loss, clip * (1.0 - MARGIN)) if engine == "compiled" else None
        if engine in ("auto", "bookkeeping", "compiled"):
            try:
                self._books = BookKeeping(module, clock)
            except NotDispatchable:
                if engine == "bookkeeping":
                    raise
        if self._books is not None and autocast is None:
            with suppress(NotDispatchable):
                self._chain = Chain(module)

    @property
    def engine(self) -> Engine:
        """What computes now: "auto" is resolved to the engine in use. "compiled" leaves patients with several records,
        and batches in which one must be refused, to book-keeping.
        """
        return self._asked if self._asked != "auto" else ("bookkeeping" if self._books is not None else "vmap")

    def clipped_sum(
        self,
        inputs: Tensor,
        targets: Tensor,
        patients: npt.NDArray[np.integer] | Tensor | None = None,
        count: int | None = None,
        mask: Tensor | None = None,
        out: Tensor | None = None,
    ) -> GradientSum:
        """Sum over patients of their mean gradient over records, clipped to C; zeros for an empty batch.

        inputs, targets: (R, ...). patients: (R,) in 0..count-1, default one record each. mask: (R,) bool, false for
        padding, which contributes exactly nothing. out: (D,) float32 to hold the total, overwritten,
        so that steps share memory. Raises ParameterError for arrays that do not fit.
        """
        index, people = patients_of(inputs, targets, patients, count, mask)
        device = inputs.device
        total = _Total(self._length, device, out)
        refused = 0
        if self._compiled is not None and index is None and inputs.shape[0]:
            if self._run_compiled(self._compiled, inputs, targets, mask, total):
                return GradientSum(total.values, self._clip, 0, None)
            total.values.zero_()
        if inputs.shape[0] and (mask is None or bool(mask.any())):
            books = self._trusted(inputs, targets, mask, single=index is None)
            if books is not None:
                try:
                    for rows in self._pieces(index, inputs.shape[0], people, device):
                        refused += self._keep(books, take(inputs, targets, index, people, mask, rows), total)
                except NotDispatchable:
                    if self._asked == "bookkeeping":
                        raise
                    self._books, self._chain, books = None, None, None
                    total, refused = _Total(self._length, device, out), 0
                finally:
                    if books is not None:
                        books.release()
            if books is None:
                total = _Total(self._length, device, None, torch.float64)
                for rows in self._pieces(index, inputs.shape[0], people, device):
                    refused += self._instantiate(take(inputs, targets, index, people, mask, rows), total)
        return GradientSum(total.values, self._clip, refused, NOT_FINITE if refused else None)

    def _keep(self, books: BookKeeping | Chain, part: Part, total: _Total) -> int:
        if self._micro_batch is not None and part.inputs.shape[0] > self._micro_batch:
            return self._one_by_one(part, total)
        batch = PatientBatch(part.inputs.shape[0], part.patients, part.index, books.work)
        norms = books.record(partial(self._losses, part.inputs, part.targets), part.seed(), batch)
        # Infinity where a norm is 0 becomes 1.
        weights = norms.rsqrt().mul_(self._clip * (1.0 - MARGIN)).clamp_(max=1.0)
        refused = 0
        if not math.isfinite(float(norms.sum())):
            bad = ~torch.isfinite(norms)
            books.forget(bad)
            weights = weights.masked_fill(bad, 0.0)
            refused = int((bad & part.present()).sum())
        if isinstance(books, Chain):
            total.add(partial(books.write_weighted, weights))
        else:
            books.add_weighted(weights, total.values)
        return refused

    def _run_compiled(
        self, step: CompiledStep, inputs: Tensor, targets: Tensor, mask: Tensor | None, total: _Total
    ) -> bool:
        """Whether the total now holds the sum; false when a patient must be refused, which book-keeping does."""
        size = self._micro_batch or inputs.shape[0]
        seed = torch.ones(inputs.shape[0], device=inputs.device) if mask is None else mask.float()
        for start in range(0, inputs.shape[0], size):
            rows = slice(start, start + size)
            x, y, seeds = inputs[rows], targets[rows], seed[rows]
            if x.shape[0] < size:
                seeds = torch.cat([seeds, seeds.new_zeros(size - x.shape[0])])
                x, y, _ = pad_batch(x, y, size)
            with self._precision(inputs):
                norms, more = step(x, y, seeds)
            if not math.isfinite(float(norms.sum())):
                return False
            total.add(partial(_copy, more))
        return True

    def _one_by_one(self, part: Part, total: _Total) -> int:
        """A single patient with more records than fit at once: its mean gradient by plain autograd, in pieces."""
        assert self._micro_batch is not None
        if not bool(part.present().any()):
            return 0
        seed = part.seed()
        gradient = torch.zeros(self._length, device=seed.device)
        for start in range(0, part.inputs.shape[0], self._micro_batch):
            rows = slice(start, start + self._micro_batch)
            _add_parts(gradient, self._autograd(part.inputs[rows], part.targets[rows], seed[rows]), 1.0)
        norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        if not math.isfinite(norm):
            return 1
        total.values.add_(gradient, alpha=min(1.0, self._clip * (1.0 - MARGIN) / norm) if norm else 1.0)
        return 0

    def _instantiate(self, part: Part, total: _Total) -> int:
        """With torch.func or Opacus: every patient's gradient at full length, in float64."""
        kept = part.kept()
        if self.engine == "opacus":
            rows = self._opacus_gradients(kept)
        else:
            index, at_once = kept.numbers(), min(self._micro_batch or RECORDS_AT_ONCE, RECORDS_AT_ONCE)
            with self._precision(kept.inputs):
                rows = module_gradients(
                    self._module, self._scalar, kept.inputs, kept.targets, index, kept.patients, at_once
                )
        clipped = clip_gradients(rows, self._clip)
        total.values.add_(torch.from_numpy(clipped.gradients.sum(axis=0)).to(part.inputs.device))
        return int(clipped.refused.size)

    def _opacus_gradients(self, part: Part) -> Float64:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from opacus import GradSampleModule

            twin = copy.deepcopy(self._module)
            try:
                wrapped = GradSampleModule(twin, loss_reduction="sum")
            except NotImplementedError as error:
                raise ParameterError(f"Opacus cannot serve this model: {error}", "Use another engine.") from error
            with self._precision(part.inputs):
                losses = self._loss(wrapped(part.inputs), part.targets)
            torch.autograd.backward(losses.sum())
            grads = [getattr(p, "grad_sample").flatten(1) for p in twin.parameters() if p.requires_grad]  # noqa: B009
        rows = torch.cat(grads, dim=1).double().cpu().numpy()
        return average_by_patient(rows, part.numbers(), part.patients)

    def _pieces(self, index: Tensor | None, records: int, people: int, device: torch.device) -> Iterator[Tensor | None]:
        """Records of whole patients, at most a micro-batch of them; None stands for all at once."""
        limit = self._micro_batch
        if limit is None or records <= limit:
            yield None
            return
        if index is None:
            for start in range(0, records, limit):
                yield torch.arange(start, min(records, start + limit), device=device)
            return
        order = torch.argsort(index, stable=True)
        sizes = torch.bincount(index, minlength=people).tolist()
        start = end = 0
        for size in sizes:
            if end > start and end + size - start > limit:
                yield order[start:end]
                start = end
            end += size
        if end > start:
            yield order[start:end]

    def _trusted(
        self, inputs: Tensor, targets: Tensor, mask: Tensor | None, *, single: bool
    ) -> BookKeeping | Chain | None:
        """What may compute this batch, proved; None leaves it to torch.func. single: record i is patient i."""
        if self._chain is not None and single:
            if self._verdict(self._chain, inputs, targets, mask) is not False:
                return self._chain if self._chain in self._proved else None
            self._chain = None
        if self._books is None:
            return None
        if self._verdict(self._books, inputs, targets, mask) is False:
            self._books = None
            if self._asked == "bookkeeping":
                raise NotDispatchable("its gradients differ from autograd's, record by record")
            return None
        return self._books if self._books in self._proved else None

    def _verdict(self, books: BookKeeping | Chain, inputs: Tensor, targets: Tensor, mask: Tensor | None) -> bool | None:
        """Whether the books are right, tried once; None where this batch cannot tell."""
        if books in self._proved:
            return True
        try:
            proof = self._prove(books, inputs, targets, mask)
        except NotDispatchable:
            if self._asked == "bookkeeping" and books is self._books:
                raise
            return False
        finally:
            books.release()
        if proof:
            self._proved.add(books)
        return proof

    def _prove(self, books: BookKeeping | Chain, inputs: Tensor, targets: Tensor, mask: Tensor | None) -> bool | None:
        """Whether two records agree with autograd; None where no two neighbours have finite gradients other than 0."""
        rows = torch.arange(inputs.shape[0], device=inputs.device)
        rows = rows if mask is None else rows[mask]
        seed = torch.tensor([1.0, 0.5], device=inputs.device)
        for start in range(min(rows.shape[0] - 1, MOST_PROOFS)):
            x, y = inputs[rows[start : start + 2]], targets[rows[start : start + 2]]
            norms = books.record(partial(self._losses, x, y), seed, PatientBatch(2, 2, None))
            if bool(torch.isfinite(norms).all()) and bool(norms.all()):
                return self._agrees(books, x, y, norms.sqrt())
        return None

    def _agrees(self, books: BookKeeping | Chain, x: Tensor, y: Tensor, norms: Tensor) -> bool:
        """The recorded gradients against those of each record by itself."""
        ones, rest = torch.ones(2, device=x.device), torch.zeros(self._length, device=x.device)
        if isinstance(books, Chain):
            books.write_weighted(ones, rest)
        else:
            books.add_weighted(ones, rest)
        tolerance = 1e-3 if self._autocast is None else 5e-2
        lengths, close = 0.0, True
        for row, weight in enumerate((1.0, 0.5)):
            parts = self._autograd(x[row : row + 1], y[row : row + 1], torch.tensor([weight], device=x.device))
            length = math.sqrt(sum(float(torch.linalg.vector_norm(part, dtype=torch.float32)) ** 2 for part in parts))
            close = close and abs(float(norms[row]) - length) <= tolerance * length
            _add_parts(rest, parts, -1.0)
            lengths += length
        return close and float(torch.linalg.vector_norm(rest)) <= tolerance * lengths

    def _autograd(self, inputs: Tensor, targets: Tensor, seed: Tensor) -> list[Tensor]:
        """The gradient of each parameter in turn, zeros where the loss does not depend on it."""
        parameters = [p for p in self._module.parameters() if p.requires_grad]
        with torch.enable_grad():
            losses = self._losses(inputs, targets)
            gradients = torch.autograd.grad(losses, parameters, seed.to(losses.dtype), allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]

    def _losses(self, inputs: Tensor, targets: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        with self._precision(inputs):
            losses = self._loss((run or self._module)(inputs), targets)
        if losses.shape != inputs.shape[:1]:
            raise ParameterError(
                f"The loss gave the shape {tuple(losses.shape)} for {inputs.shape[0]} records.",
                "Let it give one value per record (reduction='none').",
            )
        return losses

    def _scalar(self, output: Tensor, target: Tensor) -> Tensor:
        return self._loss(output, target).sum()

    def _precision(self, inputs: Tensor) -> AbstractContextManager[object]:
        return nullcontext() if self._autocast is None else torch.autocast(inputs.device.type, dtype=self._autocast)


class _Total:
    """The sum, zeroed at first use: by then the backward pass has given its memory back."""

    def __init__(
        self, length: int, device: torch.device, out: Tensor | None, dtype: torch.dtype = torch.float32
    ) -> None:
        if out is not None and (out.shape != (length,) or out.dtype != dtype or out.device != device):
            raise ParameterError(f"The result needs {length} float32 beside the inputs.", "Leave out unset.")
        self._length, self._device, self._dtype = length, device, dtype
        self._out = out
        self._values: Tensor | None = None

    def add(self, write: Callable[[Tensor], object]) -> None:
        """Add what `write` makes of the vector that it is given, whatever is in it."""
        if self._values is None:
            if self._out is None:
                self._values = torch.empty(self._length, dtype=self._dtype, device=self._device)
            else:
                self._values = self._out
            write(self._values)
        else:
            more = torch.empty_like(self._values)
            write(more)
            self._values.add_(more)

    @property
    def values(self) -> Tensor:
        if self._values is None:
            if self._out is None:
                self._values = torch.zeros(self._length, dtype=self._dtype, device=self._device)
            else:
                self._values = self._out.zero_()
        return self._values


def _add_parts(into: Tensor, parts: list[Tensor], factor: float) -> None:
    """into (D,) += factor times the parts laid end to end, which are used up, so that no third copy is held."""
    start = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        into[start : start + part.numel()].view(part.shape).add_(part, alpha=factor)
        start += part.numel()


def _copy(more: Tensor, into: Tensor) -> None:
    into.copy_(more)
