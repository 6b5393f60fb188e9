"""Witness policies: the quorum's arithmetic, both written forms, and what a policy may not say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import canonical, digest
from protocol.checkpoint import Checkpoint, TreeHead, cosign, cosigner_key, sign_checkpoint
from protocol.errors import BadSignature, Malformed, VerificationFailed
from protocol.merkle import leaf_hash
from protocol.note import KeyType, VerifierKey
from protocol.signing import MlDsa44SigningKey, SigningKey
from protocol.witness_policy import WitnessPolicy, required_quorum

LOG_KEY = SigningKey.from_seed(bytes([99]) * 32)
LOG = VerifierKey("log.example/audit", KeyType.ED25519, LOG_KEY.public.raw)
KEYS: dict[str, SigningKey | MlDsa44SigningKey] = {
    "a.example/w": SigningKey.from_seed(bytes([1]) * 32),
    "b.example/w": MlDsa44SigningKey.from_seed(bytes([2]) * 32),
    "c.example/w": SigningKey.from_seed(bytes([3]) * 32),
    "d.example/w": SigningKey.from_seed(bytes([4]) * 32),
}
WITNESSES = tuple(cosigner_key(name, key) for name, key in KEYS.items())
POLICY = WitnessPolicy(LOG, WITNESSES, 3)
HEAD = TreeHead(LOG.name, 4, leaf_hash(b"root"))


def note(*names: str, log: SigningKey = LOG_KEY) -> bytes:
    lines = (cosign(HEAD, name, KEYS[name], timestamp=1_700_000_000) for name in names)
    return sign_checkpoint(HEAD, log).with_signatures(*lines).to_bytes()


def test_required_quorums() -> None:
    assert [required_quorum(n) for n in range(1, 11)] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7]
    for n in (0, -1):
        with pytest.raises(Malformed):
            required_quorum(n)


@given(st.integers(1, 1000))
def test_two_quorums_share_an_honest_witness_and_the_honest_can_form_one(n: int) -> None:
    faulty, quorum = (n - 1) // 3, required_quorum(n)
    assert 2 * quorum - n > faulty
    assert 2 * (quorum - 1) - n <= faulty  # and none smaller would do
    assert quorum <= n - faulty


def test_a_quorum_of_cosignatures_is_accepted() -> None:
    assert POLICY.accept(note("a.example/w", "b.example/w", "d.example/w")).head == HEAD
    assert len(POLICY.accept(note(*KEYS)).cosigners) == 4


@pytest.mark.parametrize("names", [(), ("a.example/w",), ("a.example/w", "b.example/w")])
def test_fewer_are_not(names: tuple[str, ...]) -> None:
    with pytest.raises(VerificationFailed, match=f"^{len(names)} of 4 witnesses cosigned; 3 must"):
        POLICY.accept(note(*names))


def test_a_bad_log_signature_is_not_outweighed() -> None:
    with pytest.raises(BadSignature):
        POLICY.accept(note(*KEYS, log=SigningKey.from_seed(bytes([8]) * 32)))


def test_witnesses_of_another_policy_do_not_count() -> None:
    smaller = WitnessPolicy(LOG, WITNESSES[:3], 2)
    with pytest.raises(VerificationFailed):
        smaller.accept(note("a.example/w", "d.example/w"))
    opened = Checkpoint(LOG.name, 4, HEAD.root, {"a.example/w": 1, "x": 1, "y": 1})
    assert not POLICY.satisfied(opened)
    elsewhere = Checkpoint("other.example", 4, HEAD.root, dict.fromkeys(KEYS, 1))
    assert not POLICY.satisfied(elsewhere)


def test_forms_round_trip_and_order_does_not_matter() -> None:
    shuffled = WitnessPolicy(LOG, WITNESSES[::-1], 3)
    assert shuffled == POLICY
    assert WitnessPolicy.from_bytes(POLICY.to_bytes()) == POLICY
    assert WitnessPolicy.from_document(POLICY.to_document()) == POLICY
    assert WitnessPolicy.from_text(POLICY.to_text()) == POLICY
    assert POLICY.digest == shuffled.digest == digest(POLICY.to_document())
    assert POLICY.digest != replace(POLICY, quorum=4).digest


def test_the_text_form_is_tlog_policy_s() -> None:
    single = WitnessPolicy(LOG, WITNESSES[:1], 1)
    assert single.to_text() == (
        f"log {LOG.text}\nwitness a.example/w {WITNESSES[0].text}\ngroup federation 1 a.example/w\nquorum federation\n"
    )
    commented = "# the federation's log\n\n" + single.to_text().replace("group", "\t group") + "  # end\n"
    assert WitnessPolicy.from_text(commented) == single


def test_what_a_policy_may_not_say() -> None:
    ed25519 = KEYS["a.example/w"]
    renamed = cosigner_key("z.example/w", ed25519)
    same_name = cosigner_key("a.example/w", KEYS["c.example/w"])
    log_again = VerifierKey("e.example/w", KeyType.COSIGNATURE_V1, LOG.public)
    cases: list[tuple[VerifierKey, tuple[VerifierKey, ...], int]] = [
        (LOG, WITNESSES, 2),
        (LOG, WITNESSES, 5),
        (LOG, WITNESSES, 0),
        (LOG, WITNESSES, -3),
        (LOG, (), 0),
        (LOG, (*WITNESSES, renamed), 4),
        (LOG, (*WITNESSES, same_name), 4),
        (LOG, (*WITNESSES, log_again), 4),
        (LOG, (*WITNESSES, WITNESSES[0]), 4),
        (LOG, (*WITNESSES[:3], VerifierKey("e", KeyType.ED25519, WITNESSES[3].public)), 3),
        (WITNESSES[0], WITNESSES[1:], 2),
        (LOG, (cosigner_key("none", ed25519),), 1),
        (LOG, (cosigner_key("federation", ed25519),), 1),
    ]
    for log, witnesses, quorum in cases:
        with pytest.raises(Malformed) as caught:
            WitnessPolicy(log, witnesses, quorum)
        assert caught.value.remedy


def test_too_many_witnesses() -> None:
    many = tuple(cosigner_key(f"w{n}", SigningKey.from_seed(n.to_bytes(32, "big"))) for n in range(100))
    assert len(WitnessPolicy(LOG, many[:99], 99).witnesses) == 99
    with pytest.raises(Malformed, match="at most 99"):
        WitnessPolicy(LOG, many, 99)


def test_documents_that_are_no_policy() -> None:
    good = POLICY.to_document()
    keys = good["witnesses"]
    assert isinstance(keys, list)
    bad: list[dict[str, object]] = [
        {},
        {**good, "extra": 1},
        {"log": good["log"], "quorum": 3},
        {**good, "quorum": "3"},
        {**good, "quorum": True},
        {**good, "quorum": 2.5},
        {**good, "witnesses": keys[::-1]},
        {**good, "witnesses": [*keys, 1]},
        {**good, "witnesses": keys[0]},
        {**good, "log": keys[0]},
        {**good, "log": "log.example/audit"},
    ]
    for document in bad:
        with pytest.raises(Malformed):
            WitnessPolicy.from_document(document)
        with pytest.raises(Malformed):
            WitnessPolicy.from_bytes(canonical(document))
    with pytest.raises(Malformed, match="canonical"):
        WitnessPolicy.from_bytes(POLICY.to_bytes() + b"\n")
    with pytest.raises(Malformed):
        WitnessPolicy.from_bytes(b"[]")


def test_texts_that_are_no_policy() -> None:
    good = POLICY.to_text()
    lines = good.splitlines(keepends=True)
    bad = [
        "",
        "quorum none\n",
        good + lines[0],
        good + lines[1],
        good + "quorum a.example/w\n",
        "".join(lines[1:]),
        "".join(lines[:-1]),
        "".join([*lines[:-1], "quorum none\n"]),
        "".join([*lines[:-1], "quorum a.example/w\n"]),
        good.replace("federation 3", "federation any"),
        good.replace("federation 3", "federation 2"),
        good.replace("federation 3", "federation 03"),
        good.replace("federation 3", "federation 3.0"),
        good.replace("federation 3", "federation 3333"),
        good.replace(" d.example/w\n", "\n"),
        good.replace("witness a.example/w ", "witness b "),
        good.replace(LOG.text, LOG.text + " https://log.example"),
        good + "unknown line\n",
    ]
    for text in bad:
        assert text != good
        with pytest.raises(Malformed):
            WitnessPolicy.from_text(text)
