"""What open incidents freeze, and the facts of them that gates ask for."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlmodel import Session

from coordinator.incidents.repository import IncidentRepository, settled_of
from coordinator.incidents.tables import IncidentRecord
from protocol.incident import BASIS_INVALIDATED, overdue


def incident_facts(session: Session, *, study: str, sites: Iterable[str], now: datetime) -> dict[str, Any]:
    """`incident.*`: of what touches this study, one of these sites, or everything."""
    found = IncidentRepository(session).open_about(study=study, sites=sites)
    return {"open": len(found), "overdue": sum(is_overdue(row, now=now) for row in found)}


def is_overdue(row: IncidentRecord, *, now: datetime) -> bool:
    """Whether a duty's time has passed."""
    return overdue(row.aware_at, settled_of(row), now=now)


def frozen_sites(session: Session) -> frozenset[str]:
    """The sites that take part in nothing for now."""
    return frozenset(row.about for row in IncidentRepository(session).open() if row.scope == "site")


def is_frozen(session: Session, study: str) -> bool:
    """Whether an incident is open about the study itself, or about everything."""
    return bool(IncidentRepository(session).open_about(study=study, sites=()))


def invalidated(session: Session, sites: Iterable[str]) -> list[str]:
    """Which of these sites had their legal basis found invalid, with no decision of two people yet."""
    wanted = frozenset(sites)
    found = IncidentRepository(session).open()
    return sorted({row.about for row in found if row.kind == BASIS_INVALIDATED and row.about in wanted})
