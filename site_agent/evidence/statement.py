"""The site's statement of its papers: made from what is on record here, signed, sent, and the receipt kept."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Engine
from sqlmodel import Session

from protocol.attestation import SiteStatement, make_statement, seal_statement
from protocol.canonical import digest
from protocol.enrolment import StatementReceipt
from protocol.errors import CloisterError
from protocol.timestamp import moment
from site_agent.certificates import fingerprint
from site_agent.clock import Clock
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import transaction
from site_agent.evidence.repository import SiteEvidenceRepository
from site_agent.keystore import SiteKeys
from site_agent.settings import SiteSettings

STALE = timedelta(hours=24)
"""A statement is sent again after so long, so that the coordinator knows this site's clock."""


class NothingAttested(CloisterError):
    """The hospital has not said yet which safeguards it has."""

    code = "nothing-attested"


def statement_now(session: Session, site: str, coordinator: str, *, now: datetime) -> SiteStatement:
    """What this site says now, later than what it said last. coordinator: the fingerprint of its CA.

    Raises NothingAttested.
    """
    evidence = SiteEvidenceRepository(session)
    attestation, sent = evidence.attestation(), evidence.sent()
    if attestation is None:
        raise NothingAttested("Nothing is attested yet.", "Run `cloister-site attest FILE`.")
    at = now if sent is None else max(now, moment(sent.made_at) + timedelta(seconds=1))
    return make_statement(site, coordinator, attestation, evidence.standing("site"), now=at)


def keep_receipt(session: Session, made: SiteStatement, receipt: StatementReceipt) -> None:
    """Remember that the coordinator took this statement, and how far its clock was from ours."""
    SiteEvidenceRepository(session).keep_sent(_content(made), made.made_at, receipt.clock_skew)


def send(
    settings: SiteSettings, keys: SiteKeys, engine: Engine, client: CoordinatorClient, clock: Clock
) -> StatementReceipt:
    """Send the statement of this moment. Raises NothingAttested and the client's errors."""
    with transaction(engine) as session:
        made = statement_now(session, settings.site, fingerprint(keys.ca_path.read_bytes()), now=clock())
    receipt = client.post_statement(seal_statement(made, keys.identity))
    with transaction(engine) as session:
        keep_receipt(session, made, receipt)
    return receipt


def send_if_due(
    settings: SiteSettings, keys: SiteKeys, engine: Engine, client: CoordinatorClient, clock: Clock
) -> StatementReceipt | None:
    """Send it where something is on record or revoked since the last one, or that is a day old; else None."""
    with transaction(engine) as session:
        evidence = SiteEvidenceRepository(session)
        sent = evidence.sent()
        if evidence.attestation() is None:
            return None
        made = statement_now(session, settings.site, fingerprint(keys.ca_path.read_bytes()), now=clock())
    if sent is not None and sent.content == _content(made) and clock() < moment(sent.made_at) + STALE:
        return None
    return send(settings, keys, engine, client, clock)


def _content(made: SiteStatement) -> str:
    return digest(made.model_dump(mode="json", exclude={"made_at"}))
