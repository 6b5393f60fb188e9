"""Offline proofs: the text form, and that only a logged, witnessed entry passes."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.checkpoint import TreeHead, cosign, cosigner_key, sign_checkpoint
from protocol.errors import BadSignature, Malformed, VerificationFailed
from protocol.merkle import Tree, inclusion_proof, leaf_hash
from protocol.note import KeyType, VerifierKey
from protocol.signing import SigningKey
from protocol.tlog_proof import TlogProof
from protocol.witness_policy import WitnessPolicy

LOG_KEY = SigningKey.from_seed(bytes([9]) * 32)
KEYS = {f"{letter}.example/w": SigningKey.from_seed(letter.encode() * 32) for letter in "abcd"}
LOG = VerifierKey("log.example/audit", KeyType.ED25519, LOG_KEY.public.raw)
POLICY = WitnessPolicy(LOG, tuple(cosigner_key(name, key) for name, key in KEYS.items()), 3)
LEAVES = [leaf_hash(b"entry %d" % n) for n in range(21)]
TREE = Tree(LEAVES)


def note(size: int, cosigners: int = 3) -> bytes:
    head = TreeHead(LOG.name, size, TREE.root(size))
    lines = [cosign(head, name, key, timestamp=1_700_000_000) for name, key in list(KEYS.items())[:cosigners]]
    return sign_checkpoint(head, LOG_KEY).with_signatures(*lines).to_bytes()


def proof(index: int, size: int = 21, cosigners: int = 3, extra: bytes = b"") -> TlogProof:
    return TlogProof(index, inclusion_proof(index, size, TREE.read), note(size, cosigners), extra)


def test_every_entry_is_proved() -> None:
    for size in (1, 2, 13, 21):
        for index in range(size):
            again = TlogProof.from_bytes(proof(index, size).to_bytes())
            assert again.verify(LEAVES[index], POLICY).size == size


def test_the_text_form_is_the_specification_s() -> None:
    sibling = base64.b64encode(LEAVES[1]).decode()
    assert proof(0, 2).to_bytes() == f"c2sp.org/tlog-proof@v1\nindex 0\n{sibling}\n\n".encode() + note(2)
    assert proof(0, 1).to_bytes() == b"c2sp.org/tlog-proof@v1\nindex 0\n\n" + note(1)
    assert proof(0, 1, extra=b"more").to_bytes().startswith(b"c2sp.org/tlog-proof@v1\nextra bW9yZQ==\nindex 0\n\n")


@given(st.integers(0, 20), st.binary(max_size=50))
def test_proofs_round_trip(index: int, extra: bytes) -> None:
    one = proof(index, extra=extra)
    assert TlogProof.from_bytes(one.to_bytes()) == one


def test_what_is_not_proved() -> None:
    with pytest.raises(VerificationFailed, match="inclusion"):
        proof(3).verify(LEAVES[4], POLICY)
    with pytest.raises(VerificationFailed, match="inclusion"):
        replace(proof(3), index=4).verify(LEAVES[3], POLICY)
    with pytest.raises(VerificationFailed, match="inclusion"):
        replace(proof(3), checkpoint=note(20)).verify(LEAVES[3], POLICY)
    with pytest.raises(VerificationFailed, match="cosigned"):
        proof(3, cosigners=2).verify(LEAVES[3], POLICY)
    stranger = SigningKey.from_seed(bytes([7]) * 32)
    other = replace(POLICY, log=VerifierKey(LOG.name, KeyType.ED25519, stranger.public.raw))
    with pytest.raises(BadSignature):
        proof(3).verify(LEAVES[3], other)


@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(proof(13).to_bytes())
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((Malformed, BadSignature, VerificationFailed)):
        TlogProof.from_bytes(bytes(sealed)).verify(LEAVES[13], POLICY)


def test_bytes_that_are_no_proof() -> None:
    good = proof(5).to_bytes()
    header = b"c2sp.org/tlog-proof@v1\n"
    checkpoint = note(21)
    hash_line = base64.b64encode(LEAVES[0]) + b"\n"
    bad = [
        b"",
        header,
        header + b"\n" + checkpoint,
        b"c2sp.org/tlog-proof@v2" + good[22:],
        good.replace(b"index 5", b"index 05"),
        good.replace(b"index 5", b"index -5"),
        good.replace(b"index 5", b"index  5"),
        good.replace(b"index 5", b"index 5 "),
        good.replace(b"index 5", b"index 9223372036854775807"),
        good.replace(b"index 5\n", b""),
        good.replace(b"index 5", b"index 5\nindex 5"),
        good.replace(b"\n", b"\r\n"),
        b"\n" + good,
        header + b"extra \nindex 0\n\n" + checkpoint,
        header + b"extra ***\nindex 0\n\n" + checkpoint,
        header + b"index 0\nextra bW9yZQ==\n\n" + checkpoint,
        header + b"index 0\nAAAA\n\n" + checkpoint,
        header + b"index 0\n" + hash_line * 64 + b"\n" + checkpoint,
        header + b"index 0\n" + hash_line + checkpoint,
        header + b"index 0\n\n",
        header + b"index 0\n\nnot a note\n",
        header + b"index \xd9\xa7\n\n" + checkpoint,
        good + b"\n",
        header + b"index 0\n\n" + bytes(2_000_001),
    ]
    for data in bad:
        with pytest.raises(Malformed) as caught:
            TlogProof.from_bytes(data)
        assert caught.value.remedy


def test_proofs_out_of_range() -> None:
    for index, hashes in ((-1, ()), (2**63, ()), (0, (b"short",)), (0, (LEAVES[0],) * 64)):
        with pytest.raises(Malformed):
            TlogProof(index, hashes, note(1))
