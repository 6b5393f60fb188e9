"""The audit event: a closed leaf of the transparency log.

The leaf holds pseudonyms, identifiers, digests and numbers only. Names, reasons and other words live in an
erasable payload; the leaf holds SHA-256(salt || payload), so an erasure never breaks a proof.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from protocol.canonical import canonical
from protocol.identifiers import ColumnName, Digest, Frozen, Label, Timestamp

SALT_BYTES = 32


class EventType(StrEnum):
    """Everything that is logged, and nothing else."""

    LOG_STARTED = "log.started"
    PERSON_INVITED = "person.invited"
    PERSON_REGISTERED = "person.registered"
    PERSON_DISABLED = "person.disabled"
    PERSON_SIGNED_IN = "person.signed-in"
    PASSKEY_REGISTERED = "person.passkey-registered"
    PASSKEY_REVOKED = "person.passkey-revoked"
    PERSON_LOCKED_OUT = "person.locked-out"
    PERSON_CREDENTIAL_CHANGED = "person.credential-changed"
    PERSON_ROLE_CHANGED = "person.role-changed"
    PERSON_CERTIFIED = "person.certified"
    SITE_INVITED = "site.invited"
    SITE_ENROLLED = "site.enrolled"
    SITE_CERTIFICATE_RENEWED = "site.certificate-renewed"
    SITE_REVOKED = "site.revoked"
    SITE_LEFT = "site.left"
    WITNESS_JOINED = "witness.joined"
    WITNESS_REMOVED = "witness.removed"
    SITE_ATTESTED = "site.attested"
    DATASET_REGISTERED = "dataset.registered"
    EVIDENCE_RECORDED = "evidence.recorded"
    EVIDENCE_REVOKED = "evidence.revoked"
    PACKS_PROPOSED = "packs.proposed"
    PACKS_APPROVED = "packs.approved"
    PACKS_REJECTED = "packs.rejected"
    PACKS_ACTIVATED = "packs.activated"
    POLICY_DECIDED = "policy.decided"
    STUDY_PROPOSED = "study.proposed"
    STUDY_DENIED = "study.denied"
    STUDY_APPROVED = "study.approved"
    STUDY_REJECTED = "study.rejected"
    STUDY_CONSENTED = "study.consented"
    STUDY_REFUSED = "study.refused"
    STUDY_STARTED = "study.started"
    STUDY_STOPPED = "study.stopped"
    STUDY_WAITING = "study.waiting"
    STUDY_RESUMED = "study.resumed"
    SHUT_OUT_ASKED = "study.shut-out-asked"
    SITE_SHUT_OUT = "study.site-shut-out"
    KEYS_ESTABLISHED = "study.keys-established"
    ROUND_ATTEMPTED = "round.attempted"
    ROUND_COMMITTED = "round.committed"
    MODEL_CHECKED = "model.checked"
    CANDIDATE_EVALUATED = "candidate.evaluated"
    EXPLORATION_COMPLETED = "exploration.completed"
    CANDIDATE_AUDITED = "candidate.audited"
    RELEASE_DRAFTED = "release.drafted"
    RELEASE_SUBMITTED = "release.submitted"
    RELEASE_APPROVED = "release.approved"
    RELEASE_REJECTED = "release.rejected"
    RELEASE_SEALED = "release.sealed"
    RELEASE_DOWNLOADED = "release.downloaded"
    RELEASE_INSTALLED = "release.installed"
    RELEASE_SUSPENDED = "release.suspended"
    SERVING_STARTED = "serving.started"
    SERVING_STOPPED = "serving.stopped"
    SERVING_ROLLED_BACK = "serving.rolled-back"
    SERVING_REFUSED = "serving.refused"
    SERVING_RESUMED = "serving.resumed"
    INCIDENT_OPENED = "incident.opened"
    INCIDENT_UPDATED = "incident.updated"
    INCIDENT_CLOSING = "incident.closing-said"
    INCIDENT_CLOSED = "incident.closed"
    RELEASE_REVOKED = "release.revoked"
    RELEASE_FAILED = "release.failed"
    RELEASE_EXPIRED = "release.expired"
    RELEASE_VETOED = "release.vetoed"
    RULE_WAIVED = "release.rule-waived"
    GLASS_BROKEN = "release.glass-broken"
    GLASS_REVIEWED = "release.glass-reviewed"
    REVIEW_OPENED = "review.opened"
    REVIEW_CLOSED = "review.closed"
    AUDIT_EXPORTED = "audit.exported"
    AUDIT_REVIEWED = "audit.reviewed"
    DOSSIER_REMOVAL_ASKED = "dossier.removal-asked"
    DOSSIER_REMOVED = "dossier.removed"
    RECORDS_PURGED = "records.purged"
    PAYLOADS_PRUNED = "payloads.pruned"
    PAYLOAD_ERASURE_ASKED = "payload.erasure-asked"
    PAYLOAD_ERASED = "payload.erased"


class AuditEvent(Frozen):
    """One leaf. `digests`, `numbers`, `labels` and `groups` carry the facts under closed field names.

    `groups`: lists of site names (invited, contributed, excluded). `payload`: the salted hash, or None.
    """

    version: Literal[1] = 1
    event: EventType
    at: Timestamp
    actor: Label
    subject: Label
    digests: dict[ColumnName, Digest] = Field(default_factory=dict)
    numbers: dict[ColumnName, float | int] = Field(default_factory=dict)
    labels: dict[ColumnName, Label] = Field(default_factory=dict)
    groups: dict[ColumnName, tuple[Label, ...]] = Field(default_factory=dict)
    payload: Digest | None = None

    def leaf(self) -> bytes:
        """The canonical bytes that are hashed into the tree."""
        return canonical(self.model_dump(mode="json"))


Salt = Annotated[bytes, Field(min_length=SALT_BYTES, max_length=SALT_BYTES)]


def payload_hash(salt: bytes, payload: bytes) -> str:
    """SHA-256(salt || payload). ValueError unless the salt has 32 bytes."""
    if len(salt) != SALT_BYTES:
        raise ValueError("a payload salt has 32 bytes")
    return "sha256:" + hashlib.sha256(salt + payload).hexdigest()


def pseudonym(secret: bytes, kind: str, name: str) -> str:
    """A stable pseudonym for a person in the log: keyed, so that names can't be guessed from it."""
    return f"{kind}-{hmac.new(secret, f'{kind}/{name}'.encode(), hashlib.sha256).hexdigest()[:16]}"
