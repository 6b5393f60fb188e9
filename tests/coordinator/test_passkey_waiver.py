"""Waivers by passkey: asked for here, signed by a verified person, for one rule of one release, once."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.database import reading, transaction
from coordinator.passkeys import register
from coordinator.policy.active import active_policy
from coordinator.releases import by_passkey, waivers
from coordinator.releases.repository import ReleaseRepository
from protocol.approver_signature import verify_signed
from protocol.bundle import unpack
from protocol.canonical import canonical, parse, sha256_hex
from protocol.errors import BadSignature, CloisterError, Refused
from protocol.identifiers import Role
from protocol.passkey import PasskeySignature, encode
from protocol.plan import PlannedApprover
from protocol.release import APPROVAL_TYPE, BUNDLE_FILES, WAIVER_TYPE
from site_agent.releases.trusted_release import verify
from tests.authenticator import PRESENT, Authenticator
from tests.coordinator.test_passkey_approval import ADDRESS, answer, ask, caller, decide, hers, local, site_root
from tests.coordinator.test_release_review import RELEASE, Federation, federation
from tests.coordinator.test_release_stopping import PACK

__all__ = ["federation", "hers", "local"]
REASON = "until the audit in spring"


def ask_waiver(made: Federation, name: str, rule: str = "A03") -> dict[str, Any]:
    with transaction(made.appliance.engine) as session:
        policy = active_policy(session, made.appliance)
        return by_passkey.ask_waiver(
            session, made.appliance, policy, made.people[name], RELEASE, pack=PACK, rule=rule, days=30, reason=REASON
        )


def send(made: Federation, name: str, signed: PasskeySignature) -> None:
    with transaction(made.appliance.engine) as session:
        policy, person = active_policy(session, made.appliance), made.people[name]
        waivers.grant_waiver(
            session, made.appliance, policy, person, RELEASE, envelope=signed.to_bytes(), reason=REASON
        )


def granted(made: Federation) -> list[bytes]:
    with reading(made.appliance.engine) as session:
        return [row.envelope for row in ReleaseRepository(session).waivers(RELEASE)]


def test_a_waiver_is_signed_by_passkey_and_verifies_from_its_bytes_alone(
    federation: Federation, hers: dict[str, Authenticator]
) -> None:
    federation.to_review()
    signed = answer(ask_waiver(federation, "bo"), hers["bo"])
    send(federation, "bo", signed)
    assert granted(federation) == [signed.to_bytes()]
    approver = PlannedApprover(person="bo", role=Role.COMPLIANCE_OFFICER, passkeys=(hers["bo"].passkey,))
    assert verify_signed(signed, WAIVER_TYPE, approver, ADDRESS) == "passkey"
    with pytest.raises(BadSignature, match="another address"):
        verify_signed(signed, WAIVER_TYPE, approver, "coordinator.example.org:8443")


def test_a_site_verifies_the_passkeys_waiver_out_of_the_sealed_bundle(
    federation: Federation, hers: dict[str, Authenticator]
) -> None:
    federation.to_review()
    send(federation, "bo", answer(ask_waiver(federation, "bo"), hers["bo"]))
    for name in ("bo", "cy"):
        decide(federation, name, hers[name])
    federation.seal()
    federation.witness()
    assert federation.seal()
    files = unpack(federation.bundle(), BUNDLE_FILES)
    approved = verify(files, site_root(federation, ADDRESS)).logged.approved
    assert (approved.waived, approved.methods) == ((f"{PACK} A03",), ("passkey",))
    with pytest.raises(CloisterError, match="another address"):
        verify(files, site_root(federation, "coordinator.example.org:8443"))


def test_a_waiver_moves_to_no_other_rule_digest_person_or_day(
    federation: Federation, hers: dict[str, Authenticator]
) -> None:
    federation.to_review()
    signed = answer(ask_waiver(federation, "bo"), hers["bo"])
    waiver = parse(signed.document)
    assert isinstance(waiver, dict)
    for change in (
        {"rule": "A04"},
        {"pack": "gdpr"},
        {"subject_digest": sha256_hex(b"another")},
        {"expires_at": "2099-01-01T00:00:00Z"},
        {"challenge": sha256_hex(b"another")},
    ):
        moved = signed.model_copy(update={"payload": encode(canonical({**waiver, **change}))})
        with pytest.raises(BadSignature, match="another document"):
            send(federation, "bo", moved)
    with pytest.raises(Refused, match="another person"):
        send(federation, "cy", signed)
    federation.appliance.clock.move(minutes=16)  # type: ignore[attr-defined]
    with pytest.raises(Refused, match="expired"):
        send(federation, "bo", signed)
    assert granted(federation) == []


def test_an_approval_is_no_waiver_and_a_waiver_no_approval(
    federation: Federation, hers: dict[str, Authenticator]
) -> None:
    federation.to_review()
    approval, waiver = answer(ask(federation, "bo"), hers["bo"]), answer(ask_waiver(federation, "bo"), hers["bo"])
    with pytest.raises(CloisterError):
        send(federation, "bo", approval)
    with pytest.raises(CloisterError):
        federation.send("bo", waiver.to_bytes())
    with pytest.raises(BadSignature, match="another document"):
        send(federation, "bo", waiver.model_copy(update={"payload_type": WAIVER_TYPE, "payload": _longer(waiver)}))
    with pytest.raises(BadSignature, match="passkey signed"):
        send(federation, "bo", waiver.model_copy(update={"payload_type": APPROVAL_TYPE}))
    assert granted(federation) == []


def _longer(signed: PasskeySignature) -> str:
    waiver = parse(signed.document)
    assert isinstance(waiver, dict)
    return encode(canonical({**waiver, "expires_at": "2027-01-01T00:00:00Z"}))


def test_a_waiver_is_not_replayed_nor_signed_by_a_revoked_passkey_or_an_unverified_person(
    federation: Federation, hers: dict[str, Authenticator]
) -> None:
    federation.to_review()
    with pytest.raises(BadSignature, match="not verified"):
        send(federation, "bo", answer(ask_waiver(federation, "bo"), hers["bo"], flags=PRESENT))
    signed = answer(ask_waiver(federation, "bo"), hers["bo"])
    send(federation, "bo", signed)
    with pytest.raises(BadSignature, match="old one"):
        send(federation, "bo", signed)
    hers["cy"].counts, hers["cy"].count = False, 0  # one that keeps no counter: the nonce counts once all the same
    kept = answer(ask_waiver(federation, "cy", "A06"), hers["cy"])
    send(federation, "cy", kept)
    with pytest.raises(CloisterError):
        send(federation, "cy", kept)
    asked = ask_waiver(federation, "bo", "A06")
    with transaction(federation.appliance.engine) as session:
        register.revoke(session, federation.appliance, caller(federation, "bo"), hers["bo"].passkey.credential)
    with pytest.raises(BadSignature, match="revoked"):
        send(federation, "bo", answer(asked, hers["bo"]))
    assert len(granted(federation)) == 2


def test_what_must_hold_is_not_asked_for_and_nothing_behind_somebody_who_decided(
    federation: Federation, hers: dict[str, Authenticator]
) -> None:
    federation.to_review()
    with pytest.raises(Refused, match="can't be waived"):
        ask_waiver(federation, "bo", "A15")
    with pytest.raises(Refused, match="does not name"):
        ask_waiver(federation, "eve")
    federation.decide("bo")
    with pytest.raises(CloisterError):
        send(federation, "cy", answer(ask_waiver(federation, "cy"), hers["cy"]))
    assert granted(federation) == []
