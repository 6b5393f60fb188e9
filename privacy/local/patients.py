"""A site's records, grouped by patient and parted once into patients that train and patients that only evaluate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Group:
    """The records of one group of patients, numbered 0..patients-1. x: (R, ...) float64 or float32, an encoded record
    in each row. y: (R, ...), the labels (see `privacy.local.network.Loss`). patient: (R,) int64, rising."""

    x: Array
    y: Array
    patient: npt.NDArray[np.int64]
    patients: int

    def select(self, chosen: npt.NDArray[np.bool_]) -> Group:
        """The records of the patients chosen by a (patients,) mask, renumbered, in the patients' order. Those that lie
        together in that order are not copied: images may fill half of the memory."""
        number = np.cumsum(chosen) - 1
        rows = np.flatnonzero(chosen[self.patient])
        rows = rows[np.argsort(self.patient[rows], kind="stable")]
        together = rows.size > 0 and bool((np.diff(rows) == 1).all())
        where = slice(int(rows[0]), int(rows[-1]) + 1) if together else rows
        return Group(self.x[where], self.y[where], number[self.patient[where]], int(chosen.sum()))

    def block(self, start: int, count: int) -> Group:
        """The patients start..start+count-1, or as many of them as there are."""
        first, last = np.searchsorted(self.patient, [start, start + count])
        present = max(0, min(count, self.patients - start))
        return Group(self.x[first:last], self.y[first:last], self.patient[first:last] - start, present)

    def blocks(self, records: int) -> Iterator[Group]:
        """All patients in consecutive blocks of whole ones, each of at most `records` records or of one patient."""
        ends = np.searchsorted(self.patient, np.arange(self.patients), side="right")
        first = start = 0
        while first < self.patients:
            last = max(first + 1, int(np.searchsorted(ends, start + records, side="right")))
            yield self.block(first, last - first)
            first, start = last, int(ends[last - 1])


@dataclass(frozen=True)
class Cohort:
    """A snapshot, parted once: patients that train, and patients that only evaluate."""

    training: Group
    held_out: Group


def part(x: Array, y: Array, patient: npt.NDArray[np.int64], held_out: npt.NDArray[np.bool_]) -> Cohort:
    """x: (R, ...), y: (R, ...), patient: (R,) index into held_out: (patients,) bool."""
    everybody = Group(x, y, patient, held_out.size)
    return Cohort(everybody.select(~held_out), everybody.select(held_out))
