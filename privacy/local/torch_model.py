"""Any torch module as a model of a site: how it is built, its loss per record, its score per record.

The sum comes from `privacy.dpsgd.private_gradients`: norms in float32, micro-batches under a memory cap, their sums
added in float64. torch is imported here, so import this module in the training process alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from privacy.dpsgd.per_patient import check_records
from privacy.dpsgd.private_gradients import Engine, Losses, PrivateGradients
from privacy.dpsgd.validation import require_private
from privacy.entropy import Float64
from privacy.errors import ParameterError
from privacy.local.model import CPU, Hardware, PatientScores, scores_by_patient
from privacy.local.patients import Array, Group

# What a record's forward pass keeps is held about three times: by autograd, by the books, and as gradients.
COPIES = 3


class TorchModel:
    """A LocalModel around a module whose forward pass treats records apart. Not for several threads at once.

    The flat vector holds the module's parameters in the order of `module.parameters()`, each row by row.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        loss: Losses,
        score: Callable[[Tensor], Tensor],
        *,
        inputs: Callable[[Array], Tensor] | None = None,
        targets: Callable[[Array], Tensor] | None = None,
        outcomes: Callable[[Array], Float64] | None = None,
        groups: int = 2,
        fit: Callable[[Tensor, Tensor], Tensor] | None = None,
        engine: Engine = "auto",
    ) -> None:
        """build: the module, all of whose parameters train; called once. loss: (outputs, targets) of r records -> (r,).
        score: outputs -> (r,) in [0, 1]. inputs, targets: what the module and the loss take for a group's x and y (r,
        ...); by default the same numbers in the parameters' precision. outcomes: y -> (r,) what the score predicts, 0,
        1, or NaN for unknown; by default y itself. groups: 3 where unknown outcomes are counted apart. fit: (outputs,
        targets) -> (r,) in [0, 1], how well each record was predicted, counted in place of a score. engine: "vmap" for
        a module that takes one record at a time.

        Raises ParameterError for layers that cannot be private.
        """
        self._module = build()
        require_private(self._module)
        self._trained = list(self._module.parameters())
        self._dtype = self._trained[0].dtype
        self._loss, self._score, self._engine = loss, score, engine
        self._inputs = inputs or self._same
        self._targets = targets or self._same
        self._outcomes = outcomes or (lambda y: np.asarray(y, dtype=np.float64))
        self._fit, self._groups = fit, groups
        self._flat = torch.cat([p.detach().flatten() for p in self._trained])
        self._gradients: dict[tuple[float, int, Hardware], PrivateGradients] = {}
        self._at_once: dict[tuple[tuple[int, ...], int], int] = {}

    @property
    def parameters(self) -> int:
        """P."""
        return self._flat.numel()

    @property
    def uses_torch(self) -> bool:
        """It does."""
        return True

    def gradient_sum(self, parameters: Float64, group: Group, clip: float, hardware: Hardware = CPU) -> Float64:
        """See LocalModel."""
        self._load(parameters, hardware)
        check_records(group.x, group.y, group.patient, group.patients)
        total = np.zeros(self.parameters)
        if group.patients == 0:
            return total
        size = self._records_at_once(group.x, hardware.memory)
        for block in group.blocks(size):
            part = self._engine_for(clip, size, hardware).clipped_sum(
                self._inputs(block.x).to(hardware.device),
                self._targets(block.y).to(hardware.device),
                block.patient,
                block.patients,
            )
            total += part.total.double().cpu().numpy()
        return total

    def scores(self, parameters: Float64, group: Group, hardware: Hardware = CPU) -> PatientScores:
        """See LocalModel."""
        self._load(parameters, hardware)
        found = np.zeros(group.x.shape[0])
        size = self._records_at_once(group.x, hardware.memory) if found.size else 1
        with torch.no_grad():
            for start in range(0, found.size, size):
                rows = slice(start, start + size)
                outputs = self._forward(self._inputs(group.x[rows]).to(hardware.device))
                found[rows] = self._judged(outputs, group.y[rows]).double().cpu().numpy()
        if self._fit is not None:
            return scores_by_patient(found, np.zeros(found.size), group, 1)
        return scores_by_patient(found, self._outcomes(group.y), group, self._groups)

    def _judged(self, outputs: Tensor, y: Array) -> Tensor:
        return self._score(outputs) if self._fit is None else self._fit(outputs, self._targets(y).to(outputs.device))

    def _forward(self, inputs: Tensor) -> Tensor:
        if self._engine != "vmap":
            outputs: Tensor = self._module(inputs)
            return outputs
        outputs = torch.vmap(lambda record: self._module(record.unsqueeze(0)).squeeze(0))(inputs)
        return outputs

    def _same(self, values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._dtype)

    def _load(self, parameters: Float64, hardware: Hardware) -> None:
        if parameters.shape != (self.parameters,) or not bool(np.isfinite(parameters).all()):
            raise ParameterError(
                f"The model's vector is not {self.parameters} finite numbers.",
                "Send the vector that the plan's model has.",
            )
        if self._flat.device != torch.device(hardware.device):
            self._module.to(hardware.device)
            self._flat = self._flat.to(hardware.device)
            self._gradients.clear()
        self._flat.copy_(torch.from_numpy(np.ascontiguousarray(parameters)))
        start = 0
        for parameter in self._trained:
            # Views of one vector: the next round's model is one copy.
            parameter.data = self._flat[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()

    def _engine_for(self, clip: float, size: int, hardware: Hardware) -> PrivateGradients:
        key = (clip, size, hardware)
        if key not in self._gradients:
            # One is kept: its books' memory and its proof serve the rounds to come.
            self._gradients.clear()
            self._gradients[key] = PrivateGradients(
                self._module,
                self._loss,
                clip=clip,
                engine=self._engine,
                micro_batch=size,
                autocast=torch.bfloat16 if hardware.half else None,
            )
        return self._gradients[key]

    def _records_at_once(self, x: Array, memory: int) -> int:
        """How many records fit into `memory` bytes, at least 1, judged by a record of zeros."""
        key = (x.shape[1:], memory)
        if key not in self._at_once:
            kept: dict[int, int] = {}

            def keep(tensor: Tensor) -> Tensor:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            record = self._inputs(np.zeros((1, *x.shape[1:]), dtype=x.dtype)).to(self._flat.device)
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                self._module(record)
            kept.pop(self._flat.untyped_storage().data_ptr(), None)
            gradient = self.parameters * (16 if self._engine == "vmap" else 4)
            self._at_once[key] = max(1, memory // (COPIES * sum(kept.values()) + gradient + 1))
        return self._at_once[key]
