"""The only SQL about what the hospital has on record."""

from __future__ import annotations

from datetime import date

from sqlmodel import Session, col, select

from protocol.attestation import Attestation
from protocol.canonical import canonical
from protocol.evidence import EvidenceRecord, Scope
from protocol.papers import Safeguards
from site_agent.evidence.tables import AttestedSafeguards, SentStatement, SiteEvidence


class SiteEvidenceRepository:
    """Evidence and attestation within the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, digest: str) -> SiteEvidence | None:
        """The row of a record, revoked or not."""
        return self._session.get(SiteEvidence, digest)

    def add(self, record: EvidenceRecord, *, at: str) -> SiteEvidence:
        """Store a record that is not there yet."""
        row = SiteEvidence(
            digest=record.digest,
            scope=record.scope,
            kind=record.kind,
            record=canonical(record.model_dump(mode="json")).decode(),
            recorded_at=at,
        )
        self._session.add(row)
        self._session.flush()
        return row

    def save(self, row: SiteEvidence) -> None:
        self._session.add(row)
        self._session.flush()

    def all(self) -> list[SiteEvidence]:
        """Every row, oldest first."""
        query = select(SiteEvidence).order_by(col(SiteEvidence.recorded_at), col(SiteEvidence.digest))
        return list(self._session.exec(query))

    def standing(self, scope: Scope) -> list[EvidenceRecord]:
        """The records of this scope that are not revoked, oldest first; expired ones among them."""
        rows = [row for row in self.all() if row.scope == scope and row.revoked_at is None]
        return [EvidenceRecord.model_validate_json(row.record) for row in rows]

    def attest(self, safeguards: Safeguards, on: date) -> None:
        """Put what is attested in place of what was attested before."""
        self._session.merge(
            AttestedSafeguards(
                safeguards=canonical(safeguards.model_dump(mode="json")).decode(), attested_on=on.isoformat()
            )
        )
        self._session.flush()

    def safeguards(self) -> Safeguards | None:
        """What was attested last; None before anything was."""
        row = self._session.get(AttestedSafeguards, 1)
        return None if row is None else Safeguards.model_validate_json(row.safeguards)

    def attestation(self) -> Attestation | None:
        """The same as it leaves the site, with its day."""
        row = self._session.get(AttestedSafeguards, 1)
        if row is None:
            return None
        return Safeguards.model_validate_json(row.safeguards).attested(date.fromisoformat(row.attested_on))

    def sent(self) -> SentStatement | None:
        """The newest statement that the coordinator took."""
        return self._session.get(SentStatement, 1)

    def keep_sent(self, content: str, made_at: str, clock_skew: float) -> None:
        """Remember that the coordinator took it."""
        before = self.sent()
        first = before.first_made_at if before is not None else made_at
        self._session.merge(SentStatement(content=content, made_at=made_at, clock_skew=clock_skew, first_made_at=first))
        self._session.flush()
