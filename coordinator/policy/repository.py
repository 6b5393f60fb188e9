"""The only SQL about policy sets and decisions."""

from __future__ import annotations

from collections.abc import Mapping

from sqlmodel import Session, col, select

from coordinator.audit.tables import LogEntry
from coordinator.errors import NotFound
from coordinator.policy.states import SetState
from coordinator.policy.tables import PolicyDecision, PolicyDocument, PolicySetRow, PolicyVoteRow
from protocol.canonical import sha256_hex
from protocol.errors import VerificationFailed


class PolicyRepository:
    """Sets, documents, votes and decisions within the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def active(self) -> PolicySetRow | None:
        """The set in force: the last that came into force. Raises VerificationFailed where an earlier one is marked as
        in force in its place."""
        came = select(PolicySetRow).where(col(PolicySetRow.activation).is_not(None))
        row = self._session.exec(came.order_by(col(PolicySetRow.number).desc())).first()
        marked = select(PolicySetRow.digest).where(PolicySetRow.state == SetState.ACTIVE.value)
        if list(self._session.exec(marked)) != ([] if row is None else [row.digest]):
            raise VerificationFailed(
                "The database marks another policy set as in force than the last that came into force.",
                "Decide nothing; restore the database, and compare it with the log's last packs.activated.",
            )
        return row

    def get(self, digest: str) -> PolicySetRow:
        """The set, or NotFound."""
        row = self._session.get(PolicySetRow, digest)
        if row is None:
            raise NotFound(f"There is no policy set {digest[:19]}.", "See `cloister policy list`.")
        return row

    def that_decided(self, policy: str) -> PolicySetRow:
        """The newest set that came into force with this content, or NotFound."""
        query = select(PolicySetRow).where(PolicySetRow.policy == policy, col(PolicySetRow.activation).is_not(None))
        row = self._session.exec(query.order_by(col(PolicySetRow.number).desc())).first()
        if row is None:
            raise NotFound(f"No policy {policy[:19]} was ever in force here.", "See `cloister policy list`.")
        return row

    def exists(self, digest: str) -> bool:
        """Whether this very set was proposed before."""
        return self._session.get(PolicySetRow, digest) is not None

    def all(self) -> list[PolicySetRow]:
        """Every set, oldest first."""
        order = (col(PolicySetRow.number), col(PolicySetRow.proposed_at), col(PolicySetRow.digest))
        return list(self._session.exec(select(PolicySetRow).order_by(*order)))

    def add(self, row: PolicySetRow, documents: Mapping[str, bytes]) -> None:
        """Keep a set and those of its documents that are not kept yet."""
        for data in documents.values():
            key = sha256_hex(data)
            if self._session.get(PolicyDocument, key) is None:
                self._session.add(PolicyDocument(digest=key, content=data))
        self._session.add(row)
        self._session.flush()

    def documents(self, named: Mapping[str, str]) -> dict[str, bytes]:
        """The documents by name, as they are stored; those that are not there are left out."""
        query = select(PolicyDocument).where(col(PolicyDocument.digest).in_(sorted(set(named.values()))))
        stored = {row.digest: row.content for row in self._session.exec(query)}
        return {name: stored[key] for name, key in named.items() if key in stored}

    def votes(self, digest: str) -> list[PolicyVoteRow]:
        """The decisions on a set, in the order in which they were made."""
        query = select(PolicyVoteRow).where(PolicyVoteRow.set_digest == digest)
        return list(self._session.exec(query.order_by(col(PolicyVoteRow.decided_at), col(PolicyVoteRow.person))))

    def save(self, *rows: PolicySetRow | PolicyVoteRow | PolicyDecision) -> None:
        """Write what is new or has changed."""
        self._session.add_all(rows)
        self._session.flush()

    def decisions(self, *, gate: str | None, subject: str | None, before: int | None, limit: int) -> list[
        tuple[PolicyDecision, bytes | None]
    ]:  # fmt: skip
        """The newest decisions below entry `before`, each with its payload (None: erased), newest first."""
        query = select(PolicyDecision, LogEntry.payload).join(LogEntry, col(LogEntry.id) == col(PolicyDecision.entry))
        for column, wanted in ((PolicyDecision.gate, gate), (PolicyDecision.subject, subject)):
            if wanted is not None:
                query = query.where(column == wanted)
        if before is not None:
            query = query.where(col(PolicyDecision.entry) < before)
        return list(self._session.exec(query.order_by(col(PolicyDecision.entry).desc()).limit(limit)).all())
