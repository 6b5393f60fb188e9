"""What a data set looks like, in counts that may be shown around: none between 1 and the minimum cell (10)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from protocol.dataset import NumberLabel
from protocol.proposal import MINIMUM_CELL
from protocol.table import Table
from site_agent.cohort.snapshot import Draft

SMALL = f"1-{MINIMUM_CELL}"


@dataclass(frozen=True)
class Quality:
    """The summary of one reading. A count of 1 to 10 records or cells reads "1-10". positive_records: None where a
    number is predicted."""

    rows_read: int
    rows_dropped: int
    dropped: tuple[tuple[str, str, int], ...]
    records: int
    patients: int
    held_out: int
    positive_records: int | str | None
    imputed: dict[str, int | str]

    def to_document(self) -> dict[str, Any]:
        """For --json. `dropped`: column, reason, rows."""
        return {
            "rows_read": self.rows_read,
            "rows_dropped": self.rows_dropped,
            "dropped": [{"column": column, "reason": reason, "rows": rows} for column, reason, rows in self.dropped],
            "records": self.records,
            "patients": self.patients,
            "held_out": self.held_out,
            "positive_records": self.positive_records,
            "imputed": self.imputed,
        }


def summarise(table: Table, snapshot: Draft) -> Quality:
    """The summary of a table and the snapshot made of it. Dropped rows are counted exactly: the hospital must judge
    them, and none of them is in the data set.
    """
    return Quality(
        rows_read=table.rows_read,
        rows_dropped=table.dropped.total(),
        dropped=tuple((column, reason, rows) for (column, reason), rows in table.dropped.most_common()),
        records=len(table.y),
        patients=snapshot.patients,
        held_out=snapshot.held_out,
        positive_records=None if isinstance(snapshot.schema.label, NumberLabel) else _positive(table, snapshot),
        imputed=_counts(table.imputed),
    )


def _positive(table: Table, snapshot: Draft) -> int | str:
    if snapshot.arrays.y.ndim > 1:  # masks: a record is positive where the mask is not empty
        positive = int(snapshot.arrays.y.any(axis=(1, 2)).sum())
    else:
        positive = sum(int(code) % 2 for code in table.y)  # a survival code is odd where the event was seen
    return SMALL if 0 < len(table.y) - positive <= MINIMUM_CELL else at_least_cell(positive)


def at_least_cell(count: int) -> int | str:
    """The count, or "1-10" where it would single patients out."""
    return SMALL if 0 < count <= MINIMUM_CELL else count


def _counts(counter: Counter[str]) -> dict[str, int | str]:
    return {name: at_least_cell(count) for name, count in sorted(counter.items())}
