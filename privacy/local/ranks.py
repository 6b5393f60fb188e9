"""One site's step on several devices: a process for each, through torch.distributed, with rank 0 in the lead.

Rank 0 draws the Poisson sample and tells the others; each takes some of the sampled patients, whole ones, and clips and
sums them on its device; rank 0 adds the sums in the ranks' order, in float64, so that who was first changes no bit.
Noise is nobody's business here: rank 0's caller adds it once. Every rank holds the same patients. What crosses between
ranks are numbers in tensors, nothing is unpickled; the process group, made by the caller, must be closed to others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from privacy.entropy import Float64
from privacy.errors import PrivacyError
from privacy.local.model import CPU, Hardware, LocalModel
from privacy.local.patients import Group

_END, _PREPARE, _STEP = range(3)
# Entries that rank 0 holds of every rank at once.
PIECE = 1 << 22

Prepared = tuple[LocalModel, Group]


class RankFailed(PrivacyError):
    """A process that shares this site's step could not do its part: nothing of the step may be used."""

    code = "rank-failed"

    def __init__(self, rank: int) -> None:
        super().__init__(
            f"The process of rank {rank} could not compute its part of the step.",
            "Look at its device and its memory; train on one device meanwhile.",
        )


def part_of(group: Group, rank: int, ranks: int) -> Group:
    """The patients of one rank, consecutive ones; the ranks' records are about equally many, and every patient is in
    exactly one part.
    """
    records = np.searchsorted(group.patient, np.arange(group.patients), side="right")
    shares = records[-1] * np.arange(1, ranks) / ranks if group.patients else np.zeros(ranks - 1)
    ends = [0, *np.searchsorted(records, shares, side="right").tolist(), group.patients]
    return group.block(ends[rank], ends[rank + 1] - ends[rank])


class Ranks:
    """This process' place among the site's. For the default process group, which must exist. device: where tensors
    cross, "cpu" for gloo and this rank's own for NCCL.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device

    def prepare(self, document: bytes) -> None:
        """Rank 0: have the others make what the document says, for the steps to come. Raises RankFailed."""
        self._tell(_PREPARE, len(document))
        self._send(torch.frombuffer(bytearray(document), dtype=torch.uint8))
        other = self._failed(failed=False)
        if other is not None:
            raise RankFailed(other)

    def gradient_sum(
        self,
        model: LocalModel,
        parameters: Float64,
        group: Group,
        chosen: npt.NDArray[np.bool_],
        clip: float,
        hardware: Hardware = CPU,
    ) -> Float64:
        """Rank 0: (P,) float64 over the chosen patients of the group, as `LocalModel.gradient_sum` gives it.

        Raises RankFailed, and what this rank's own part raises, after the others have done theirs.
        """
        self._tell(_STEP, parameters.size, chosen.size, clip)
        self._send(torch.from_numpy(np.array(parameters, dtype=np.float64)))
        self._send(torch.from_numpy(chosen.astype(np.uint8)))
        failure: Exception | None = None
        try:
            own = self._own(model, parameters, group, chosen, clip, hardware)
        except Exception as error:  # noqa: BLE001 - raised again once no rank waits for this one
            own, failure = np.zeros(parameters.size), error
        other = self._failed(failed=False)
        total = self._collect(own)
        if failure is not None:
            raise failure
        if other is not None:
            raise RankFailed(other)
        return total

    def end(self) -> None:
        """Rank 0: let the others return."""
        self._tell(_END)

    def follow(self, prepare: Callable[[bytes], Prepared], hardware: Callable[[], Hardware] = lambda: CPU) -> None:
        """Any other rank: do what rank 0 tells until it ends. prepare: a document -> the model and the patients.

        A part that fails is told to rank 0 as failed, without why: that may hold a patient's values.
        """
        prepared: Prepared | None = None
        while True:
            operation, first, second, clip = self._hear()
            if operation == _END:
                return
            failed = False
            if operation == _PREPARE:
                document = self._receive(first, torch.uint8).numpy().tobytes()
                try:
                    prepared = prepare(document)
                except Exception:  # noqa: BLE001 - told as failed
                    prepared, failed = None, True
                self._failed(failed=failed)
                continue
            parameters = self._receive(first, torch.float64).numpy()
            chosen = self._receive(second, torch.uint8).numpy().astype(bool)
            own = np.zeros(first)
            try:
                if prepared is None:
                    raise ValueError("nothing was prepared")
                own = self._own(prepared[0], parameters, prepared[1], chosen, clip, hardware())
            except Exception:  # noqa: BLE001 - told as failed
                failed = True
            self._failed(failed=failed)
            self._collect(own)

    def _own(
        self,
        model: LocalModel,
        parameters: Float64,
        group: Group,
        chosen: npt.NDArray[np.bool_],
        clip: float,
        hardware: Hardware,
    ) -> Float64:
        return model.gradient_sum(parameters, part_of(group.select(chosen), self.rank, self.size), clip, hardware)

    def _tell(self, operation: int, first: int = 0, second: int = 0, clip: float = 0.0) -> None:
        self._send(torch.tensor([operation, first, second, clip], dtype=torch.float64))

    def _hear(self) -> tuple[int, int, int, float]:
        operation, first, second, clip = self._receive(4, torch.float64).tolist()
        return int(operation), int(first), int(second), clip

    def _send(self, values: Tensor) -> None:
        dist.broadcast(values.to(self._device), 0)

    def _receive(self, length: int, dtype: torch.dtype) -> Tensor:
        values = torch.empty(length, dtype=dtype, device=self._device)
        dist.broadcast(values, 0)
        return values.cpu()

    def _failed(self, *, failed: bool) -> int | None:
        """Every rank says whether it failed; rank 0 learns the first that did."""
        told = self._gather(torch.tensor([float(failed)], dtype=torch.float64))
        return next((rank for rank, flag in enumerate(told) if bool(flag)), None)

    def _collect(self, own: Float64) -> Float64:
        """At rank 0 the sum of all ranks' vectors, added in their order; at the others their own."""
        total = np.zeros_like(own)
        for start in range(0, own.size, PIECE):
            for part in self._gather(torch.from_numpy(own[start : start + PIECE])):
                total[start : start + PIECE] += part.numpy()
        return total if self.rank == 0 else own

    def _gather(self, values: Tensor) -> list[Tensor]:
        values = values.to(self._device)
        found = [torch.empty_like(values) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(values, found)
        return [] if found is None else [part.cpu() for part in found]
