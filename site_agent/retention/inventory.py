"""What of the federation's lies at this site, with the dates that decide on it. The only SQL of retention here.

The ledger, the patients' keyed hashes and the answers to plans are no artefacts: they are how the site keeps count of
what its patients' data has cost, for as long as it takes part in anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import update
from sqlmodel import Session, col, func, select

from policies.retention import Holding, RecordClass, day
from protocol.canonical import parse
from protocol.envelope import Envelope
from protocol.errors import CloisterError
from protocol.study import StudyPlan
from site_agent.cohort.snapshot import path_of
from site_agent.cohort.tables import Snapshot
from site_agent.consent.states import Answer
from site_agent.consent.tables import StudyGrant
from site_agent.incidents.tables import ReportedIncident
from site_agent.releases.install import Installed, installed
from site_agent.serving.deployment import DeploymentRecord, everything_said
from site_agent.serving.log import days
from site_agent.settings import SiteHome
from site_agent.training.tables import ConsumedAttempt, KeyStepReply, SecureSumKeys, StoredVector
from site_agent.witness.repository import standing_alarms

_PLAN_LIMIT = 16 << 20


@dataclass(frozen=True)
class Scratch:
    """What a study left here. packets: answers to attempts; vectors, replies, keys: of its secure sums. snapshots:
    superseded ones that no other study needs. over: no round of it can come any more."""

    study: str
    plan_digest: str
    packets: int
    vectors: int
    replies: int
    keys: int
    snapshots: tuple[str, ...]
    over: bool

    @property
    def items(self) -> int:
        return self.packets + self.vectors + self.replies + self.keys + len(self.snapshots)


def scratches(session: Session, home: SiteHome) -> list[Scratch]:
    """Of every study that this site ever granted, by name."""
    grants = session.exec(select(StudyGrant).where(StudyGrant.state != Answer.REFUSED.value)).all()
    over = {row.plan_digest: _over(session, row) for row in grants}
    newest = _newest(session)
    needed = {row.snapshot for row in grants if not over[row.plan_digest]} | newest
    found = {}
    for row in sorted(grants, key=lambda grant: (grant.study, grant.decided_at)):
        idle = row.snapshot not in needed and path_of(home, row.snapshot).is_file()
        found[row.study] = Scratch(
            row.study,
            row.plan_digest,
            _count(session, select(func.count()).where(
                ConsumedAttempt.study == row.study, col(ConsumedAttempt.packet).is_not(None))),
            _count(session, select(func.count()).where(col(StoredVector.attempt).in_(
                select(ConsumedAttempt.id).where(ConsumedAttempt.study == row.study)))),
            _count(session, select(func.count()).where(KeyStepReply.study == row.study)),
            _count(session, select(func.count()).where(SecureSumKeys.study == row.study)),
            (row.snapshot,) if idle else (),
            all(over[other.plan_digest] for other in grants if other.study == row.study),
        )  # fmt: skip
    return list(found.values())


def holdings(
    session: Session, home: SiteHome, *, on: date, log_days: int | None, american: bool
) -> Iterator[tuple[Holding, Path | None]]:
    """Each holding, with the folder or file that it is; None of a study's scratch. log_days: how long this site said
    that it keeps its serving log."""
    alarmed = bool(standing_alarms(session))
    reported = session.exec(select(ReportedIncident).where(col(ReportedIncident.ended_at).is_(None))).all()
    held = alarmed or bool(reported)

    for scratch in scratches(session, home):
        yield Holding(
            RecordClass.SCRATCH, scratch.study, scratch.items, 0, on, ended=scratch.over, held=held, us_law=american,
            running=not scratch.over,
        ), None  # fmt: skip
    for release in installed(home):
        until = model_until(release)
        size = sum(path.stat().st_size for path in release.folder.iterdir())
        made = datetime.fromtimestamp(release.folder.stat().st_mtime).date()
        yield Holding(
            RecordClass.MODEL, release.subject.release, 1, size, made, until=until,
            ended=until is not None and on > until, held=held, us_law=american,
        ), release.folder  # fmt: skip
    for log in days(home):
        age = (on - log.day).days
        yield Holding(
            RecordClass.SERVING_LOG, log.day.isoformat(), 1, log.path.stat().st_size, log.day,
            ended=log_days is not None and age > log_days, held=held, us_law=american,
        ), log.path  # fmt: skip


def model_until(release: Installed) -> date | None:
    """The last day on which the study let its model be kept; None where the plan on the disk does not say."""
    try:
        envelope = Envelope.from_bytes((release.folder / "plan.dsse.json").read_bytes(), limit=_PLAN_LIMIT)
        plan = StudyPlan.model_validate(parse(envelope.payload, limit=_PLAN_LIMIT))
    except (OSError, CloisterError, ValidationError):
        return None
    return day(plan.spec.governance.model_until)


def kept_log_days(session: Session) -> int | None:
    """The longest that any deployment said the serving log is kept; None where none said."""
    newest = {row.study: row.said for row in everything_said(session)}
    records = (DeploymentRecord.model_validate_json(said) for said in newest.values())
    return max((record.log_retention_days for record in records), default=None)


def snapshot_files(session: Session, home: SiteHome) -> list[Path]:
    """Every snapshot's arrays that lie here."""
    return [path for row in session.exec(select(Snapshot)) if (path := path_of(home, row.digest)).is_file()]


def leftovers(home: SiteHome) -> list[Path]:
    """What a crash left of a file or folder that was being written."""
    found = []
    for folder in (home.snapshots, home.releases):
        if folder.is_dir():
            found += [path for path in folder.iterdir() if path.name.startswith(".")]
    return sorted(found)


def forget_packets(session: Session, study: str) -> None:
    """Erase the answers to a study's attempts. That they were charged stays: none is ever computed again."""
    session.exec(update(ConsumedAttempt).where(col(ConsumedAttempt.study) == study).values(packet=None))


def _over(session: Session, row: StudyGrant) -> bool:
    """Whether no round of the plan can come: the grant does not stand, or the study ran here and its keys are gone."""
    if row.state != Answer.GRANTED.value:
        return True
    keys = session.get(SecureSumKeys, row.study)
    ran = session.exec(select(ConsumedAttempt.id).where(ConsumedAttempt.study == row.study).limit(1)).first()
    return keys is None and ran is not None


def _newest(session: Session) -> set[str]:
    """Of each data set the newest snapshot, which the next study rests on."""
    rows = session.exec(select(Snapshot).order_by(col(Snapshot.created_at))).all()
    return set({row.name: row.digest for row in rows}.values())


def _count(session: Session, query: object) -> int:
    return int(session.exec(query).one())  # type: ignore[call-overload]
