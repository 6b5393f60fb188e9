"""Signed notes: the published notes and keys, strictness, limits, and who counts as a signer."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadSignature, Malformed
from protocol.note import (
    KeyType,
    Note,
    NoteSignature,
    VerifierKey,
    open_note,
    parse_signatures,
    sign_text,
    strict_base64,
)
from protocol.signing import MlDsa44SigningKey, SigningKey

VECTORS = Path(__file__).parents[2].parent / "shared/vectors/signed_note/golang_mod_note_vectors.json"
needs_vectors = pytest.mark.skipif(not VECTORS.is_file(), reason="the note vectors are not beside the checkout")

KEY = SigningKey.from_seed(bytes(range(32)))
OTHER = SigningKey.from_seed(bytes(32))
NAME = "log.example/audit"
VERIFIER = VerifierKey(NAME, KeyType.ED25519, KEY.public.raw)
TEXT = "one\n\ntwo\n"
NOTE = Note(TEXT, (sign_text(TEXT, NAME, KEY),))

names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Z", "C"], exclude_characters="+"), min_size=1, max_size=40
)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], include_characters="\n")).map(
    lambda text: text + "\n"
)


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(VECTORS.read_bytes())
    return loaded


@needs_vectors
def test_published_notes_open(published: dict[str, Any]) -> None:
    keys = {name: VerifierKey.parse(text) for name, text in published["vkeys"].items()}
    data = (published["text"] + "\n" + "".join(published["signatures"])).encode()
    text, verified = open_note(data, keys.values())
    assert text == published["text"]
    assert [key.name for key in verified] == ["PeterNeumann", "EnochRoot"]
    assert list(open_note(data, [keys["EnochRoot"]])[1]) == [keys["EnochRoot"]]
    example = published["c2sp_example"]
    data = (example["text"] + "\n" + example["signature"]).encode()
    assert open_note(data, [VerifierKey.parse(example["vkey"])])[0] == example["text"]
    with pytest.raises(BadSignature):
        open_note(data.replace(b"example message", b"exemple message"), [VerifierKey.parse(example["vkey"])])
    with pytest.raises(BadSignature, match="No trusted key"):
        open_note(data, keys.values())


@needs_vectors
def test_the_published_private_key_signs_the_published_note(published: dict[str, Any]) -> None:
    seed = base64.b64decode(published["test_skey_published"].split("+", 4)[4])[1:]
    signature = sign_text(published["text"], "PeterNeumann", SigningKey.from_seed(seed))
    assert signature.line == published["signatures"][0]


@needs_vectors
def test_published_keys_round_trip_and_bad_ones_are_refused(published: dict[str, Any]) -> None:
    for name, text in published["vkeys"].items():
        assert VerifierKey.parse(text).text == text
        assert VerifierKey.parse(text).name == name
    assert published["bad_vkeys"]
    for text in published["bad_vkeys"]:
        with pytest.raises(Malformed):
            VerifierKey.parse(text)


@given(names, st.sampled_from(list(KeyType)))
def test_keys_round_trip(name: str, kind: KeyType) -> None:
    public = ML_DSA.public.raw if kind is KeyType.ML_DSA_44 else KEY.public.raw
    key = VerifierKey(name, kind, public)
    assert VerifierKey.parse(key.text) == key


ML_DSA = MlDsa44SigningKey.from_seed(bytes(range(32)))


@given(st.data())
def test_any_changed_character_of_a_key_is_refused_or_another_key(data: st.DataObject) -> None:
    at = data.draw(st.integers(len(NAME), len(VERIFIER.text) - 1))  # the name is free, the rest is not
    character = data.draw(st.characters(codec="ascii"))
    changed = VERIFIER.text[:at] + character + VERIFIER.text[at + 1 :]
    if changed != VERIFIER.text:
        with pytest.raises(Malformed):
            VerifierKey.parse(changed)


@given(texts, names)
def test_notes_round_trip(text: str, name: str) -> None:
    note = Note(text, (sign_text(text, name, KEY), NoteSignature("stranger", b"\0\1\2\3", b"x")))
    assert Note.parse(note.to_bytes()) == note
    verifier = VerifierKey(name, KeyType.ED25519, KEY.public.raw)
    assert open_note(note.to_bytes(), [verifier]) == (text, {verifier: note.signatures[0].signature})


@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(NOTE.to_bytes())
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((Malformed, BadSignature)):
        open_note(bytes(sealed), [VERIFIER])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_note_or_malformed(data: bytes) -> None:
    try:
        note = Note.parse(data)
    except Malformed:
        return
    assert note.to_bytes() == data


def test_a_bad_signature_by_a_known_key_spoils_the_note_and_an_unknown_one_does_not() -> None:
    good = sign_text(TEXT, "good", OTHER)
    known = VerifierKey("good", KeyType.ED25519, OTHER.public.raw)
    bad = NoteSignature(NAME, VERIFIER.key_id, bytes(64))
    assert open_note(Note(TEXT, (good, bad)).to_bytes(), [known])[1] == {known: good.signature}
    with pytest.raises(BadSignature):
        open_note(Note(TEXT, (good, bad)).to_bytes(), [known, VERIFIER])
    with pytest.raises(BadSignature, match="No trusted key"):
        open_note(Note(TEXT, (bad,)).to_bytes(), [known])


def test_a_name_or_an_id_alone_is_not_the_key() -> None:
    signature = NOTE.signatures[0].signature
    for line in (NoteSignature("other", VERIFIER.key_id, signature), NoteSignature(NAME, b"\0\0\0\0", signature)):
        with pytest.raises(BadSignature, match="No trusted key"):
            open_note(Note(TEXT, (line,)).to_bytes(), [VERIFIER])


def test_a_known_key_signs_once() -> None:
    with pytest.raises(Malformed, match="twice"):
        open_note(NOTE.with_signatures(NOTE.signatures[0]).to_bytes(), [VERIFIER])


def test_a_cosigner_key_does_not_sign_plain_notes() -> None:
    cosigner = VerifierKey(NAME, KeyType.COSIGNATURE_V1, KEY.public.raw)
    line = NoteSignature(NAME, cosigner.key_id, KEY.sign(TEXT.encode()))
    with pytest.raises(BadSignature, match="cosigner"):
        open_note(Note(TEXT, (line,)).to_bytes(), [cosigner])


def test_limits() -> None:
    stranger = NoteSignature("s", b"\0\1\2\3", b"x")
    full = NOTE.with_signatures(*[stranger] * 99)
    assert open_note(full.to_bytes(), [VERIFIER])[0] == TEXT
    with pytest.raises(Malformed, match="101"):
        full.with_signatures(stranger)
    with pytest.raises(Malformed, match="101"):
        Note.parse(full.to_bytes() + stranger.line.encode())
    with pytest.raises(Malformed, match="limit"):
        Note.parse(b"a" * 1_000_001)


LINE = NOTE.signatures[0].line


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "text\n",
        "text\n\n",
        LINE,
        "\n" + LINE,
        "text\n" + LINE,
        "text\n\n" + LINE[:-1],
        "te\x00xt\n\n" + LINE,
        "te\txt\n\n" + LINE,
        "text\r\n\r\n" + LINE,
        "text\n\n" + LINE + "\n",
        "text\n\n" + LINE + "more\n",
        "text\n\n" + LINE.replace("—", "-"),
        "text\n\n" + LINE.replace(" ", "  ", 1),
        "text\n\n" + LINE.replace("\n", " \n"),
        "text\n\n— a+b AAAAAAA=\n",
        "text\n\n—  AAAAAAA=\n",
        "text\n\n— a AAAA\n",
        "text\n\n— a AAAAAA==\n",
        "text\n\n— a AAAAAAB=\n",
        "text\n\n— a AAAAAAA\n",
        "text\n\n— a AAAA_AA=\n",
        "text\n\n— a\u2003b AAAAAAA=\n",
        "text\n\n— a\n",
        "text\n\n— a é\n",
        "text\n\n" + LINE.removeprefix("— "),
    ],
)
def test_bytes_that_are_no_note(content: str) -> None:
    with pytest.raises(Malformed) as caught:
        Note.parse(content.encode())
    assert caught.value.remedy


def test_bad_utf_8_is_refused() -> None:
    with pytest.raises(Malformed, match="UTF-8"):
        Note.parse(b"\xff\n\n" + LINE.encode())


def test_signature_lines_travel_alone() -> None:
    assert parse_signatures((LINE + LINE).encode()) == NOTE.signatures * 2
    for wrong in (b"", b"\n", LINE[:-1].encode(), TEXT.encode() + LINE.encode(), LINE.encode() * 101):
        with pytest.raises(Malformed):
            parse_signatures(wrong)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u00a0b", "a\nb", "a\x07", "\ud800", "é" * 128])
def test_key_names(name: str) -> None:
    with pytest.raises(Malformed):
        VerifierKey(name, KeyType.ED25519, KEY.public.raw)


@pytest.mark.parametrize(
    ("kind", "public"),
    [
        (KeyType.ED25519, b""),
        (KeyType.COSIGNATURE_V1, bytes(33)),
        (KeyType.ML_DSA_44, bytes(32)),
        (KeyType.ED25519, bytes(32)),
    ],
)
def test_keys_of_another_length_or_weak_ones(kind: KeyType, public: bytes) -> None:
    with pytest.raises(Malformed):
        VerifierKey("a", kind, public)


@given(st.binary(max_size=40))
def test_base64_has_one_form(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert strict_base64(text, "field") == data
    for other in (text + "\n", text + "=", text.rstrip("=") + "====", " " + text):
        with pytest.raises(Malformed):
            strict_base64(other, "field")
