"""A site's veto: kept here first, so that the release is never installed here, whatever the coordinator makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast, get_args

from pydantic import ValidationError
from sqlalchemy import Engine
from sqlmodel import col, select

from protocol.canonical import sha256_hex
from protocol.envelope import seal
from protocol.errors import Malformed, VerificationFailed
from protocol.release import VETO_TYPE, ReleaseSubject, ReleaseVeto, VetoReason
from protocol.signing import SigningKey
from protocol.timestamp import timestamp
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import transaction
from site_agent.releases.tables import OwnVeto

REASONS: tuple[str, ...] = get_args(VetoReason)
MAX_WORDS = 2000


def check_offered(offered: Mapping[str, Any]) -> ReleaseSubject:
    """The subject of a release that the coordinator shows, once its digest and its model card are what it names.

    Raises VerificationFailed.
    """
    lies = VerificationFailed(
        "The coordinator shows a release that is not the one it names.",
        "Tell the coordinator's administrator; this site installs nothing that does not verify.",
    )
    try:
        subject = ReleaseSubject.model_validate(offered.get("subject"))
    except ValidationError:
        raise lies from None
    card = offered.get("model_card")
    signed = {entry.name: entry.sha256 for entry in subject.files}
    if (subject.digest, subject.release) != (offered.get("subject_digest"), offered.get("release")):
        raise lies
    if not isinstance(card, str) or sha256_hex(card.encode()) != signed.get("model_card.md"):
        raise lies
    return subject


def veto(
    engine: Engine, subject: ReleaseSubject, *, site: str, key: SigningKey, reason: str, words: str, now: datetime
) -> OwnVeto:
    """Keep this site's veto; an earlier one of the same digest stays as it is. Raises Malformed."""
    if reason not in REASONS:
        raise Malformed(f"{reason[:40]!r} is not a reason.", f"Use one of {', '.join(REASONS)}.")
    if not 1 <= len(words) <= MAX_WORDS:
        raise Malformed("The veto needs a reason in words, which stay at this site.", "Give --because.")
    document = ReleaseVeto(
        release=subject.release,
        subject_digest=subject.digest,
        site=site,
        reason=cast(VetoReason, reason),
        at=timestamp(now),
    )
    with transaction(engine) as session:
        row = session.get(OwnVeto, subject.release)
        if row is not None and row.subject_digest == subject.digest:
            return row
        if row is not None:
            session.delete(row)
            session.flush()
        row = OwnVeto(
            release=subject.release,
            subject_digest=subject.digest,
            reason=reason,
            words=words,
            envelope=seal(VETO_TYPE, document.model_dump(mode="json"), key).to_bytes(),
            vetoed_at=document.at,
            delivered=False,
        )
        session.add(row)
    return row


def deliver_vetoes(engine: Engine, client: CoordinatorClient) -> list[str]:
    """Send every veto that the coordinator has not acknowledged; the releases told. Raises what the client raises."""
    with transaction(engine) as session:
        waiting = session.exec(select(OwnVeto).where(col(OwnVeto.delivered).is_(False))).all()
    for row in waiting:
        client.post_veto(row.release, row.envelope)
        with transaction(engine) as session:
            kept = session.get(OwnVeto, row.release)
            if kept is not None and kept.envelope == row.envelope:
                kept.delivered = True
                session.add(kept)
    return [row.release for row in waiting]


def vetoed_here(engine: Engine, release: str) -> bool:
    """Whether this site has vetoed the release."""
    with transaction(engine) as session:
        return session.get(OwnVeto, release) is not None
