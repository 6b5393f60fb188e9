"""Checkpoints and cosignatures: a published log's, the specification's messages, and what must not open."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey
from hypothesis import given
from hypothesis import strategies as st

from protocol.checkpoint import (
    TreeHead,
    cosign,
    cosigner_key,
    open_checkpoint,
    sign_checkpoint,
    verify_cosignature,
)
from protocol.errors import BadSignature, Malformed
from protocol.merkle import EMPTY_ROOT, MAX_SIZE, leaf_hash
from protocol.note import KeyType, Note, NoteSignature, VerifierKey, sign_text
from protocol.signing import MlDsa44SigningKey, SigningKey

LOG_DIRECTORY = Path(__file__).parents[2].parent / "shared/vectors/tessera_tiles_testlog/log"
# The published verifier key of that test log (transparency-dev/tessera, testdata/build_log.sh).
TESTLOG = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"

LOG_KEY = SigningKey.from_seed(bytes([9]) * 32)
LOG = VerifierKey("log.example/audit", KeyType.ED25519, LOG_KEY.public.raw)
KEYS: dict[str, SigningKey | MlDsa44SigningKey] = {
    "a.example/w": SigningKey.from_seed(bytes([1]) * 32),
    "b.example/w": MlDsa44SigningKey.from_seed(bytes([2]) * 32),
}
WITNESSES = [cosigner_key(name, key) for name, key in KEYS.items()]
HEAD = TreeHead(LOG.name, 7, leaf_hash(b"root"))
NOTE = sign_checkpoint(HEAD, LOG_KEY)
TIMES = {"a.example/w": 1_700_000_000, "b.example/w": 1_700_000_009}
COSIGNED = NOTE.with_signatures(*(cosign(HEAD, name, KEYS[name], timestamp=time) for name, time in TIMES.items()))


@pytest.mark.skipif(not LOG_DIRECTORY.is_dir(), reason="the test log is not beside the checkout")
def test_every_checkpoint_of_the_published_log_opens() -> None:
    log = VerifierKey.parse(TESTLOG)
    for size in range(16):
        data = (LOG_DIRECTORY / f"checkpoint.{size}").read_bytes()
        checkpoint = open_checkpoint(data, log)
        assert (checkpoint.origin, checkpoint.size, checkpoint.cosigners) == (log.name, size, {})
        assert checkpoint.head.text.encode() == data.split(b"\n\n")[0] + b"\n"


def test_cosigned_checkpoints_open_with_the_times() -> None:
    checkpoint = open_checkpoint(COSIGNED.to_bytes(), LOG, WITNESSES)
    assert checkpoint.head == HEAD
    assert checkpoint.cosigners == TIMES
    assert open_checkpoint(COSIGNED.to_bytes(), LOG, WITNESSES[1:]).cosigners == {"b.example/w": 1_700_000_009}
    with pytest.raises(TypeError):
        checkpoint.cosigners["c"] = 1  # type: ignore[index]  # that it can't be written is the point


def test_the_cosigned_messages_are_the_specification_s() -> None:
    first, second = COSIGNED.signatures[1:]
    assert struct.unpack(">Q", first.signature[:8]) == (TIMES["a.example/w"],)
    root = base64.b64encode(HEAD.root).decode()
    Ed25519PublicKey.from_public_bytes(WITNESSES[0].public).verify(
        first.signature[8:], f"cosignature/v1\ntime 1700000000\nlog.example/audit\n7\n{root}\n".encode()
    )
    MLDSA44PublicKey.from_public_bytes(WITNESSES[1].public).verify(
        second.signature[8:],
        b"subtree/v1\n\0"
        + b"\x0bb.example/w"
        + struct.pack(">Q", 1_700_000_009)
        + b"\x11log.example/audit"
        + struct.pack(">QQ", 0, 7)
        + HEAD.root,
    )
    assert len(second.signature) == 8 + 2420


@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(COSIGNED.to_bytes())
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    try:
        checkpoint = open_checkpoint(bytes(sealed), LOG, WITNESSES)
    except (Malformed, BadSignature):
        return
    # A changed name or key id makes a stranger's line of it: that witness is lost, nothing is gained.
    assert checkpoint.head == HEAD
    assert len(checkpoint.cosigners) == 1
    assert checkpoint.cosigners.items() < TIMES.items()


@pytest.mark.parametrize("name", list(KEYS))
def test_a_cosignature_is_of_one_head_one_time_and_one_witness(name: str) -> None:
    witness = cosigner_key(name, KEYS[name])
    line = cosign(HEAD, name, KEYS[name], timestamp=5)
    assert verify_cosignature(HEAD, line, witness) == 5
    for head in (
        TreeHead(LOG.name, 8, HEAD.root),
        TreeHead("other.example", 7, HEAD.root),
        TreeHead(LOG.name, 7, leaf_hash(b"fork")),
    ):
        with pytest.raises(BadSignature):
            verify_cosignature(head, line, witness)
    later = NoteSignature(name, line.key_id, struct.pack(">Q", 6) + line.signature[8:])
    with pytest.raises(BadSignature):
        verify_cosignature(HEAD, later, witness)
    other = next(key for key in WITNESSES if key.name != name)
    with pytest.raises(BadSignature, match="not by"):
        verify_cosignature(HEAD, line, other)
    for cut in (1, 7, 8, 9):
        with pytest.raises((BadSignature, Malformed)):
            verify_cosignature(HEAD, NoteSignature(name, line.key_id, line.signature[:cut]), witness)


def test_a_stale_cosignature_can_t_be_moved_to_a_new_checkpoint() -> None:
    grown = sign_checkpoint(TreeHead(LOG.name, 8, leaf_hash(b"new")), LOG_KEY)
    for line in COSIGNED.signatures[1:]:
        with pytest.raises(BadSignature):
            open_checkpoint(grown.with_signatures(line).to_bytes(), LOG, WITNESSES)


@pytest.mark.parametrize("time", [0, -1, 2**63])
def test_times_out_of_range(time: int) -> None:
    for name, key in KEYS.items():
        with pytest.raises(Malformed):
            cosign(HEAD, name, key, timestamp=time)
    timeless = NoteSignature("a.example/w", WITNESSES[0].key_id, bytes(8 + 64))
    with pytest.raises(Malformed):
        verify_cosignature(HEAD, timeless, WITNESSES[0])


def test_the_log_must_have_signed_its_own_origin() -> None:
    stranger = SigningKey.from_seed(bytes([5]) * 32)
    unsigned = Note(HEAD.text, COSIGNED.signatures[1:])
    with pytest.raises(BadSignature, match="not signed by the log"):
        open_checkpoint(unsigned.to_bytes(), LOG, WITNESSES)
    with pytest.raises(BadSignature):
        open_checkpoint(sign_checkpoint(HEAD, stranger).to_bytes(), LOG, WITNESSES)
    foreign = TreeHead("other.example", 7, HEAD.root)
    crossed = Note(foreign.text, (sign_text(foreign.text, LOG.name, LOG_KEY),))
    with pytest.raises(BadSignature, match=r"is of other\.example"):
        open_checkpoint(crossed.to_bytes(), LOG, WITNESSES)


def test_keys_of_the_wrong_type() -> None:
    with pytest.raises(Malformed, match="wrong type"):
        open_checkpoint(NOTE.to_bytes(), WITNESSES[0])
    with pytest.raises(Malformed, match="wrong type"):
        open_checkpoint(NOTE.to_bytes(), LOG, [LOG])
    twin = cosigner_key("a.example/w", SigningKey.from_seed(bytes([6]) * 32))
    with pytest.raises(Malformed, match="one name"):
        open_checkpoint(NOTE.to_bytes(), LOG, [WITNESSES[0], twin])


@given(st.integers(1, MAX_SIZE), st.binary(min_size=32, max_size=32))
def test_tree_heads_round_trip(size: int, root: bytes) -> None:
    head = TreeHead("log.example", size, root)
    assert TreeHead.parse(head.text) == head


ROOT = base64.b64encode(HEAD.root).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "log\n7\n",
        f"log\n7\n{ROOT}",
        f"log\n7\n{ROOT}\n\n",
        f"log\n7\n{ROOT}\nextension\n",
        f"log\n7\n{ROOT}\nextension",
        f"\n7\n{ROOT}\n",
        f"lo g\n7\n{ROOT}\n",
        f"log\n07\n{ROOT}\n",
        f"log\n+7\n{ROOT}\n",
        f"log\n-7\n{ROOT}\n",
        f"log\n 7\n{ROOT}\n",
        f"log\n٧\n{ROOT}\n",
        f"log\n7_0\n{ROOT}\n",
        f"log\n\n{ROOT}\n",
        f"log\n{2**63}\n{ROOT}\n",
        f"log\n{10**30}\n{ROOT}\n",
        f"log\n0\n{ROOT}\n",
        f"log\n7\n{ROOT[:-4]}\n",
        f"log\n7\n{ROOT[:-1]}\n",
        f"log\n7\n{ROOT} \n",
        "log\n7\n" + base64.b64encode(bytes(33)).decode() + "\n",
    ],
)
def test_texts_that_are_no_tree_head(text: str) -> None:
    with pytest.raises(Malformed):
        TreeHead.parse(text)


def test_an_empty_tree_has_the_empty_root() -> None:
    assert TreeHead.parse(TreeHead("log", 0, EMPTY_ROOT).text).size == 0


def test_ml_dsa_keys_keep_through_pem() -> None:
    key = MlDsa44SigningKey.generate()
    assert MlDsa44SigningKey.from_pem(key.to_pem(b"secret"), b"secret").public == key.public
    assert repr(key) == "MlDsa44SigningKey()"
    with pytest.raises(Malformed, match="not ML-DSA-44"):
        MlDsa44SigningKey.from_pem(LOG_KEY.to_pem())
    with pytest.raises(Malformed, match="not Ed25519"):
        SigningKey.from_pem(key.to_pem())
    with pytest.raises(Malformed):
        MlDsa44SigningKey.from_seed(bytes(31))
