"""What the hospital has on record, as the facts that policy packs declare."""

from __future__ import annotations

from datetime import date
from typing import Any

from sqlmodel import Session

from protocol.attestation import site_facts
from protocol.evidence import Scope, standing
from protocol.timestamp import moment
from site_agent.evidence.repository import SiteEvidenceRepository


def records_facts(session: Session, *, on: date, scope: Scope = "site") -> list[dict[str, Any]]:
    """`site.records`, or `deployment.records`: none is an empty list, for somebody looked."""
    return standing(SiteEvidenceRepository(session).standing(scope), on=on)


def papers_facts(session: Session, site: str, *, on: date) -> dict[str, Any]:
    """The parts of `site.*` that rest on papers: name, attestation (absent before anything was attested), records, and,
    once the coordinator has taken a statement, how far its clock was from ours then and how old the site's key is."""
    evidence = SiteEvidenceRepository(session)
    facts = site_facts(site, evidence.attestation(), evidence.standing("site"), on=on)
    sent = evidence.sent()
    if sent is None:
        return facts
    age = (on - moment(sent.first_made_at).date()).days
    return {**facts, "clock_skew_seconds": sent.clock_skew, "key_age_days": max(0, age)}
