"""Clipped sums of per-patient gradients from one forward and one backward pass (book-keeping, Bu et al. 2023).

Hooks keep each layer's input and the gradient of its output; parameters themselves are not differentiated. When a
layer's gradients are in, its share of every patient's squared norm is taken and what is no longer needed is dropped.
The clipped sum is then formed from what was kept, without a second backward pass.

Finite precision: norms are float32, so a patient's clipped gradient exceeds the clip by a relative error near 1e-6
where nothing cancels (Higham 2002, chapter 3); the weights are lowered by `MARGIN` to stay below it. A patient whose
norm is not finite in float32, that is above 1.8e19, counts as refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from privacy.dpsgd.layer_rules import Clock, LayerRule, PatientBatch, Workspace
from privacy.dpsgd.layers_compound import attention, attention_obstacle, recurrent, recurrent_obstacle
from privacy.dpsgd.layers_conv import ConvRule
from privacy.dpsgd.layers_embedding import EmbeddingRule
from privacy.dpsgd.layers_generic import GenericRule
from privacy.dpsgd.layers_linear import LinearRule
from privacy.dpsgd.layers_norm import NormRule
from privacy.errors import ParameterError

MARGIN = 1e-5
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)
MakeRule = Callable[[], LayerRule]


class NotDispatchable(ParameterError):
    """A module that the engine cannot keep books for; another engine can."""

    def __init__(self, what: str) -> None:
        super().__init__(f"Book-keeping cannot serve this model: {what}.", 'Use the engine "vmap" or "opacus".')


@dataclass
class _Book:
    rule: LayerRule
    calls: list[list[Tensor | None]] = field(default_factory=list)
    missing: int = 0


class BookKeeping:
    """Books for one module. Raises NotDispatchable where parameters are tied or the model's root owns some."""

    def __init__(self, module: nn.Module, clock: Clock | None = None) -> None:
        self._module = module
        self.work = Workspace(clock)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.length = sum(p.numel() for p in self.parameters)
        owned = [p for layer in module.modules() for p in layer._parameters.values() if p is not None]
        if sum(p.requires_grad for p in owned) != len(self.parameters):
            raise NotDispatchable("two layers share a parameter")
        self._trained = {id(p) for p in self.parameters}
        self._offsets: dict[int, int] = {}
        start = 0
        for parameter in self.parameters:
            self._offsets[id(parameter)] = start
            start += parameter.numel()
        self._rules: list[tuple[nn.Module, MakeRule]] = []
        self._compound: list[nn.Module] = []
        self._visit(module, "")
        self._anchor: Tensor | None = None
        self._books: dict[Any, _Book] = {}
        self._batch = PatientBatch(0, 0, None)
        self._norms: Tensor | None = None
        self._closing = False

    def _visit(self, layer: nn.Module, name: str) -> None:
        if not any(id(p) in self._trained for p in layer.parameters()):
            return
        if type(layer) is nn.MultiheadAttention or type(layer) in _RECURRENT:
            if obstacle := _obstacle(layer):
                raise NotDispatchable(f"the layer {name or 'itself'} {obstacle}")
            self._compound.append(layer)
            return
        make = self._rule_of(layer)
        if make is not None:
            self._rules.append((layer, make))
        elif any(id(p) in self._trained for p in layer.parameters(recurse=False)):
            if layer is self._module:
                raise NotDispatchable("its outermost module owns parameters itself")
            trained = {n: p for n, p in layer.named_parameters() if id(p) in self._trained}
            self._rules.append((layer, partial(GenericRule, layer, trained)))
        else:
            for child_name, child in layer.named_children():
                self._visit(child, f"{name}.{child_name}" if name else child_name)

    def _rule_of(self, layer: nn.Module) -> MakeRule | None:
        """Layers are known by their exact type: a subclass may compute something else."""
        if not set(layer._parameters) <= {"weight", "bias"} or list(layer.children()):
            return None
        weight, bias = self._if_trained(layer, "weight"), self._if_trained(layer, "bias")
        kind = type(layer)
        if isinstance(layer, nn.Linear) and kind is nn.Linear:
            return partial(LinearRule, weight, bias)
        if isinstance(layer, _CONV) and kind in _CONV:
            return partial(ConvRule, layer, weight, bias)
        if isinstance(layer, nn.Embedding) and kind is nn.Embedding and weight is not None:
            return partial(EmbeddingRule, weight, layer.padding_idx)
        if isinstance(layer, nn.GroupNorm) and kind is nn.GroupNorm:
            normalise = partial(nn.functional.group_norm, num_groups=layer.num_groups, eps=layer.eps)
            return partial(NormRule, normalise, weight, bias, channels_first=True)
        if isinstance(layer, _INSTANCE) and kind in _INSTANCE:
            normalise = partial(nn.functional.instance_norm, eps=layer.eps)
            return partial(NormRule, normalise, weight, bias, channels_first=True)
        if isinstance(layer, nn.LayerNorm) and kind is nn.LayerNorm:
            shape = list(layer.normalized_shape)
            normalise = partial(nn.functional.layer_norm, normalized_shape=shape, eps=layer.eps)
            return partial(NormRule, normalise, weight, bias, channels_first=False)
        if isinstance(layer, nn.RMSNorm) and kind is nn.RMSNorm:
            shape = list(layer.normalized_shape)
            normalise = partial(nn.functional.rms_norm, normalized_shape=shape, eps=layer.eps)
            return partial(NormRule, normalise, weight, None, channels_first=False)
        return None

    def _if_trained(self, layer: nn.Module, name: str) -> nn.Parameter | None:
        return self._parameter(layer._parameters.get(name))

    def _parameter(self, value: Tensor | None) -> nn.Parameter | None:
        return value if isinstance(value, nn.Parameter) and id(value) in self._trained else None

    def record(self, forward: Callable[[nn.Module], Tensor], seed: Tensor, batch: PatientBatch) -> Tensor:
        """(P,) float32 squared norms. `forward` gives the module's losses (R,); record r's gradient is weighted by
        seed[r].
        """
        self._batch, self._books = batch, {}
        self._norms = torch.zeros(batch.patients, dtype=torch.float32, device=seed.device)
        self._anchor = torch.zeros((), device=seed.device, requires_grad=True)
        with self._recording():
            losses = forward(self._module)
            if losses.shape != seed.shape:
                raise ParameterError(
                    f"The loss gave the shape {tuple(losses.shape)} for {seed.shape[0]} records.",
                    "Let it give one value per record (reduction='none').",
                )
            if losses.requires_grad:
                torch.autograd.backward(losses, seed.to(losses.dtype))
        for key in [key for key, book in self._books.items() if book.missing]:
            book = self._books[key]
            book.calls = [call for call in book.calls if call[1] is not None]
            if book.calls:
                self._close(book)
            else:
                del self._books[key]
        return self._norms

    def add_weighted(self, weights: Tensor, into: Tensor) -> None:
        """into (D,) float32 += the sum over patients of weights[p] times p's recorded gradient. Once per `record`."""

        def target(parameter: nn.Parameter) -> Tensor:
            start = self._offsets[id(parameter)]
            return into[start : start + parameter.numel()].view(parameter.shape)

        with torch.no_grad():
            while self._books:
                _, book = self._books.popitem()
                book.rule.add_weighted(weights, self._batch, target)

    def forget(self, patients: Tensor) -> None:
        """Zero what was recorded of some patients: (P,) bool."""
        with torch.no_grad():
            for book in self._books.values():
                book.rule.forget(patients, self._batch.of_records(patients))

    def release(self) -> None:
        """Drop what a step that failed has kept."""
        self._books = {}

    @contextmanager
    def _recording(self) -> Iterator[None]:
        handles = []
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        try:
            for layer, make in self._rules:
                handles.append(layer.register_forward_hook(partial(self._after, make)))
            for layer in self._compound:
                run: Callable[..., Any] = attention if isinstance(layer, nn.MultiheadAttention) else recurrent
                layer.__dict__["forward"] = partial(run, layer, self)
            with torch.enable_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()
            for layer in self._compound:
                layer.__dict__.pop("forward", None)
            for parameter in self.parameters:
                parameter.requires_grad_(True)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice = slice(None)) -> Tensor:
        """See LinearRecorder."""
        out = nn.functional.linear(x, weight[rows], None if bias is None else bias[rows])
        trained, trained_bias = self._parameter(weight), self._parameter(bias)
        if trained is None and trained_bias is None:
            return out
        make = partial(LinearRule, trained, trained_bias, rows)
        return self._tap((id(weight), rows.start), make, x, out)

    def _after(self, make: MakeRule, layer: nn.Module, inputs: tuple[Any, ...], out: Any) -> Any:
        if self._closing:
            # A generic rule runs its layer again.
            return out
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(out, Tensor):
            raise NotDispatchable(f"a layer {type(layer).__name__} takes or gives more than one tensor")
        return self._tap(id(layer), make, inputs[0], out)

    def _tap(self, key: Any, make: MakeRule, a: Tensor, out: Tensor) -> Tensor:
        if a.shape[:1] != (self._batch.records,) or out.shape[:1] != (self._batch.records,):
            raise NotDispatchable("a layer's first axis is not that of the records")
        book = self._books.get(key)
        if book is None:
            book = self._books[key] = _Book(make())
        call: list[Tensor | None] = [a.detach(), None]
        book.calls.append(call)
        book.missing += 1

        def receive(g: Tensor) -> None:
            call[1] = g.detach()
            book.missing -= 1
            if not book.missing:
                self._close(book)

        if out.requires_grad:
            out.register_hook(receive)  # type: ignore[no-untyped-call]
            return out
        assert self._anchor is not None
        tapped: Tensor = _FirstLayer.apply(out, self._anchor, receive)  # type: ignore[no-untyped-call]
        return tapped

    def _close(self, book: _Book) -> None:
        calls = [(a, g) for a, g in book.calls if a is not None and g is not None]
        for call in book.calls:
            # A hook of the graph still holds the list.
            call.clear()
        book.calls = []
        assert self._norms is not None
        self._closing = True
        try:
            with torch.no_grad():
                self._norms += book.rule.close(calls, self._batch)
        finally:
            self._closing = False


def _obstacle(layer: nn.Module) -> str | None:
    if isinstance(layer, nn.MultiheadAttention):
        return attention_obstacle(layer)
    return recurrent_obstacle(layer) if isinstance(layer, nn.RNNBase) else None


class _FirstLayer(torch.autograd.Function):
    """Where nothing before needs a gradient: the output joins the graph, and backward ends here."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, anchor: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
        ctx.receive = receive
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.receive(gradients[0])
        return None, None, None
