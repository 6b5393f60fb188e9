"""The gate on the software at this site: an engine that has not passed its self-test here computes nothing.

The worker runs `privacy.auditing.self_test` on made-up patients; what it found is kept for the engine's digest. Another
engine, an update or another torch, is another digest and must pass anew. Fail closed: no record, no round.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Engine
from sqlmodel import Session

from protocol.round import RefusalCode
from protocol.timestamp import timestamp
from site_agent.database import transaction
from site_agent.training.engine import EngineVersion, engine_version
from site_agent.training.states import AttemptRefused
from site_agent.training.tables import SelfTestRecord
from site_agent.training.worker_client import WorkerClient, WorkerFailed


@dataclass(frozen=True)
class SelfTest:
    """What is known of one engine at this site. checks: as told by privacy.auditing.self_test; none where it could not
    run, which has not passed."""

    engine: EngineVersion
    at: str
    passed: bool
    checks: tuple[dict[str, object], ...]


def run(database: Engine, worker: WorkerClient, clock: Callable[[], datetime]) -> SelfTest:
    """Run the self-test of this very engine and keep what it found, in place of what was known of it.

    A worker that could not run it (no memory, a machine too busy) has found nothing: nothing is kept, the engine has
    not passed, and the agent tries again.
    """
    engine = engine_version()
    try:
        checks = worker.self_test()
    except WorkerFailed:
        return SelfTest(engine, timestamp(clock()), False, ())
    passed = bool(checks) and all(check.passed for check in checks)
    found = SelfTest(engine, timestamp(clock()), passed, tuple(asdict(check) for check in checks))
    keep(database, found)
    return found


def keep(database: Engine, found: SelfTest) -> None:
    """Store it, in place of an earlier one of this engine."""
    with transaction(database) as session:
        session.merge(
            SelfTestRecord(
                engine=found.engine.digest,
                version=found.engine.version,
                passed=found.passed,
                checks=json.dumps(found.checks),
                at=found.at,
            )
        )


def known(session: Session) -> SelfTest | None:
    """What is known of the engine that runs now; None where it was never tested here."""
    engine = engine_version()
    row = session.get(SelfTestRecord, engine.digest)
    return None if row is None else SelfTest(engine, row.at, row.passed, tuple(json.loads(row.checks)))


def require_passed(session: Session) -> None:
    """Raises AttemptRefused: SELF_TEST_MISSING, SELF_TEST_FAILED."""
    found = known(session)
    if found is None:
        raise AttemptRefused(RefusalCode.SELF_TEST_MISSING)
    if not found.passed:
        raise AttemptRefused(RefusalCode.SELF_TEST_FAILED)
