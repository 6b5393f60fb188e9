"""Books for a stack of linear layers and activations, without autograd: for small networks its hooks and its graph cost
as much as a third of the step's arithmetic.

One record per patient, so a layer's gradient for a patient is the outer product g a^T and its squared norm |g|^2 |a|^2
(Goodfellow 2015): one pass forward, one backward for the g, and one product per layer for the clipped sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privacy.dpsgd.bookkeeping import NotDispatchable
from privacy.dpsgd.layer_rules import PatientBatch, Workspace, zero_rows

Forward = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""Given what runs the module, the losses (R,) of a batch."""
Backward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(gradient of the output, input, output) -> gradient of the input."""

_aten = torch.ops.aten


def _backward_of(layer: nn.Module) -> Backward | None:
    """The derivative of a known activation; known by its exact type, since a subclass may compute something else."""
    if type(layer) is nn.Tanh:
        return lambda g, _, out: _aten.tanh_backward(g, out)
    if type(layer) is nn.ReLU:
        return lambda g, _, out: _aten.threshold_backward(g, out, 0)
    if type(layer) is nn.Sigmoid:
        return lambda g, _, out: _aten.sigmoid_backward(g, out)
    if type(layer) is nn.SiLU:
        return lambda g, a, _: _aten.silu_backward(g, a)
    if isinstance(layer, nn.GELU) and type(layer) is nn.GELU:
        way = layer.approximate
        return lambda g, a, _: _aten.gelu_backward(g, a, approximate=way)
    if type(layer) is nn.Identity or type(layer) is nn.Flatten:
        return lambda g, a, _: g.view(a.shape)
    return None


@dataclass(slots=True)
class _Step:
    """One layer, and what a pass keeps of it: a linear one has a weight, any other a way backward. start: where its
    parameters begin in the flat vector.
    """

    layer: nn.Module
    weight: Tensor | None
    bias: Tensor | None
    backward: Backward | None
    start: int
    inputs: Tensor | None = None
    outputs: Tensor | None = None
    gradient: Tensor | None = None


class Chain:
    """Books for one module. Raises NotDispatchable unless it is a sequence of trained float32 Linear layers and known
    activations.
    """

    def __init__(self, module: nn.Module) -> None:
        self.work = Workspace()
        self._steps: list[_Step] = []
        self.length = 0
        self._visit(module)
        self._first = next((i for i, step in enumerate(self._steps) if step.weight is not None), None)
        self._linear = [step for step in self._steps if step.weight is not None]
        parameters = list(module.parameters())
        if self._first is None or self.length != sum(p.numel() for p in parameters):
            raise NotDispatchable("it is not a stack of linear layers, each used once")
        if any(not p.requires_grad or p.dtype != torch.float32 for p in parameters):
            raise NotDispatchable("a parameter is frozen or not in float32")
        self._outputs: Tensor | None = None
        self._total: Tensor | None = None
        self._places: list[tuple[Tensor, Tensor | None]] = []

    def _visit(self, layer: nn.Module) -> None:
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
            raise NotDispatchable("it has hooks")
        if type(layer) is nn.Sequential:
            # Not children(), which tells of a layer that stands there twice once.
            for child in layer._modules.values():
                if child is not None:
                    self._visit(child)
            return
        backward = _backward_of(layer)
        if backward is None and type(layer) is not nn.Linear:
            raise NotDispatchable(f"it has a layer {type(layer).__name__}")
        weight, bias = (layer.weight, layer.bias) if isinstance(layer, nn.Linear) else (None, None)
        self._steps.append(_Step(layer, weight, bias, backward, self.length))
        self.length += sum(p.numel() for p in layer.parameters())

    def record(self, forward: Forward, seed: Tensor, batch: PatientBatch) -> Tensor:
        """(R,) float32 squared norms; record r's gradient is weighted by seed[r]. Raises NotDispatchable for records
        of several patients' or of another shape than (R, features).
        """
        if batch.grouped:
            raise NotDispatchable("patients have several records")
        self._outputs = None
        with torch.enable_grad():
            losses = forward(self._run)
            if self._outputs is None or losses.shape != seed.shape:
                raise NotDispatchable("its loss does not use the outputs once, record by record")
            (g,) = torch.autograd.grad(losses, self._outputs, seed.to(losses.dtype))
        with torch.no_grad():
            return self._close(g)

    def _run(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for step in self._steps:
                step.inputs = x
                if step.weight is None:
                    # Without the bookkeeping of Module.__call__: there are no hooks to run.
                    x = step.layer.forward(x)
                elif x.dim() == 2:
                    x = nn.functional.linear(x, step.weight, step.bias)
                else:
                    raise NotDispatchable("a linear layer runs along more than one axis")
                step.outputs = x
        self._outputs = x.detach().requires_grad_(True)
        return self._outputs

    def _close(self, g: Tensor) -> Tensor:
        norms: Tensor | None = None
        assert self._first is not None
        for number in range(len(self._steps) - 1, self._first - 1, -1):
            step = self._steps[number]
            inputs, outputs = step.inputs, step.outputs
            assert inputs is not None
            assert outputs is not None
            if step.backward is not None:
                g = step.backward(g, inputs, outputs)
                continue
            step.gradient = g
            squares = torch.linalg.vector_norm(inputs, dim=1).square_()
            if step.bias is not None:
                squares.add_(1.0)
            own = torch.linalg.vector_norm(g, dim=1).square_().mul_(squares)
            norms = own if norms is None else norms.add_(own)
            if number > self._first and step.weight is not None:
                g = torch.mm(g, step.weight)
        assert norms is not None
        return norms

    def write_weighted(self, weights: Tensor, total: Tensor) -> None:
        """Overwrite total (D,) float32 with the sum over records of weights[r] times r's recorded gradient. Once per
        `record`.
        """
        if self._total is not total:
            self._total, self._places = total, [self._place(step, total) for step in self._linear]
        column = weights.unsqueeze(1)
        with torch.no_grad():
            for step, (matrix, vector) in zip(self._linear, self._places, strict=True):
                a, g = step.inputs, step.gradient
                assert a is not None
                assert g is not None
                across = g.t()
                # The narrower side is scaled.
                if a.shape[1] < g.shape[1]:
                    torch.mm(across, a * column, out=matrix)
                else:
                    torch.mm((g * column).t(), a, out=matrix)
                if vector is not None:
                    torch.mv(across, weights, out=vector)
        self.release()

    def _place(self, step: _Step, total: Tensor) -> tuple[Tensor, Tensor | None]:
        assert step.weight is not None
        end = step.start + step.weight.numel()
        matrix = total[step.start : end].view(step.weight.shape)
        return matrix, None if step.bias is None else total[end : end + step.bias.numel()]

    def forget(self, patients: Tensor) -> None:
        """Zero what was recorded of some patients: (R,) bool."""
        for step in self._steps:
            if step.gradient is not None and step.inputs is not None:
                step.inputs, step.gradient = zero_rows(step.inputs, patients), zero_rows(step.gradient, patients)

    def release(self) -> None:
        """Drop what a step has kept."""
        self._outputs = None
        for step in self._steps:
            step.inputs = step.outputs = step.gradient = None
