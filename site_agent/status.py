"""What a site knows of itself: read from its own folder, without asking anyone."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Engine
from sqlmodel import col, func, select

from protocol.note import VerifierKey
from protocol.timestamp import timestamp
from site_agent.cohort.tables import Snapshot
from site_agent.database import transaction
from site_agent.keystore import SiteKeys
from site_agent.renewal import current
from site_agent.serving.reports import counted as serving_reports
from site_agent.settings import SiteSettings
from site_agent.training.budget_store import BudgetStore
from site_agent.training.engine import engine_version
from site_agent.training.generation import REMEDY, standing
from site_agent.training.self_test import known
from site_agent.witness import repository


def status(settings: SiteSettings, keys: SiteKeys, engine: Engine, now: datetime) -> dict[str, Any]:
    """The site's state as a JSON document. Raises KeysUnusable and DatabaseUnusable."""
    certificate = current(keys)
    with transaction(engine) as session:
        held = repository.held(session, VerifierKey.parse(settings.log).name)
        policy = repository.policy_in_force(session)
        alarms = repository.alarms(session)
        latest = repository.cosigned(session, held.head.size) if held else None
        snapshots = session.exec(select(func.count()).select_from(Snapshot)).one()
        ledger = standing(session)
        tested = known(session)
        waiting = session.exec(
            select(func.count())
            .select_from(Snapshot)
            .where(col(Snapshot.registered_at).is_(None), col(Snapshot.replaced_by).is_(None))
        ).one()
        told = serving_reports(session)
    refusals = BudgetStore(engine).last_refusals()
    return {
        "site": settings.site,
        "home": str(settings.home.path),
        "coordinator": settings.address,
        "identity": keys.identity.public.text,
        "certificate": {
            "not_after": timestamp(certificate.not_after),
            "hours_left": round((certificate.not_after - now).total_seconds() / 3600, 1),
            "expired": now >= certificate.not_after,
        },
        "log": {
            "name": VerifierKey.parse(settings.log).name,
            "size": held.head.size if held else 0,
            "cosigned": bool(latest and latest.delivered),
            "witnesses": len(policy.witnesses),
            "quorum": policy.quorum,
            "alarms": [
                {
                    "alarm": a.id,
                    "code": a.code,
                    "detail": a.detail,
                    "raised_at": a.raised_at,
                    "acknowledged_at": a.acknowledged_at,
                    "reason": a.reason,
                }
                for a in alarms
            ],
        },
        "engine": {
            "version": engine_version().version,
            "digest": engine_version().digest,
            "self_test": "not run yet" if tested is None else "passed" if tested.passed else "FAILED",
            "tested_at": None if tested is None else tested.at,
        },
        "ledger": {"behind": ledger.behind, "remedy": REMEDY if ledger.behind else ""},
        "snapshots": {"stored": snapshots, "waiting_for_registration": waiting},
        "serving_reports": told,
        "refused": [
            {"at": r.at, "study": r.study, "phase": r.phase, "round": r.round, "attempt": r.attempt, "code": r.code}
            for r in refusals
        ],
    }
