"""What the coordinator holds of each study, with the dates that decide on it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.evidence.repository import EvidenceRepository
from coordinator.evidence.tables import Evidence
from coordinator.incidents.repository import IncidentRepository
from coordinator.releases.repository import ReleaseRepository
from coordinator.retention.repository import RetentionRepository
from coordinator.rounds.chunk_store import FOLDER, ChunkStore, attempt_name
from coordinator.rounds.states import AttemptStatus
from coordinator.studies.repository import StudyRepository, plan_of
from coordinator.studies.states import ACTIVE, StudyState
from coordinator.studies.tables import Study
from policies.retention import Holding, RecordClass, day
from protocol.evidence import EvidenceRecord

UNKNOWN = "no-study"
"""About: of chunks that belong to no attempt that the database knows."""


def chunk_store(appliance: Appliance) -> ChunkStore:
    """The folder of contributions that are on their way."""
    return ChunkStore(appliance.home / FOLDER)


def holdings(session: Session, appliance: Appliance) -> list[Holding]:
    """All that there is, of every study and of the evidence; the log's payloads apart (`prune`)."""
    studies = StudyRepository(session)
    found: list[Holding] = []
    known: set[str] = set()
    for row in studies.all():
        names = {name for name, _ in _uploads(session, row.id)}
        known |= names
        if row.plan is not None:
            found += _of_study(session, appliance, row)
    found += _strays(appliance, known)
    found += [_of_evidence(session, row) for row in EvidenceRepository(session).all()]
    return found


def uploads_of(session: Session, appliance: Appliance, about: str) -> list[str]:
    """The attempts whose chunks may be erased: a study's closed ones, or those that nothing is known of."""
    store = chunk_store(appliance)
    if about == UNKNOWN:
        known = {name for row in StudyRepository(session).all() for name, _ in _uploads(session, row.id)}
        return [name for name in store.attempts() if name not in known]
    closed = {name for name, status in _uploads(session, about) if status != AttemptStatus.OPEN.value}
    return [name for name in store.attempts() if name in closed]


def us_law(session: Session) -> bool:
    """Whether any study's plan has a site under US law; true while nothing is known."""
    plans = [plan_of(row) for row in StudyRepository(session).all() if row.plan is not None]
    return not plans or any(site.jurisdiction == "US" for plan in plans for site in plan.sites)


def _of_study(session: Session, appliance: Appliance, row: Study) -> Iterator[Holding]:
    plan, today = plan_of(row), appliance.clock().date()
    papers, made = plan.spec.governance, day(row.started_at) or day(row.proposed_at) or today
    held = bool(IncidentRepository(session).open_about(study=row.id, sites=plan.names))
    american = any(site.jurisdiction == "US" for site in plan.sites)
    running = StudyState(row.state) in ACTIVE
    retention, store = RetentionRepository(session), chunk_store(appliance)

    def holding(kind: RecordClass, about: str, counted: tuple[int, int], until: date | None, **more: object) -> Holding:
        ended = until is not None and today > until
        fields = {"ended": ended, "in_effect_until": until if ended else None, **more}
        return Holding(
            kind, about, *counted, made, until=until, held=held, us_law=american, **fields  # type: ignore[arg-type]
        )  # fmt: skip

    stored = uploads_of(session, appliance, row.id)
    if stored:
        counts = [store.size(name) for name in stored]
        counted = sum(items for items, _ in counts), sum(size for _, size in counts)
        # An attempt that is closed has no use for its chunks, whatever day the study set.
        yield holding(RecordClass.UPDATE, row.id, counted, day(papers.updates_until), ended=True)
    if (counted := retention.checkpoints(row.id))[0]:
        yield holding(RecordClass.CHECKPOINT, row.id, counted, day(papers.checkpoints_until), running=running)
    for release in ReleaseRepository(session).of_study(row.id):
        until = day(papers.model_until)
        if (counted := retention.weights(release.id))[0]:
            yield holding(RecordClass.MODEL, release.id, counted, until)
        dossier = len(release.subject) + len(release.plan) + len(release.statement or b"")
        yield holding(RecordClass.DOSSIER, release.id, (1, dossier), until, ended=False)


def _strays(appliance: Appliance, known: set[str]) -> Iterator[Holding]:
    store, today = chunk_store(appliance), appliance.clock().date()
    strays = [store.size(name) for name in store.attempts() if name not in known]
    if strays:
        items, size = sum(items for items, _ in strays), sum(size for _, size in strays)
        yield Holding(RecordClass.UPDATE, UNKNOWN, items, size, today, ended=True)


def _of_evidence(session: Session, row: Evidence) -> Holding:
    record = EvidenceRecord.model_validate_json(row.record)
    ends = [end for end in (day(row.revoked_at), record.expires) if end is not None]
    incidents = IncidentRepository(session)
    about = incidents.open_about(
        study=record.subject if record.scope == "study" else "",
        sites=[record.subject] if record.scope in ("site", "deployment") else [],
    )
    return Holding(
        RecordClass.POLICY,
        row.digest,
        1,
        len(row.record),
        day(row.recorded_at) or record.issued,
        in_effect_until=min(ends) if ends else None,
        held=bool(about),
        us_law=us_law(session),
    )


def _uploads(session: Session, study: str) -> list[tuple[str, str]]:
    """(the name of an attempt in the chunk store, its status) of every attempt of a study."""
    attempts = RetentionRepository(session).attempts(study)
    return [(attempt_name(study, phase, number, attempt), status) for phase, number, attempt, status in attempts]
