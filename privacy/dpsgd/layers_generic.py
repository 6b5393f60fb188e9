"""Any other layer that owns parameters: torch.func differentiates that layer alone, record by record."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from privacy.dpsgd.layer_rules import CACHE_FLOATS, LayerRule, PatientBatch, Target, squared_norms, zero_rows


class GenericRule(LayerRule):
    """One tensor in, one tensor out, records first. Runs the layer's forward pass a second time, under vmap."""

    def __init__(self, layer: nn.Module, trained: dict[str, nn.Parameter]) -> None:
        self._layer = layer
        self._trained = trained
        self._gradients: dict[str, Tensor] = {}

    def close(self, calls: list[tuple[Tensor, Tensor]], batch: PatientBatch) -> Tensor:
        device = calls[0][1].device
        values = {name: p.detach() for name, p in self._trained.items()}
        fixed = {name: p.detach() for name, p in self._layer.named_parameters() if name not in values}
        fixed |= {name: b.detach() for name, b in self._layer.named_buffers()}

        def one(a: Tensor, g: Tensor) -> dict[str, Tensor]:
            def forward(trained: dict[str, Tensor]) -> Tensor:
                output: Tensor = functional_call(self._layer, {**trained, **fixed}, (a.unsqueeze(0),))
                return output

            pull = vjp(forward, values)[1]
            gradients: dict[str, Tensor] = pull(g.unsqueeze(0))[0]
            return gradients

        self._gradients = {
            name: torch.zeros((batch.patients, *p.shape), dtype=torch.float32, device=device)
            for name, p in values.items()
        }
        step = max(1, 64 * CACHE_FLOATS // max(1, sum(math.prod(p.shape) for p in values.values())))
        for a, g in calls:
            # Outside autocast, in the precision of the parameters.
            kind = next(iter(values.values())).dtype
            a, g = (a.to(kind) if a.is_floating_point() else a), g.to(kind)
            for start in range(0, batch.records, step):
                rows = vmap(one)(a[start : start + step], g[start : start + step])
                for name, more in rows.items():
                    batch.total(more.float(), self._gradients[name], start)
        return torch.stack([squared_norms(rows) for rows in self._gradients.values()]).sum(0)

    def add_weighted(self, weights: Tensor, batch: PatientBatch, target: Target) -> None:
        for name, rows in self._gradients.items():
            target(self._trained[name]).view(-1).addmv_(rows.flatten(1).t(), weights)

    def forget(self, patients: Tensor, records: Tensor) -> None:
        self._gradients = {name: zero_rows(rows, patients) for name, rows in self._gradients.items()}
