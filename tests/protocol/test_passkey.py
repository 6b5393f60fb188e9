"""What counts as a passkey's signature over a document, and everything else that does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.approver_signature import read_signed, verify_passkey, verify_signed
from protocol.canonical import canonical
from protocol.errors import BadSignature, CloisterError, Malformed, Refused
from protocol.identifiers import Role
from protocol.passkey import Passkey, PasskeySignature, challenge_of, decode, encode, origin_of, relying_party
from protocol.plan import PlannedApprover
from protocol.release import APPROVAL_TYPE, WAIVER_TYPE
from protocol.signing import SigningKey
from tests.authenticator import PRESENT, VERIFIED, Authenticator

ADDRESS = "cloister.example.org:8443"
DOCUMENT = canonical({"decision": "approve", "subject_digest": "sha256:" + "a" * 64})
HERS = Authenticator(ADDRESS)
OTHER = Authenticator(ADDRESS)
KEY = SigningKey.generate()
ADA = PlannedApprover(person="ada", role=Role.CLINICAL_LEAD, key=KEY.public.text, passkeys=(HERS.passkey,))
GOOD = HERS.sign(APPROVAL_TYPE, DOCUMENT)


def test_a_verified_person_signs_exactly_this_document() -> None:
    assert verify_signed(GOOD, APPROVAL_TYPE, ADA, ADDRESS) == "passkey"
    assert read_signed(GOOD.to_bytes()) == GOOD
    assert GOOD.document == DOCUMENT


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"flags": PRESENT}, "not verified"),
        ({"flags": VERIFIED}, "nobody was present"),
        ({"flags": 0}, "nobody was present"),
        ({"origin": "https://cloister.example.org"}, "another address"),
        ({"origin": "https://cloister.example.org.evil.example:8443"}, "another address"),
        ({"origin": "http://cloister.example.org:8443"}, "another address"),
        ({"host": "example.org"}, "another host"),
        ({"kind": "webauthn.create"}, "no assertion"),
        ({"challenge": bytes(32)}, "another document"),
        ({"extra": {"crossOrigin": True}}, "another site's frame"),
        ({"extra": {"crossOrigin": "yes"}}, "another site's frame"),
        ({"signed_by": OTHER}, "signature is wrong"),
    ],
)
def test_what_a_dishonest_browser_or_page_sends_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(BadSignature, match=why):
        verify_signed(HERS.sign(APPROVAL_TYPE, DOCUMENT, **changes), APPROVAL_TYPE, ADA, ADDRESS)


def test_a_signature_moves_to_no_other_document_type_person_or_coordinator() -> None:
    moved = GOOD.model_copy(update={"payload": encode(DOCUMENT.replace(b"approve", b"rejects"))})
    with pytest.raises(BadSignature, match="another document"):
        verify_signed(moved, APPROVAL_TYPE, ADA, ADDRESS)
    with pytest.raises(BadSignature, match="not application"):
        verify_signed(GOOD, WAIVER_TYPE, ADA, ADDRESS)
    with pytest.raises(BadSignature, match="another document"):
        verify_signed(GOOD.model_copy(update={"payload_type": WAIVER_TYPE}), WAIVER_TYPE, ADA, ADDRESS)
    bo = PlannedApprover(person="bo", role=Role.CLINICAL_LEAD, passkeys=(OTHER.passkey,))
    with pytest.raises(BadSignature, match="not one that the plan fixes"):
        verify_signed(GOOD, APPROVAL_TYPE, bo, ADDRESS)
    for address in ("cloister.example.org:9443", "cloister.example.com:8443"):
        with pytest.raises(BadSignature, match="another address"):
            verify_signed(GOOD, APPROVAL_TYPE, ADA, address)


def test_a_key_put_under_a_known_credential_verifies_nothing() -> None:
    """The coordinator keeps the credential's name and puts its own public key in its place, or the other way round."""
    forged = HERS.sign(APPROVAL_TYPE, DOCUMENT, signed_by=OTHER)
    with pytest.raises(BadSignature, match="signature is wrong"):
        verify_signed(forged, APPROVAL_TYPE, ADA, ADDRESS)
    with pytest.raises(BadSignature, match="not one that the plan fixes"):
        verify_signed(OTHER.sign(APPROVAL_TYPE, DOCUMENT), APPROVAL_TYPE, ADA, ADDRESS)


def test_a_counter_that_did_not_grow_tells_of_a_copy() -> None:
    mine = Authenticator(ADDRESS)
    first = mine.sign(APPROVAL_TYPE, DOCUMENT)
    count = verify_passkey(first, mine.passkey, ADDRESS, count=0)
    assert count == 1
    with pytest.raises(BadSignature, match="copied"):
        verify_passkey(first, mine.passkey, ADDRESS, count=count)
    without = Authenticator(ADDRESS, counts=False)
    assert verify_passkey(without.sign(APPROVAL_TYPE, DOCUMENT), without.passkey, ADDRESS, count=0) == 0


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["payload", "authenticator_data", "client_data", "signature", "credential"]),
    st.integers(0, 2**12),
    st.integers(1, 255),
)
def test_any_changed_byte_is_refused(name: str, position: int, flip: int) -> None:
    data = bytearray(decode(getattr(GOOD, name)))
    data[position % len(data)] ^= flip
    with pytest.raises(CloisterError):
        verify_signed(GOOD.model_copy(update={name: encode(bytes(data))}), APPROVAL_TYPE, ADA, ADDRESS)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=2, max_size=200), st.binary(min_size=2, max_size=200), st.binary(min_size=2, max_size=200))
def test_bytes_of_any_kind_end_in_a_refusal(data: bytes, client: bytes, key: bytes) -> None:
    changed = {"authenticator_data": encode(data), "client_data": encode(client)}
    for passkey in (HERS.passkey, Passkey(credential=HERS.passkey.credential, key=encode(key))):
        with pytest.raises(CloisterError):
            verify_passkey(GOOD.model_copy(update=changed), passkey, ADDRESS)
        if passkey.key != HERS.passkey.key:
            with pytest.raises(CloisterError):
                verify_passkey(GOOD, passkey, ADDRESS)


def test_there_is_one_form_of_it() -> None:
    for change in ({"signature": GOOD.signature + "="}, {"more": 1}, {"kind": "other"}, {"payload": "!"}):
        with pytest.raises(Malformed):
            read_signed(canonical({**GOOD.model_dump(), **change}))
    with pytest.raises(Malformed):
        PasskeySignature.from_bytes(b" " + GOOD.to_bytes())
    for text in ("A", "AB", "AAAA=", "A+AA"):
        with pytest.raises(Malformed):
            decode(text)


def test_origins_and_hosts_are_those_of_a_browser() -> None:
    assert origin_of("Cloister.example.org:443") == "https://cloister.example.org"
    assert origin_of(ADDRESS) == "https://cloister.example.org:8443"
    assert relying_party(ADDRESS) == "cloister.example.org"
    for address in ("127.0.0.1:8443", "[::1]:8443"):
        with pytest.raises(Refused, match="host name"):
            relying_party(address)


def test_a_challenge_is_bound_to_its_type_and_its_length() -> None:
    assert challenge_of("application/a", b"bc") != challenge_of("application/ab", b"c")


def test_an_approver_has_something_to_sign_with() -> None:
    with pytest.raises(ValueError, match="neither"):
        PlannedApprover(person="ada", role=Role.CLINICAL_LEAD)
