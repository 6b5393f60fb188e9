"""Which subgroup a patient belongs to, from the patient's encoded records: exactly one for each column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privacy.errors import ParameterError
from privacy.local.patients import Group


@dataclass(frozen=True)
class Banding:
    """Where an encoded record tells the subgroup: `width` inputs from `at`, the largest of which is the level; or, with
    edges (rising, as encoded), the one input at `at`, each band from its edge on."""

    at: int
    width: int
    edges: tuple[float, ...] = ()

    @property
    def groups(self) -> int:
        """How many subgroups there are."""
        return len(self.edges) + 1 if self.edges else self.width


def subgroup_of(group: Group, banding: Banding) -> npt.NDArray[np.int64]:
    """(patients,) of 0 .. groups - 1: by the mean of the patient's records, ties to the first level. Raises
    ParameterError for records that are no rows of so many inputs."""
    if group.x.ndim != 2 or not 0 <= banding.at < banding.at + banding.width <= group.x.shape[1]:
        raise ParameterError("A subgroup lies outside the records.", "Take the subgroups from the plan.")
    inputs = group.x[:, banding.at : banding.at + banding.width]
    sums = np.zeros((group.patients, banding.width))
    np.add.at(sums, group.patient, inputs)
    if not banding.edges:
        level: npt.NDArray[np.int64] = np.argmax(sums, axis=1).astype(np.int64)
        return level
    records = np.bincount(group.patient, minlength=group.patients)
    means = sums[:, 0] / np.maximum(records, 1)
    band: npt.NDArray[np.int64] = np.searchsorted(np.asarray(banding.edges), means, side="right").astype(np.int64)
    return band
