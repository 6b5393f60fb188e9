"""What the coordinator asks, opened and checked against the plan that was granted. Nothing here computes or stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from protocol.canonical import sha256_hex
from protocol.envelope import Envelope, open_json
from protocol.errors import BadSignature, Malformed
from protocol.plan import Plan
from protocol.proposal import MINIMUM_CELL
from protocol.round import (
    KEY_ADVERT_TYPE,
    KEY_ENCAPSULATION_TYPE,
    KEY_REQUEST_TYPE,
    ROUND_KINDS,
    ROUND_REQUEST_TYPE,
    KeyReply,
    KeyRequest,
    Packet,
    Phase,
    RefusalCode,
    RoundRequest,
    envelopes_from_body,
)
from protocol.signing import VerifyingKey
from protocol.study import StudyPlan
from site_agent.training.states import AttemptRefused

KEY_STEPS = {"query.keys": "advertise", "query.encapsulate": "encapsulate", "query.establish": "establish"}
PHASES: dict[str, Phase] = {kind: phase for phase, kind in ROUND_KINDS.items()}
FLOAT_BYTES = 8
_PEER_TYPES = {"encapsulate": (KEY_ADVERT_TYPE, "advertise"), "establish": (KEY_ENCAPSULATION_TYPE, "encapsulate")}
_Document = TypeVar("_Document", bound=BaseModel)


@dataclass(frozen=True)
class Asked:
    """A request that the pinned coordinator key signed. digest: SHA-256 of the whole packet."""

    document: KeyRequest | RoundRequest
    body: bytes
    digest: str


def open_request(kind: str, data: bytes, coordinator: VerifyingKey) -> Asked:
    """Raises AttemptRefused: unknown-kind, malformed, bad-signature, body-mismatch."""
    if kind not in KEY_STEPS and kind not in PHASES:
        raise AttemptRefused(RefusalCode.UNKNOWN_KIND)
    try:
        packet = Packet.from_bytes(data)
    except Malformed:
        raise AttemptRefused(RefusalCode.MALFORMED) from None
    document: KeyRequest | RoundRequest
    if kind in KEY_STEPS:
        document = _opened(packet.envelope, KEY_REQUEST_TYPE, coordinator, KeyRequest, RefusalCode.BAD_SIGNATURE)
        matches, body = document.step == KEY_STEPS[kind], document.body
    else:
        document = _opened(packet.envelope, ROUND_REQUEST_TYPE, coordinator, RoundRequest, RefusalCode.BAD_SIGNATURE)
        matches, body = document.phase == PHASES[kind], document.model
    if not matches:
        raise AttemptRefused(RefusalCode.MALFORMED)
    if packet.body_digest != body:
        raise AttemptRefused(RefusalCode.BODY_MISMATCH)
    return Asked(document, packet.body, sha256_hex(data))


def check_cohort(cohort: tuple[str, ...], plan: Plan, site: str) -> None:
    """Raises AttemptRefused unless the cohort is in name order, of planned sites, with this one, and large enough."""
    if cohort != tuple(sorted(set(cohort))):
        raise AttemptRefused(RefusalCode.MALFORMED)
    if not set(cohort) <= set(plan.names):
        raise AttemptRefused(RefusalCode.UNKNOWN_SITE)
    if site not in cohort:
        raise AttemptRefused(RefusalCode.NOT_IN_COHORT)
    if len(cohort) < plan.spec.minimum_sites:
        raise AttemptRefused(RefusalCode.COHORT_TOO_SMALL)


def check_round(request: RoundRequest, body: bytes, plan: Plan) -> None:
    """Raises AttemptRefused for a round or an entry of a grid that the plan does not have, a vector of another length,
    and an exact evaluation with a site of too few held-out patients: the sum less the others' counts would tell its
    own."""
    try:
        plan.position(request.phase, request.round)
    except KeyError:
        raise AttemptRefused(RefusalCode.ROUND_UNKNOWN) from None
    if not plan.allows(request.phase, request.round, request.entry):
        raise AttemptRefused(RefusalCode.ENTRY_UNKNOWN)
    if len(body) != plan.body_length(request.phase) * FLOAT_BYTES:
        raise AttemptRefused(RefusalCode.WRONG_LENGTH)
    if _is_exact(request, plan) and any(plan.site(name).held_out <= MINIMUM_CELL for name in request.cohort):
        raise AttemptRefused(RefusalCode.NOT_ENOUGH_HELD_OUT)


def check_own_counts(request: RoundRequest, plan: Plan, held_out: int) -> None:
    """Raises AttemptRefused for an exact evaluation where too few held-out patients are left here: the plan tells how
    many there were before some withdrew."""
    if _is_exact(request, plan) and held_out <= MINIMUM_CELL:
        raise AttemptRefused(RefusalCode.NOT_ENOUGH_HELD_OUT)


def _is_exact(request: RoundRequest, plan: Plan) -> bool:
    return isinstance(plan, StudyPlan) and request.phase == "evaluate" and plan.spec.evaluation.mode == "exact"


def peer_messages(request: KeyRequest, body: bytes, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """(site, message) of each peer's reply to the step before, signed by the key that the plan pins for it.

    Raises AttemptRefused: malformed, unknown-site, bad-peer-signature.
    """
    payload_type, step = _PEER_TYPES[request.step]
    try:
        envelopes = envelopes_from_body(body)
    except Malformed:
        raise AttemptRefused(RefusalCode.MALFORMED) from None
    keys = {key.key_id: name for name in request.cohort if (key := VerifyingKey.from_text(plan.site(name).identity))}
    for envelope in envelopes:
        signer = next((keys[key_id] for key_id, _ in envelope.signatures if key_id in keys), None)
        if signer is None:
            raise AttemptRefused(RefusalCode.BAD_PEER_SIGNATURE)
        pinned = VerifyingKey.from_text(plan.site(signer).identity)
        reply = _opened(envelope, payload_type, pinned, KeyReply, RefusalCode.BAD_PEER_SIGNATURE)
        if (reply.site, reply.study, reply.plan_digest, reply.step) != (
            signer,
            request.study,
            request.plan_digest,
            step,
        ):
            raise AttemptRefused(RefusalCode.BAD_PEER_SIGNATURE)
        yield reply.site, dict(reply.message)


def _opened(
    envelope: Envelope, payload_type: str, key: VerifyingKey, document: type[_Document], unsigned: RefusalCode
) -> _Document:
    try:
        payload, _ = open_json(envelope, payload_type, {key.key_id: key})
        return document.model_validate(payload)
    except BadSignature:
        raise AttemptRefused(unsigned) from None
    except (Malformed, ValidationError):
        raise AttemptRefused(RefusalCode.MALFORMED) from None
