"""Whether a site's answer counts in an attempt. Pure: bytes in, the contribution or a closed code out.

A contribution counts only if its envelope verifies under the identity key that the plan pins for that site and
every field equals the request. Nothing in a masked vector can be judged.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from privacy.errors import PrivacyError
from privacy.secagg.framing import Manifest
from protocol.canonical import parse, sha256_hex
from protocol.envelope import Envelope, open_envelope
from protocol.errors import BadSignature, Malformed
from protocol.round import (
    CONTRIBUTION_TYPE,
    REFUSAL_TYPE,
    Contribution,
    Packet,
    RefusalCode,
    RoundRefusal,
    RoundRequest,
)
from protocol.signing import VerifyingKey

WORD_BYTES = 4


class Excluded(Exception):
    """Why a site does not count in this attempt: a closed code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Offered:
    """A verified contribution: with its vector, or with the manifest of a vector that comes in chunks."""

    contribution: Contribution
    vector: bytes
    manifest: Manifest | None


def opened(data: bytes, request: RoundRequest, *, site: str, key: VerifyingKey, length: int) -> Offered:
    """A contribution that answers exactly `request`, of `length` words.

    Raises Excluded: malformed, bad-signature, refused:<code>, wrong-site, wrong-study, wrong-plan, wrong-phase,
    wrong-round, wrong-attempt, wrong-cohort, wrong-model, wrong-length, wrong-body, wrong-manifest.
    """
    try:
        packet = Packet.from_bytes(data)
    except Malformed:
        raise Excluded("malformed") from None
    if packet.envelope.payload_type == REFUSAL_TYPE:
        raise Excluded(_refusal(packet.envelope, request, site, key))
    contribution = _open(packet.envelope, key)
    _compare(contribution, request, site)
    expected = length * WORD_BYTES
    if contribution.manifest is None and len(packet.body) != expected:
        raise Excluded("wrong-length")
    if sha256_hex(packet.body) != contribution.body:
        raise Excluded("wrong-body")
    if contribution.manifest is not None:
        manifest = _manifest(packet.body, contribution.manifest)
        if contribution.length != length or manifest.length != expected:
            raise Excluded("wrong-length")
        return Offered(contribution, b"", manifest)
    if contribution.length != length:
        raise Excluded("wrong-length")
    return Offered(contribution, packet.body, None)


def _manifest(body: bytes, signed: str) -> Manifest:
    try:
        manifest = Manifest.from_dict(parse(body))
    except (Malformed, PrivacyError):
        raise Excluded("malformed") from None
    if f"sha256:{manifest.digest().hex()}" != signed:
        raise Excluded("wrong-manifest")
    return manifest


def _open(envelope: Envelope, key: VerifyingKey) -> Contribution:
    try:
        payload, _ = open_envelope(envelope, CONTRIBUTION_TYPE, {key.key_id: key})
        return Contribution.model_validate(parse(payload))
    except BadSignature:
        raise Excluded("bad-signature") from None
    except (Malformed, ValidationError):
        raise Excluded("malformed") from None


def _compare(contribution: Contribution, request: RoundRequest, site: str) -> None:
    checks = (
        ("wrong-site", contribution.site == site),
        ("wrong-study", contribution.study == request.study),
        ("wrong-plan", contribution.plan_digest == request.plan_digest),
        ("wrong-phase", contribution.phase == request.phase),
        ("wrong-round", contribution.round == request.round),
        ("wrong-attempt", contribution.attempt == request.attempt),
        ("wrong-cohort", contribution.cohort == request.cohort),
        ("wrong-model", contribution.model == request.model),
    )
    for code, holds in checks:
        if not holds:
            raise Excluded(code)


def _refusal(envelope: Envelope, request: RoundRequest, site: str, key: VerifyingKey) -> str:
    try:
        payload, _ = open_envelope(envelope, REFUSAL_TYPE, {key.key_id: key})
        refusal = RoundRefusal.model_validate(parse(payload))
    except BadSignature:
        return "bad-signature"
    except (Malformed, ValidationError):
        return "malformed"
    if (refusal.study, refusal.site, refusal.phase, refusal.round, refusal.attempt) != (
        request.study,
        site,
        request.phase,
        request.round,
        request.attempt,
    ):
        return "wrong-refusal"
    return refusal_code(refusal.code)


def refusal_code(code: str) -> str:
    """`refused:` and the site's code if it is one of the protocol's, else `refused:other`: nothing that a site writes
    reaches the log."""
    known = {item.value for item in RefusalCode}
    return f"refused:{code}" if code in known else "refused:other"
