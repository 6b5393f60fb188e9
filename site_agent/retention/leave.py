"""A site that leaves: it destroys what it holds of the federation, counts what is left, and its gate decides.

What may stay is what the gate lets stay for a reason on record (`infeasibility`). The ledger and the records of what
was decided are no artefacts; they are kept as the law asks.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlmodel import Session

from policies.retention import Holding, RecordClass, facts_of
from protocol.canonical import digest
from protocol.errors import CloisterError
from protocol.timestamp import timestamp
from site_agent.clock import Clock
from site_agent.consent.governance import load_governance
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import transaction
from site_agent.durable_files import sync_folder
from site_agent.evidence.facts import records_facts
from site_agent.policy.decisions import keep
from site_agent.releases.install import installed
from site_agent.retention.inventory import leftovers, scratches, snapshot_files
from site_agent.retention.purge import SiteRetention, StudyNotOver
from site_agent.retention.tables import Departure
from site_agent.settings import SiteSettings


class LeavingRefused(CloisterError):
    """Something is still here that must be destroyed or returned first."""

    code = "leaving-refused"


@dataclass(frozen=True)
class Left:
    """What went and what stays: models, snapshots and items of studies' scratch."""

    models: int
    snapshots: int
    scratch: int
    retained: int


def forecast(settings: SiteSettings, engine: Engine, *, keep_models: bool) -> Left:
    """What leaving would destroy. Raises StudyNotOver while rounds of a study may still come."""
    with transaction(engine) as session:
        _require_over(session, settings)
        scratch = sum(one.items - len(one.snapshots) for one in scratches(session, settings.home))
        snapshots = len(snapshot_files(session, settings.home))
    models = len(installed(settings.home))
    return Left(0 if keep_models else models, snapshots, scratch, models if keep_models else 0)


def leave(settings: SiteSettings, engine: Engine, clock: Clock, *, keep_models: bool) -> Departure:
    """Destroy, count, decide, and keep the departure; once it stands nothing is done again.

    keep_models: installed releases stay, for which the gate asks evidence that destroying them is infeasible; it is
    asked before anything is destroyed. Raises StudyNotOver, LeavingRefused.
    """
    with transaction(engine) as session:
        standing = session.get(Departure, 1)
    if standing is not None:
        return standing
    told = forecast(settings, engine, keep_models=keep_models)
    retention = SiteRetention(settings, engine, clock)
    _decide(settings, engine, clock, retention, told.retained)
    with transaction(engine) as session:
        studies = [one.study for one in scratches(session, settings.home)]
    for study in studies:
        retention.wipe(study)
    if not keep_models:
        retention.erase_models()
    with transaction(engine) as session:
        files = [*snapshot_files(session, settings.home), *leftovers(settings.home)]
    for path in files:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        sync_folder(path.parent)
    retained = _count(settings, engine)
    decided = _decide(settings, engine, clock, retention, retained)
    departure = Departure(retained=retained, decision_digest=decided, left_at=timestamp(clock()))
    with transaction(engine) as session:
        session.add(departure)
    return departure


def deliver(engine: Engine, client: CoordinatorClient) -> None:
    """Tell the coordinator, which then revokes the site. Raises what the client raises."""
    with transaction(engine) as session:
        departure = session.get(Departure, 1)
    if departure is None or departure.delivered:
        return
    client.post_departure({"retained": departure.retained, "decision_digest": departure.decision_digest})
    with transaction(engine) as session:
        row = session.get_one(Departure, 1)
        row.delivered = True
        session.add(row)


def _require_over(session: Session, settings: SiteSettings) -> None:
    for one in scratches(session, settings.home):
        if not one.over:
            raise StudyNotOver(
                f"Rounds of {one.study} may still come.", f"Run cloister-site studies withdraw {one.study} first."
            )


def _count(settings: SiteSettings, engine: Engine) -> int:
    with transaction(engine) as session:
        items = sum(one.items - len(one.snapshots) for one in scratches(session, settings.home))
        items += len(snapshot_files(session, settings.home))
    return items + len(installed(settings.home)) + len(leftovers(settings.home))


def _decide(settings: SiteSettings, engine: Engine, clock: Clock, retention: SiteRetention, retained: int) -> str:
    """The digest of the decision that lets the site go. Raises LeavingRefused."""
    today, american = clock().date(), load_governance(settings.home).jurisdiction == "US"
    holding = Holding(RecordClass.MEMBERSHIP, settings.site, retained, 0, today, us_law=american)
    with transaction(engine) as session:
        records = records_facts(session, on=today)
    site = {"name": settings.site, "status": "terminated", "retained_artifacts": retained, "records": records}
    decided = retention.decide({**facts_of(holding, on=today, purge=False), "site": site})
    decision = decided.decision
    with transaction(engine) as session:
        keep(session, decided, subject=settings.site)
    if not decision.allowed:
        raise LeavingRefused(
            " ".join(f"{found.message} ({found.rule}, {found.citation})" for found in decision.findings),
            " ".join(dict.fromkeys(found.remedy for found in decision.findings)),
        )
    return digest(decision.to_dict())
