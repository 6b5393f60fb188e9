"""Records of a batch, with their patients and their padding, and parts of them that hold whole patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privacy.errors import ParameterError
from privacy.parameters import require_count


def pad_batch(inputs: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros appended up to `size` records, with the (size,) bool mask: Poisson batches of one shape.

    Raises ParameterError when there are more records than that.
    """
    records = inputs.shape[0]
    if records > size:
        raise ParameterError(f"A batch of {records} records does not fit into {size}.", "Pad to the largest batch.")
    padded = [torch.cat([part, part.new_zeros((size - records, *part.shape[1:]))]) for part in (inputs, targets)]
    return padded[0], padded[1], torch.arange(size, device=inputs.device) < records


@dataclass(frozen=True)
class Part:
    """Some records of whole patients; index None: record i is patient i."""

    inputs: Tensor
    targets: Tensor
    index: Tensor | None
    patients: int
    mask: Tensor | None

    def seed(self) -> Tensor:
        """(R,): 1/n for a record of a patient with n records that are not padding, 0 for padding."""
        records = self.inputs.shape[0]
        mask = torch.ones(records, device=self.inputs.device) if self.mask is None else self.mask.float()
        if self.index is None:
            return mask
        counts = torch.zeros(self.patients, device=mask.device).index_add_(0, self.index, mask)
        return mask / counts.clamp(min=1.0)[self.index]

    def present(self) -> Tensor:
        """(P,) bool: patients with a record that is not padding."""
        seed = self.seed()
        index = torch.arange(seed.shape[0], device=seed.device) if self.index is None else self.index
        return torch.zeros(self.patients, device=seed.device).index_add_(0, index, seed) > 0

    def kept(self) -> Part:
        """The same without padding."""
        if self.mask is None:
            return self
        index = torch.arange(self.inputs.shape[0], device=self.inputs.device) if self.index is None else self.index
        return Part(self.inputs[self.mask], self.targets[self.mask], index[self.mask], self.patients, None)

    def numbers(self) -> npt.NDArray[np.int64]:
        return np.arange(self.patients) if self.index is None else self.index.cpu().numpy()


def take(
    inputs: Tensor, targets: Tensor, index: Tensor | None, people: int, mask: Tensor | None, rows: Tensor | None
) -> Part:
    """Some records, or all for None; the patients among them are numbered anew."""
    if rows is None:
        return Part(inputs, targets, index, people, mask)
    part = None if mask is None else mask[rows]
    if index is None:
        return Part(inputs[rows], targets[rows], None, rows.shape[0], part)
    present, local = torch.unique(index[rows], return_inverse=True)
    return Part(inputs[rows], targets[rows], local, present.shape[0], part)


def patients_of(
    inputs: Tensor,
    targets: Tensor,
    patients: npt.NDArray[np.integer] | Tensor | None,
    count: int | None,
    mask: Tensor | None,
) -> tuple[Tensor | None, int]:
    """(R,) patient numbers, or None where record i is patient i, and how many patients there are.

    Raises ParameterError for arrays that do not fit.
    """
    records = inputs.shape[0] if inputs.dim() else -1
    if records < 0 or targets.shape[:1] != (records,):
        raise ParameterError("Inputs and targets do not have one entry per record.", "Check the cohort's arrays.")
    if mask is not None and (mask.shape != (records,) or mask.dtype != torch.bool):
        raise ParameterError("The mask must hold one true or false per record.", "Use the mask of pad_batch.")
    if patients is None:
        if count is not None and count != records:
            raise ParameterError(
                f"{records} records without patient numbers cannot be {count} patients.", "Number the patients."
            )
        return None, records
    index = patients if isinstance(patients, Tensor) else torch.from_numpy(np.ascontiguousarray(patients))
    if index.shape != (records,) or index.is_floating_point() or index.dtype == torch.bool:
        raise ParameterError("There must be one whole patient number per record.", "Number the patients from 0.")
    index = index.to(device=inputs.device, dtype=torch.int64)
    if count is None:
        raise ParameterError("The number of patients is missing.", "Give the count beside the patient numbers.")
    require_count("the number of patients", count, 0)
    if records and not (int(index.min()) >= 0 and int(index.max()) < count):
        raise ParameterError(f"A patient index is outside 0 to {count - 1}.", "Number the patients from 0.")
    if records == count and torch.equal(index, torch.arange(count, device=index.device)):
        return None, count
    if mask is not None:
        # Padding is a patient of its own, so that whatever stands in it refuses nobody.
        return index.masked_fill(~mask, count), count + 1
    return index, count
