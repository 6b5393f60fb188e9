"""Round messages: what the coordinator asks, what a site answers, and the packet that carries either.

A packet is a signed envelope (DSSE) and a body whose SHA-256 stands in the envelope: Flower carries it as opaque
bytes, so neither the transport nor anyone who holds it can alter it unseen.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from protocol.canonical import canonical, parse, sha256_hex
from protocol.envelope import Envelope
from protocol.errors import Malformed
from protocol.identifiers import Digest, Frozen, Label, SiteName, StudyId, Timestamp

KEY_REQUEST_TYPE = "application/vnd.cloister.key-request+json"
KEY_ADVERT_TYPE = "application/vnd.cloister.key-advert+json"
KEY_ENCAPSULATION_TYPE = "application/vnd.cloister.key-encapsulation+json"
KEY_ESTABLISHED_TYPE = "application/vnd.cloister.key-established+json"
ROUND_REQUEST_TYPE = "application/vnd.cloister.round-request+json"
CONTRIBUTION_TYPE = "application/vnd.cloister.contribution+json"
REFUSAL_TYPE = "application/vnd.cloister.round-refusal+json"

Phase = Literal["train", "evaluate", "check", "membership", "statistics", "cluster"]
RoundKind = Literal[
    "train.contribute",
    "evaluate.histogram",
    "evaluate.check",
    "evaluate.membership",
    "query.statistics",
    "query.cluster",
]
ROUND_KINDS: Mapping[Phase, RoundKind] = {
    "train": "train.contribute",
    "evaluate": "evaluate.histogram",
    "check": "evaluate.check",
    "membership": "evaluate.membership",
    "statistics": "query.statistics",
    "cluster": "query.cluster",
}
"""Under which name the transport carries a phase's requests."""
_MAGIC = b"CLP1"
_HEADER = struct.Struct(">4sI")
MAX_ENVELOPE = 1 << 20
MAX_BODY = 1 << 30
MAX_CHUNK = 1 << 20
"""Bytes of a contribution that cross in one piece; a longer one is sent in chunks of at most as much."""
MAX_ENVELOPES = 50
MAX_ENVELOPES_BODY = 8 << 20


def phase_named(text: str) -> Phase:
    """The phase of that name. Malformed for none."""
    for phase in ROUND_KINDS:
        if phase == text:
            return phase
    raise Malformed("A phase is none of the known ones.", "Update both sides to the same version.")


class RefusalCode(StrEnum):
    """Why a site does not contribute: everything that it ever says, and nothing else."""

    MALFORMED = "malformed"
    BAD_SIGNATURE = "bad-signature"
    BAD_PEER_SIGNATURE = "bad-peer-signature"
    PLAN_NOT_GRANTED = "plan-not-granted"
    UNKNOWN_SITE = "unknown-site"
    NOT_IN_COHORT = "not-in-cohort"
    COHORT_TOO_SMALL = "cohort-too-small"
    BODY_MISMATCH = "body-mismatch"
    WRONG_LENGTH = "wrong-length"
    MODEL_NOT_FINITE = "model-not-finite"
    MODEL_TOO_LARGE = "model-too-large"
    MODEL_CHANGED = "model-changed"
    MODEL_NOT_EVALUATED = "model-not-evaluated"
    ENTRY_UNKNOWN = "entry-unknown"
    EXPIRED = "expired"
    ROUND_UNKNOWN = "round-unknown"
    ROUND_OVER = "round-over"
    PHASE_OVER = "phase-over"
    CONSUMED = "consumed"
    ALREADY_CONSUMED = "already-consumed"
    LEDGER_EXHAUSTED = "ledger-exhausted"
    LEDGER_BEHIND = "ledger-behind"
    LOG_ALARM = "log-alarm"
    KEYS_MISSING = "keys-missing"
    KEYS_IN_USE = "keys-in-use"
    KEYS_REFUSED = "keys-refused"
    DATA_MISSING = "data-missing"
    WITHDRAWALS_UNAPPLIED = "withdrawals-unapplied"
    TRAINING_FAILED = "training-failed"
    NOT_ENOUGH_HELD_OUT = "not-enough-held-out"
    UNKNOWN_KIND = "unknown-kind"
    SECAGG_MALFORMED = "secagg-malformed"
    STUDY_UNFIT = "study-unfit"
    OUT_OF_ORDER = "out-of-order"
    OTHER_STUDY = "other-study"
    OTHER_PLAN = "other-plan"
    REPEATED_SITE = "repeated-site"
    MISSING_SITE = "missing-site"
    SPLIT_VIEW = "split-view"
    KEY_UNUSABLE = "key-unusable"
    KEY_UNCONFIRMED = "key-unconfirmed"
    MASK_CONSUMED = "mask-consumed"
    ROUND_GONE = "round-gone"
    RETRIES_SPENT = "retries-spent"
    NO_SUCH_SUM = "no-such-sum"
    VECTOR_NOT_FINITE = "vector-not-finite"
    VECTOR_TOO_LARGE = "vector-too-large"
    EQUIVOCATION = "equivocation"
    DAMAGED_CHUNK = "damaged-chunk"
    KEYS_DAMAGED = "keys-damaged"
    PARAMETERS_UNFIT = "parameters-unfit"
    MISSING_CONTRIBUTORS = "missing-contributors"
    POLICY_DENIED = "policy-denied"
    POLICY_HELD = "policy-held"
    SELF_TEST_MISSING = "self-test-missing"
    SELF_TEST_FAILED = "self-test-failed"
    INTERNAL = "internal"


class KeyRequest(Frozen):
    """Coordinator -> site, one of the three set-up steps; `body` is the JSON list of peers' signed envelopes."""

    study: StudyId
    plan_digest: Digest
    step: Literal["advertise", "encapsulate", "establish"]
    cohort: tuple[SiteName, ...]
    body: Digest


class KeyReply(Frozen):
    """Site -> coordinator -> every site: a signed key advert, encapsulations, or the transcript's digest."""

    study: StudyId
    plan_digest: Digest
    site: SiteName
    step: Literal["advertise", "encapsulate", "establish"]
    message: dict[str, object]


class RoundRequest(Frozen):
    """Coordinator -> site: one attempt of one round. `model`: digest of the body, the model vector (float64 LE).
    `entry`: of the plan's grid, by which the model is trained; 0 where there is none."""

    study: StudyId
    plan_digest: Digest
    phase: Phase
    round: Annotated[int, Field(ge=1)]
    attempt: Annotated[int, Field(ge=1)]
    cohort: tuple[SiteName, ...]
    model: Digest
    entry: Annotated[int, Field(ge=0)] = 0
    issued_at: Timestamp
    expires_at: Timestamp

    @property
    def asked(self) -> Digest:
        """What the sites must agree on for their masks to cancel: the model, and with it the entry of the grid. Noise
        scales with the entry's clip: sites that were told different ones would not protect each other."""
        return self.model if self.entry == 0 else sha256_hex(f"{self.model} entry {self.entry}".encode())


class Contribution(Frozen):
    """Site -> coordinator: signs the masked vector (uint32 LE, `length` coordinates) for exactly one attempt.

    body: of the packet's body, which is the vector; or, where the vector is sent in chunks beside the packet, the
    vector's manifest as canonical JSON, and then `manifest` is the manifest's own digest.
    engine: digest of the code that computed it, which passed the self-test at the site.
    """

    study: StudyId
    plan_digest: Digest
    phase: Phase
    round: Annotated[int, Field(ge=1)]
    attempt: Annotated[int, Field(ge=1)]
    site: SiteName
    cohort: tuple[SiteName, ...]
    model: Digest
    length: Annotated[int, Field(ge=1)]
    body: Digest
    engine: Digest
    manifest: Digest | None = None


class RoundRefusal(Frozen):
    """Site -> coordinator: why it does not contribute, as a closed code."""

    study: StudyId
    site: SiteName
    phase: Label
    round: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=0)]
    code: Label


def envelopes_to_body(envelopes: Iterable[Envelope]) -> bytes:
    """The body of a key request: the canonical JSON list of signed envelopes, in the order given."""
    return b"[" + b",".join(envelope.to_bytes() for envelope in envelopes) + b"]"


def envelopes_from_body(body: bytes) -> tuple[Envelope, ...]:
    """The inverse of `envelopes_to_body`. Raises Malformed for anything else, or over 50 envelopes or 8 MiB."""
    items = parse(body, limit=MAX_ENVELOPES_BODY)
    if not isinstance(items, list) or len(items) > MAX_ENVELOPES:
        raise Malformed("A key request does not carry a list of envelopes.", "Send the peers' signed messages.")
    return tuple(Envelope.from_bytes(canonical(item)) for item in items)


@dataclass(frozen=True)
class Packet:
    """An envelope and its body. `to_bytes` and `from_bytes` are inverse; anything else is Malformed."""

    envelope: Envelope
    body: bytes = b""

    def to_bytes(self) -> bytes:
        """magic, envelope length (u32 BE), envelope, body."""
        head = self.envelope.to_bytes()
        return _HEADER.pack(_MAGIC, len(head)) + head + self.body

    @staticmethod
    def from_bytes(data: bytes) -> Packet:
        """Raises Malformed when the framing is wrong or a part is over its size limit."""
        if len(data) < _HEADER.size:
            raise Malformed("A round packet is shorter than its header.")
        magic, length = _HEADER.unpack_from(data)
        end = _HEADER.size + length
        if magic != _MAGIC or length > MAX_ENVELOPE or end > len(data) or len(data) - end > MAX_BODY:
            raise Malformed("A round packet's framing is wrong.", "Update both sides to the same version.")
        return Packet(Envelope.from_bytes(data[_HEADER.size : end]), bytes(data[end:]))

    @property
    def body_digest(self) -> str:
        """SHA-256 of the body."""
        return sha256_hex(self.body)
