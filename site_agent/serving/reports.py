"""What this site tells the federation of the models that it serves: kept here first, signed and sent by the agent.

A server holds no key and needs no network: it queues, and the agent hands in what waits, in order, once the coordinator
answers. Light: the agent imports it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from protocol.envelope import seal
from protocol.errors import CloisterError
from protocol.proposal import MINIMUM_CELL
from protocol.serving import MOST_RULES, SERVING_REPORT_TYPE, Change, Moment, ServingReport
from protocol.timestamp import timestamp
from site_agent.clock import Clock
from site_agent.coordinator_client import CoordinatorClient, CoordinatorRefused
from site_agent.database import transaction
from site_agent.durable_files import PRIVATE_FILE, make_private_folder
from site_agent.keystore import SiteKeys
from site_agent.serving.tables import QueuedServingReport
from site_agent.settings import SiteHome, SiteSettings

if TYPE_CHECKING:
    from policies.findings import Decision
    from protocol.release import ReleaseSubject

ACCEPTED = "accepted"
FOLDER = "servers"
KILLED = "killed"
FINAL = frozenset({400, 404, 409, 422})
"""Statuses of a refusal that the same report gets for ever: it is set aside, so that it keeps back no later one."""


@dataclass(frozen=True)
class Served:
    """What is served: a release at a site, as each report names it."""

    site: str
    release: str
    digest: str

    @classmethod
    def of(cls, site: str, subject: ReleaseSubject) -> Served:
        """From what approvers signed."""
        return cls(site, subject.release, subject.digest)


def tell(session: Session, served: Served, change: Change, clock: Clock, **more: Any) -> ServingReport:
    """Queue one report in the caller's transaction. more: the other fields of ServingReport."""
    row = QueuedServingReport(change=change, server=more.get("server"), document="")
    session.add(row)
    session.flush()
    report = ServingReport.model_validate(
        {
            "report": f"serving-{secrets.token_hex(8)}", "number": row.number, "site": served.site,
            "release": served.release, "subject_digest": served.digest, "change": change, "at": timestamp(clock()),
            **more,
        }
    )  # fmt: skip
    row.document = report.model_dump_json()
    session.add(row)
    session.flush()
    return report


def tell_refusal(
    session: Session, served: Served, moment: Moment, decision: Decision, digest: str, clock: Clock
) -> None:
    """Queue that the serving gate was shut: by which rules, and the digest of its decision."""
    rules = dict.fromkeys(f"{finding.pack}:{finding.rule}" for finding in decision.findings if finding.effect != "warn")
    tell(
        session, served, "refused", clock, moment=moment, code="serving-refused", rules=tuple(rules)[:MOST_RULES],
        decision=digest,
    )  # fmt: skip


@contextmanager
def refusals_told(engine: Engine, served: Served, moment: Moment, clock: Clock) -> Iterator[None]:
    """Queue what refuses a verified release inside, by its code; the gate's own refusals it queues itself."""
    try:
        yield
    except CloisterError as error:
        if error.code != "serving-refused":
            with transaction(engine) as session:
                tell(session, served, "refused", clock, moment=moment, code=error.code)
        raise


class Server:
    """One running server, from `start` to `stop`. Thread-safe between them. Its lock is free once its process is gone,
    however it went."""

    def __init__(self, home: SiteHome, engine: Engine, served: Served, clock: Clock) -> None:
        self._engine, self._served, self._clock = engine, served, clock
        self.name = f"server-{secrets.token_hex(8)}"
        self._path = _lock_of(home, self.name)
        self._lock: int | None = None
        self._shut: str | None = None
        self._answered = 0
        self._guard = threading.Lock()

    def start(self, decision: str) -> None:
        """Queue that it begins to answer. decision: the digest of the gate's."""
        make_private_folder(self._path.parent)
        self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._tell("started", decision=decision)

    def answered(self, records: int) -> None:
        """Count what it answered."""
        with self._guard:
            self._answered += records

    def judged(self, trouble: CloisterError | None) -> CloisterError | None:
        """Queue that it answers no more, or again, where that is new; what keeps it from answering. What can't be
        queued keeps it from answering too."""
        code = None if trouble is None else trouble.code
        with self._guard:
            if code != self._shut:
                try:
                    if code is None:
                        self._tell("resumed")
                    else:
                        self._tell("refused", moment="running", code=code, rules=getattr(trouble, "rules", ()))
                except CloisterError as error:
                    return error
                self._shut = code
        return trouble

    def stop(self) -> None:
        """Queue that it stopped, and how many records it answered where they are many."""
        try:
            self._tell("stopped", answered=self._answered if self._answered > MINIMUM_CELL else None)
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
        self._path.unlink(missing_ok=True)

    def _tell(self, change: Change, **more: Any) -> None:
        with transaction(self._engine) as session:
            tell(session, self._served, change, self._clock, server=self.name, **more)


def end_killed(home: SiteHome, engine: Engine, clock: Clock) -> list[str]:
    """Queue the end of servers that were killed before they could; their names."""
    with transaction(engine) as session:
        ended = select(QueuedServingReport.server).where(QueuedServingReport.change == "stopped")
        begun = select(QueuedServingReport).where(
            QueuedServingReport.change == "started", col(QueuedServingReport.server).not_in(ended)
        )
        found = []
        for row in session.exec(begun).all():
            last = ServingReport.model_validate_json(row.document)
            assert last.server is not None  # so says the document's own form
            if _is_free(_lock_of(home, last.server)):
                served = Served(last.site, last.release, last.subject_digest)
                tell(session, served, "stopped", clock, server=last.server, code=KILLED)
                found.append(last.server)
    for name in found:
        _lock_of(home, name).unlink(missing_ok=True)
    return found


def deliver_serving(
    settings: SiteSettings, engine: Engine, client: CoordinatorClient, keys: SiteKeys, clock: Clock
) -> Iterator[str]:
    """Send what waits, oldest first, each signed; yields what became of each. Raises what the client raises: a
    report that was not answered keeps back those behind it, one that is refused for good does not."""
    end_killed(settings.home, engine, clock)
    with transaction(engine) as session:
        unanswered = select(QueuedServingReport).where(col(QueuedServingReport.answer).is_(None))
        waiting = session.exec(unanswered.order_by(col(QueuedServingReport.number)).limit(100)).all()
    for row in waiting:
        report = ServingReport.model_validate_json(row.document)
        answer = _sent(client, seal(SERVING_REPORT_TYPE, report.model_dump(mode="json"), keys.identity).to_bytes())
        with transaction(engine) as session:
            stored = session.get_one(QueuedServingReport, row.number)
            stored.answer = answer
            session.add(stored)
        yield f"{report.release} {report.change}" + ("" if answer == ACCEPTED else f", set aside: {answer}")


def told(session: Session) -> list[tuple[ServingReport, str | None]]:
    """Every report with the coordinator's answer, oldest first."""
    rows = session.exec(select(QueuedServingReport).order_by(col(QueuedServingReport.number)))
    return [(ServingReport.model_validate_json(row.document), row.answer) for row in rows]


def counted(session: Session) -> dict[str, int]:
    """How many reports the coordinator took, how many wait for it, and how many it refused for good."""
    answers = session.exec(select(QueuedServingReport.answer)).all()
    waiting = sum(answer is None for answer in answers)
    accepted = sum(answer == ACCEPTED for answer in answers)
    return {"accepted": accepted, "waiting": waiting, "set_aside": len(answers) - waiting - accepted}


def _sent(client: CoordinatorClient, envelope: bytes) -> str:
    try:
        client.post_serving(envelope)
    except CoordinatorRefused as error:
        if error.status not in FINAL:
            raise
        return error.code
    return ACCEPTED


def _lock_of(home: SiteHome, server: str) -> Path:
    return home.path / FOLDER / server


def _is_free(path: Path) -> bool:
    """Whether no process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
