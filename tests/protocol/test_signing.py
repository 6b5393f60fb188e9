"""Ed25519 keys: RFC 8032's own vectors, malleability, weak keys and the text and PEM forms."""

from __future__ import annotations

import base64

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import sha256_hex
from protocol.errors import BadSignature, Malformed
from protocol.signing import SigningKey, VerifyingKey

# RFC 8032 section 7.1, tests 1-3: seed, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493
P = 2**255 - 19
KEY = SigningKey.from_seed(bytes(range(32)))


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_rfc_8032_vectors(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey.from_seed(bytes.fromhex(seed))
    assert key.public.raw.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    key.public.verify(bytes.fromhex(signature), bytes.fromhex(message))


@given(st.binary(max_size=100), st.data())
def test_any_flipped_bit_is_refused(message: bytes, data: st.DataObject) -> None:
    signature = bytearray(KEY.sign(message))
    bit = data.draw(st.integers(0, 511))
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSignature):
        KEY.public.verify(bytes(signature), message)


def test_another_message_key_or_length_is_refused() -> None:
    signature = KEY.sign(b"consent")
    KEY.public.verify(signature, b"consent")
    with pytest.raises(BadSignature):
        KEY.public.verify(signature, b"consent ")
    with pytest.raises(BadSignature):
        SigningKey.generate().public.verify(signature, b"consent")
    for wrong in (b"", signature[:-1], signature + b"\0"):
        with pytest.raises(BadSignature):
            KEY.public.verify(wrong, b"consent")


def test_a_signature_is_not_malleable() -> None:
    signature = KEY.sign(b"m")
    shifted = int.from_bytes(signature[32:], "little") + ORDER
    with pytest.raises(BadSignature):
        KEY.public.verify(signature[:32] + shifted.to_bytes(32, "little"), b"m")


def small_order_encodings() -> list[bytes]:
    """Every encoding, canonical or not, of the eight points of small order, worked out from the curve."""
    d = -121665 * pow(121666, -1, P) % P
    ys = {0, 1, P - 1}
    for sign in (1, -1):  # order 8: the double has y = 0, so x^2 = -y^2, so d y^4 + 2 y^2 = 1
        root = pow((1 + d) % P, (P + 3) // 8, P)
        if root * root % P != (1 + d) % P:
            root = root * pow(2, (P - 1) // 4, P) % P
        square = (-1 + sign * root) * pow(d, -1, P) % P
        y = pow(square, (P + 3) // 8, P)
        if y * y % P != square:
            y = y * pow(2, (P - 1) // 4, P) % P
        if y * y % P == square:
            ys |= {y, P - y}
    return [
        (y + extra + (top << 255)).to_bytes(32, "little")
        for y in ys
        for top in (0, 1)
        for extra in (0, P)
        if y + extra < 2**255
    ]


def forgeable(raw: bytes) -> bool:
    """Whether the library takes a signature that was made without a key: R the neutral point, S zero."""
    forged = (1).to_bytes(32, "little") + bytes(32)
    for message in range(64):
        try:
            Ed25519PublicKey.from_public_bytes(raw).verify(forged, bytes([message]))
        except (InvalidSignature, ValueError):
            continue
        return True
    return False


def test_keys_that_anyone_can_sign_for_are_refused() -> None:
    weak = small_order_encodings()
    assert len({int.from_bytes(raw, "little") % 2**255 % P for raw in weak}) == 5
    assert sum(forgeable(raw) for raw in weak) >= 8
    for raw in weak:
        with pytest.raises(Malformed, match="weak"):
            VerifyingKey.from_bytes(raw)


@given(st.binary(min_size=32, max_size=32))
def test_text_form_round_trips(seed: bytes) -> None:
    key = SigningKey.from_seed(seed).public
    assert VerifyingKey.from_text(key.text) == key
    assert key.key_id == sha256_hex(key.raw)


def test_text_form_is_strict() -> None:
    text = KEY.public.text
    body = text.removeprefix("ed25519:")
    last = body[-1]
    sibling = chr(ord(last) + 1)  # differs in the two bits that 43 characters leave unused
    assert base64.urlsafe_b64decode(body[:-1] + sibling + "=") == KEY.public.raw
    for wrong in (
        "",
        body,
        text + "=",
        text + "\n",
        " " + text,
        "ED25519:" + body,
        text[:-1],
        text[:-1] + sibling,
        "ed25519:" + "é" * 43,
        "ed25519:" + "A" * 42 + "/",
    ):
        with pytest.raises(Malformed):
            VerifyingKey.from_text(wrong)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_lengths(length: int) -> None:
    with pytest.raises(Malformed):
        VerifyingKey.from_bytes(bytes(length))
    with pytest.raises(Malformed):
        SigningKey.from_seed(bytes(length))


def test_pem_round_trip_and_refusals() -> None:
    plain, locked = KEY.to_pem(), KEY.to_pem(b"correct horse")
    assert SigningKey.from_pem(plain).public == KEY.public
    assert SigningKey.from_pem(locked, b"correct horse").public == KEY.public
    assert b"ENCRYPTED" in locked
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    refused: list[tuple[bytes, bytes | None]] = [
        (locked, None),
        (locked, b"wrong"),
        (plain, b"needless"),
        (b"", None),
        (b"no pem", None),
        (other, None),
    ]
    for pem, passphrase in refused:
        with pytest.raises(Malformed) as caught:
            SigningKey.from_pem(pem, passphrase)
        assert caught.value.remedy


def test_generated_keys_differ_and_hide_their_secret() -> None:
    one, two = SigningKey.generate(), SigningKey.generate()
    assert one.public != two.public
    assert repr(one) == "SigningKey()"
