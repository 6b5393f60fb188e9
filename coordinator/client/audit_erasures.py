"""Which payloads a bundle lacks, and whether the log itself tells of their erasure.

A payload may be missing because it was pruned below the minimum index that the log tells, because two people had it
erased, or because whoever passed the bundle on took names out. A coordinator that erases in silence looks like the
last: so it is told, and the reader asks.
"""

from __future__ import annotations

from protocol.audit_event import AuditEvent, EventType

MAX_RUNS = 10_000
NOTHING_LOGGED = b'"payload":null'  # in no other place of a leaf is there a null


class Erasures:
    """Told every entry in the log's order, in memory that does not grow with the log."""

    def __init__(self) -> None:
        self.erased = 0
        self._runs: list[list[int]] = []
        self._many = False
        self._minimum = 0
        self._single: set[int] = set()

    def lacks(self, index: int) -> None:
        """The entry's payload is not here, though there was one."""
        self.erased += 1
        if self._runs and self._runs[-1][1] == index - 1:
            self._runs[-1][1] = index
        elif len(self._runs) < MAX_RUNS:
            self._runs.append([index, index])
        else:
            self._many = True

    def tells(self, event: str, leaf: bytes) -> None:
        """An entry about erasures: a pruning's minimum index, or the one entry that two people had erased."""
        numbers = AuditEvent.model_validate_json(leaf).numbers
        if event == EventType.PAYLOADS_PRUNED:
            self._minimum = max(self._minimum, int(numbers.get("minimum_index", 0)))
        elif len(self._single) < MAX_RUNS:
            self._single.add(int(numbers.get("entry_index", -1)))

    @property
    def untold(self) -> int:
        """How many missing payloads the log does not tell of; at least that many where there are very many gaps."""
        above = sum(max(0, end - max(start, self._minimum) + 1) for start, end in self._runs)
        single = sum(
            any(start <= index <= end for start, end in self._runs) for index in self._single if index >= self._minimum
        )
        return above - single + int(self._many)


TELLING = frozenset({EventType.PAYLOADS_PRUNED.value, EventType.PAYLOAD_ERASED.value})
