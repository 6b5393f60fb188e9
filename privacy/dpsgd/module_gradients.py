"""One gradient per patient for any torch module whose forward pass treats records apart: torch.func, vmap over grad, or
plain autograd record by record where vmap has no rule for a layer.

It imports torch: for the training process alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from privacy.dpsgd.per_patient import Index, check_records
from privacy.dpsgd.validation import require_private
from privacy.entropy import Float64

Loss = Callable[[Tensor, Tensor], Tensor]
RECORDS_AT_ONCE = 256


def parameter_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the trained parameters in the order in which gradients are flattened."""
    return tuple(name for name, parameter in module.named_parameters() if parameter.requires_grad)


def module_gradients(
    module: nn.Module,
    loss: Loss,
    features: Tensor,
    labels: Tensor,
    patients: Index,
    count: int,
    at_once: int = RECORDS_AT_ONCE,
) -> Float64:
    """(count, D) float64: each patient's mean over its records of the gradient of `loss`, flattened by parameter.

    features: (R, ...). labels: (R, ...). patients: (R,) in 0..count-1. `loss(output, label)` takes batches of one
    record and gives a scalar that depends on that record alone. Records are worked on `at_once` at a time.
    Raises ParameterError for batch normalisation, which couples patients so that clipping bounds nothing, for active
    dropout, and for arrays that do not fit.
    """
    require_private(module)
    check_records(_meta(features), _meta(labels), patients, count)
    names = parameter_names(module)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    trained = {name: parameters.pop(name) for name in names}
    fixed = {**parameters, **{name: b.detach() for name, b in module.named_buffers()}}

    def record_loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = functional_call(module, {**values, **fixed}, (x.unsqueeze(0),))
        return loss(output, y.unsqueeze(0))

    def one_by_one(_values: dict[str, Tensor], xs: Tensor, ys: Tensor) -> dict[str, Tensor]:
        own = dict(module.named_parameters())
        rows = []
        for x, y in zip(xs, ys, strict=True):
            with torch.enable_grad():
                value = loss(module(x.unsqueeze(0)), y.unsqueeze(0))
                rows.append(torch.autograd.grad(value, [own[name] for name in names], allow_unused=True))
        return {
            name: torch.stack([torch.zeros_like(own[name]) if row[at] is None else row[at] for row in rows])
            for at, name in enumerate(names)
        }

    recurrent = any(isinstance(layer, nn.RNNBase) for layer in module.modules())
    per_record = one_by_one if recurrent else vmap(grad(record_loss), in_dims=(None, 0, 0))
    sums = np.zeros((count, sum(value.numel() for value in trained.values())))
    for start in range(0, features.shape[0], at_once):
        part = slice(start, start + at_once)
        gradients = per_record(trained, features[part], labels[part])
        rows = torch.cat([gradients[name].flatten(1) for name in names], dim=1)
        np.add.at(sums, patients[part], rows.to(torch.float64).cpu().numpy())
    sums /= np.maximum(np.bincount(patients, minlength=count), 1)[:, np.newaxis]
    return sums


def _meta(tensor: Tensor) -> np.ndarray:
    return np.broadcast_to(np.float64(0), tuple(tensor.shape))
