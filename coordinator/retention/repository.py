"""The SQL of what is held and of its erasure, over the tables of all rooms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import delete, func, or_, update
from sqlmodel import Session, col, select

from coordinator.audit.tables import LogEntry
from coordinator.evidence.tables import Evidence
from coordinator.releases.tables import (
    BrokenGlass,
    Release,
    ReleaseChallenge,
    ReleaseFile,
    ReleaseInstallation,
    ReleaseVetoRecord,
    ReleaseVote,
    ReleaseWaiverRecord,
    ServingChange,
)
from coordinator.retention.tables import DossierRemoval, PayloadErasure, PayloadPruning
from coordinator.rounds.tables import Candidate, ModelCheck, ModelState, NoisedSum, RoundAttempt, TunedRun

WEIGHTS = ("model.safetensors", "model.onnx")
"""Of a release's files those that are the model; the card is documentation."""
PAGE = 2048


class RetentionRepository:
    """Within the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def checkpoints(self, study: str) -> tuple[int, int]:
        """(how many models and sums of a study's training there are, their bytes)"""
        sized: tuple[tuple[Any, tuple[Any, ...]], ...] = (
            (ModelState, (ModelState.weights, ModelState.velocity, ModelState.average, ModelState.second)),
            (ModelCheck, (ModelCheck.weights, ModelCheck.velocity, ModelCheck.average, ModelCheck.second)),
            (TunedRun, (TunedRun.weights,)),
            (NoisedSum, (NoisedSum.total,)),
            (Candidate, (Candidate.weights,)),
        )
        items = size = 0
        for table, columns in sized:
            lengths = sum((func.coalesce(func.length(column), 0) for column in columns[1:]), func.coalesce(
                func.length(columns[0]), 0))  # fmt: skip
            for (length,) in self._session.connection().execute(select(lengths).where(table.study == study)):
                items, size = items + (length > 0), size + int(length)
        return items, size

    def erase_checkpoints(self, study: str) -> None:
        """What stays says that there was a model, and what came of it: reports, digests, rounds."""
        self._session.exec(delete(ModelState).where(col(ModelState.study) == study))
        self._session.exec(delete(NoisedSum).where(col(NoisedSum.study) == study))
        self._session.exec(update(TunedRun).where(col(TunedRun.study) == study).values(weights=b""))
        self._session.exec(update(Candidate).where(col(Candidate.study) == study).values(weights=b""))
        nothing = dict.fromkeys(("weights", "velocity", "average", "second"))
        self._session.exec(update(ModelCheck).where(col(ModelCheck.study) == study).values(**nothing))

    def weights(self, release: str) -> tuple[int, int]:
        """(how many of a release's model files there are, their bytes)"""
        query = select(func.length(ReleaseFile.content)).where(
            col(ReleaseFile.release) == release, col(ReleaseFile.name).in_(WEIGHTS)
        )
        sizes = [int(size) for size in self._session.exec(query)]
        return len(sizes), sum(sizes)

    def erase_weights(self, release: str) -> None:
        self._session.exec(
            delete(ReleaseFile).where(col(ReleaseFile.release) == release, col(ReleaseFile.name).in_(WEIGHTS))
        )

    def remove_dossier(self, release: str) -> None:
        """All that is kept of a release but its candidate."""
        for table in (
            ReleaseFile, ReleaseChallenge, ReleaseVote, ReleaseWaiverRecord, ReleaseVetoRecord, BrokenGlass,
            ReleaseInstallation, ServingChange,
        ):  # fmt: skip
            self._session.exec(delete(table).where(col(table.release) == release))
        self._session.exec(delete(Release).where(col(Release.id) == release))

    def dossier_removal(self, release: str) -> DossierRemoval | None:
        return self._session.get(DossierRemoval, release)

    def save_dossier_removal(self, row: DossierRemoval) -> None:
        self._session.add(row)
        self._session.flush()

    def attempts(self, study: str) -> list[tuple[str, int, int, str]]:
        """(phase, round, attempt, status) of every attempt of a study."""
        columns = RoundAttempt.phase, RoundAttempt.round, RoundAttempt.attempt, RoundAttempt.status
        rows = self._session.exec(select(*columns).where(col(RoundAttempt.study) == study))
        return [(phase, number, attempt, status) for phase, number, attempt, status in rows]

    def erase_evidence(self, digest: str) -> None:
        self._session.exec(delete(Evidence).where(col(Evidence.digest) == digest))

    def published(self, end: int) -> Iterator[tuple[int, bytes, bool]]:
        """(index, leaf, whether a payload is there) of entries 0 to end - 1, in order; a page in memory at once."""
        index = col(LogEntry.log_index)
        columns = select(LogEntry.log_index, LogEntry.leaf, col(LogEntry.payload).is_not(None))
        for first in range(0, end, PAGE):
            query = columns.where(index >= first, index < min(end, first + PAGE)).order_by(index)
            yield from self._session.connection().execute(query)

    def unpublished(self, size: int) -> list[bytes]:
        """The leaves of entries that are not in the published log of this size yet."""
        later = or_(col(LogEntry.log_index).is_(None), col(LogEntry.log_index) >= size)
        return list(self._session.exec(select(LogEntry.leaf).where(later)))

    def entry(self, index: int) -> LogEntry | None:
        return self._session.exec(select(LogEntry).where(LogEntry.log_index == index)).first()

    def erase_payloads(self, indices: Iterable[int]) -> int:
        """Payload and salt: without the salt not even a guess at the words can be tried against the leaf."""
        wanted, erased = sorted(indices), 0
        for first in range(0, len(wanted), PAGE):
            page = col(LogEntry.log_index).in_(wanted[first : first + PAGE])
            done = self._session.exec(
                update(LogEntry).where(page, col(LogEntry.payload).is_not(None)).values(payload=None, salt=None)
            )
            erased += done.rowcount
        return erased

    def minimum_index(self) -> int:
        """Of the last pruning; 0 before any."""
        return int(self._session.exec(select(func.max(PayloadPruning.minimum_index))).one() or 0)

    def add_pruning(self, row: PayloadPruning) -> None:
        self._session.merge(row)
        self._session.flush()

    def erasure(self, index: int) -> PayloadErasure | None:
        return self._session.get(PayloadErasure, index)

    def save_erasure(self, row: PayloadErasure) -> None:
        self._session.add(row)
        self._session.flush()

    def erasures(self) -> list[PayloadErasure]:
        """Every erasure, asked for or done, by index."""
        return list(self._session.exec(select(PayloadErasure).order_by(col(PayloadErasure.log_index))))
