"""DSSE envelopes: the specification's vector, the round trip, and everything that must not open."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import MAX_SAFE_INTEGER, canonical
from protocol.envelope import Envelope, open_envelope, open_json, pae, payload_type, seal
from protocol.errors import BadSignature, Malformed
from protocol.signing import SigningKey, VerifyingKey

A, B, C = (SigningKey.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
STUDY = payload_type("study")
BODY = {"name": "sepsis", "rounds": 3}


def trusting(*keys: SigningKey) -> dict[str, VerifyingKey]:
    return {key.public.key_id: key.public for key in keys}


def test_pae_is_the_specification_s() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


@given(st.dictionaries(st.text(), st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER) | st.text()))
def test_sealed_documents_open_again(body: dict[str, object]) -> None:
    envelope = Envelope.from_bytes(seal(STUDY, body, A, B).to_bytes())
    assert open_json(envelope, STUDY, trusting(A, B)) == (body, (A.public.key_id, B.public.key_id))
    assert open_envelope(envelope, STUDY, trusting(B, C)) == (canonical(body), (B.public.key_id,))


def test_binary_payloads_are_kept_as_they_are() -> None:
    kind = "application/octet-stream"
    assert open_envelope(seal(kind, b"\xff\0", A), kind, trusting(A))[0] == b"\xff\0"


def test_the_json_form_is_dsse_s() -> None:
    assert json.loads(seal(STUDY, BODY, A).to_bytes()) == {
        "payload": base64.b64encode(b'{"name":"sepsis","rounds":3}').decode(),
        "payloadType": "application/vnd.cloister.study+json",
        "signatures": [
            {"keyid": A.public.key_id, "sig": base64.b64encode(A.sign(pae(STUDY, canonical(BODY)))).decode()}
        ],
    }


@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(seal(STUDY, BODY, A).to_bytes())
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((Malformed, BadSignature)):
        open_json(Envelope.from_bytes(bytes(sealed)), STUDY, trusting(A))


def test_what_does_not_open() -> None:
    envelope = seal(STUDY, BODY, A)
    with pytest.raises(BadSignature, match=r"not application/vnd\.cloister\.consent"):
        open_envelope(envelope, payload_type("consent"), trusting(A))
    with pytest.raises(BadSignature, match="No trusted key"):
        open_envelope(envelope, STUDY, trusting(B))
    with pytest.raises(BadSignature, match="No trusted key"):
        open_envelope(envelope, STUDY, {})
    with pytest.raises(BadSignature):
        open_envelope(replace(envelope, payload=b"{}"), STUDY, trusting(A))
    retyped = replace(envelope, payload_type=payload_type("consent"))
    with pytest.raises(BadSignature):
        open_envelope(retyped, payload_type("consent"), trusting(A))


def test_one_bad_signature_by_a_trusted_key_spoils_the_rest() -> None:
    forged = replace(
        seal(STUDY, BODY, A, B),
        signatures=((A.public.key_id, A.sign(pae(STUDY, canonical(BODY)))), (B.public.key_id, bytes(64))),
    )
    with pytest.raises(BadSignature):
        open_envelope(forged, STUDY, trusting(A, B))
    assert open_envelope(forged, STUDY, trusting(A))[1] == (A.public.key_id,)


def test_a_key_id_can_t_be_borrowed() -> None:
    borrowed = replace(seal(STUDY, BODY, B), signatures=((A.public.key_id, B.sign(pae(STUDY, canonical(BODY)))),))
    with pytest.raises(BadSignature):
        open_envelope(borrowed, STUDY, trusting(A))
    with pytest.raises(Malformed, match="another key's id"):
        open_envelope(borrowed, STUDY, {A.public.key_id: B.public})


def test_each_key_signs_once_and_at_least_one_does() -> None:
    with pytest.raises(Malformed, match="two signatures"):
        seal(STUDY, BODY, A, A)
    with pytest.raises(Malformed, match="0 signatures"):
        seal(STUDY, BODY)
    with pytest.raises(Malformed, match="101 signatures"):
        Envelope(STUDY, b"{}", tuple((f"key {n}", b"") for n in range(101)))


def test_json_payloads_have_one_form() -> None:
    loose = b'{"b": 1, "a": 2}'
    with pytest.raises(Malformed, match="canonical"):
        seal(STUDY, loose, A)
    smuggled = Envelope(STUDY, loose, ((A.public.key_id, A.sign(pae(STUDY, loose))),))
    assert open_envelope(smuggled, STUDY, trusting(A))[0] == loose
    with pytest.raises(Malformed, match="canonical"):
        open_json(smuggled, STUDY, trusting(A))
    with pytest.raises(Malformed, match="not a JSON object"):
        open_json(seal(STUDY, [1], A), STUDY, trusting(A))
    with pytest.raises(Malformed, match="limit is 5"):
        open_json(seal(STUDY, BODY, A), STUDY, trusting(A), limit=5)


def test_bytes_that_are_no_envelope() -> None:
    good = json.loads(seal(STUDY, BODY, A).to_bytes())
    signature = good["signatures"][0]
    bad: list[object] = [
        [],
        "x",
        {},
        {**good, "extra": 1},
        {key: good[key] for key in ("payload", "payloadType")},
        {**good, "payload": 1},
        {**good, "payload": "***"},
        {**good, "payload": good["payload"] + "="},
        {**good, "payload": "e30"},
        {**good, "payload": "e31="},
        {**good, "payload": "é"},
        {**good, "payloadType": "study"},
        {**good, "payloadType": "application/x\n"},
        {**good, "payloadType": ""},
        {**good, "signatures": []},
        {**good, "signatures": {}},
        {**good, "signatures": [1]},
        {**good, "signatures": [signature, signature]},
        {**good, "signatures": [{**signature, "cert": ""}]},
        {**good, "signatures": [{"sig": signature["sig"]}]},
        {**good, "signatures": [{**signature, "keyid": 3}]},
        {**good, "signatures": [{**signature, "sig": "_w=="}]},
    ]
    for value in bad:
        with pytest.raises(Malformed):
            Envelope.from_bytes(canonical(value))
    spaced = json.dumps(good).encode()
    with pytest.raises(Malformed, match="canonical"):
        Envelope.from_bytes(spaced)
    with pytest.raises(Malformed, match="limit"):
        Envelope.from_bytes(canonical(good), limit=10)


@pytest.mark.parametrize("kind", ["", "Study", "a b", "a--b", "-a", "a/b", "é"])
def test_document_kinds(kind: str) -> None:
    with pytest.raises(Malformed):
        payload_type(kind)
