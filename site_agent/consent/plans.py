"""Plans as the coordinator lists them, opened with the pinned key. Light: the agent imports it at all times."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from protocol.canonical import digest
from protocol.consent import PLAN_TYPE
from protocol.envelope import Envelope, open_json
from protocol.errors import CloisterError, Malformed
from protocol.signing import VerifyingKey
from protocol.study_kind import AnyPlan, plan_from

PLAN_LIMIT = 4 << 20


class UnknownStudy(CloisterError):
    """The coordinator does not invite this site to such a study."""

    code = "unknown-study"


@dataclass(frozen=True)
class SignedPlan:
    """A plan whose signature by the pinned coordinator key holds. digest: of its canonical form."""

    plan: AnyPlan
    digest: str
    envelope: bytes


def open_plan(envelope: bytes, coordinator: str) -> SignedPlan:
    """The plan in a signed envelope. Raises BadSignature unless the pinned coordinator key signed it, and Malformed."""
    key = VerifyingKey.from_text(coordinator)
    parsed = Envelope.from_bytes(envelope, limit=2 * PLAN_LIMIT)
    document, _ = open_json(parsed, PLAN_TYPE, {key.key_id: key}, limit=PLAN_LIMIT)
    try:
        plan = plan_from(document)
    except ValidationError:
        raise Malformed(
            "The study's plan is not of a form that this version of cloister-site knows.",
            "Update both sides to the same version.",
        ) from None
    return SignedPlan(plan, digest(document), envelope)


def find_plan(studies: list[Mapping[str, Any]], study: str, coordinator: str) -> SignedPlan:
    """The named study's plan, of those that the coordinator lists. Raises UnknownStudy, BadSignature, Malformed."""
    for item in studies:
        if item.get("study") == study:
            try:
                envelope = base64.b64decode(str(item.get("plan_envelope", "")), validate=True)
            except (binascii.Error, ValueError):
                raise Malformed("The coordinator's list holds a plan that is not base64.", "Report it.") from None
            signed = open_plan(envelope, coordinator)
            if signed.plan.spec.study != study or signed.digest != item.get("plan_digest", signed.digest):
                raise Malformed("The coordinator lists a plan under another study's name.", "Report it.")
            return signed
    raise UnknownStudy(f"This site is not invited to a study {study}.", "See cloister-site studies list.")
