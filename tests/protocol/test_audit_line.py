"""A line of an audit bundle has one form: the quick reading says what the general one says, or nothing."""

from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.audit_event import AuditEvent, EventType, payload_hash
from protocol.audit_line import AuditLine, _quick, _slow, encode_line, read_line
from protocol.canonical import MAX_SAFE_INTEGER, canonical, parse, parse_canonical
from protocol.errors import CloisterError, Malformed, VerificationFailed

SALT = bytes(range(32))
DIGEST = "sha256:" + "5" * 64
names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,8}", fullmatch=True)
labels = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,12}", fullmatch=True)
digests = st.sampled_from([DIGEST, "sha256:" + "0a" * 32])
numbers = (
    st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(10**15), 10**15).map(lambda number: number / 1000)
)
payloads = st.dictionaries(
    st.sampled_from(["name", "reason", "z"]), st.text(max_size=20) | st.integers(-9, 9), max_size=3
)
events = st.builds(
    AuditEvent,
    event=st.sampled_from(EventType),
    at=st.just("2026-11-23T00:00:00Z"),
    actor=labels,
    subject=labels,
    digests=st.dictionaries(names | st.just("witness_policy"), digests, max_size=3),
    numbers=st.dictionaries(names, numbers, max_size=3),
    labels=st.dictionaries(names, labels, max_size=3),
    groups=st.dictionaries(names, st.lists(labels, max_size=3).map(tuple), max_size=2),
)


def line_of(event: AuditEvent, index: int, payload: object = None) -> bytes:
    if payload is None:
        return encode_line(index, event.leaf())[:-1]
    body = canonical(payload)
    hashed = event.model_copy(update={"payload": payload_hash(SALT, body)})
    return encode_line(index, hashed.leaf(), body, SALT)[:-1]


def read(line: bytes, index: int) -> AuditLine | None:
    try:
        return _slow(line, index)
    except CloisterError:
        return None


@given(events, st.integers(0, 2**53 - 2), st.none() | payloads)
def test_a_written_line_is_read(event: AuditEvent, index: int, payload: object) -> None:
    line = line_of(event, index, payload)
    read_back = read_line(line, index)
    assert read_back == _slow(line, index)
    assert read_back.event == event.event.value
    assert read_back.policy == event.digests.get("witness_policy", "")
    assert (read_back.payload is None) == (payload is None)
    with pytest.raises(Malformed):
        read_line(line, index + 1)


def test_what_the_product_logs_is_read_the_quick_way() -> None:
    event = AuditEvent(
        event=EventType.ROUND_COMMITTED, at="2026-11-23T00:00:00Z", actor="coordinator", subject="study:heart",
        digests={"model": DIGEST, "plan": DIGEST}, numbers={"epsilon": 0.73423432434, "round": 12},
        groups={"contributed": ("site-a", "site-b"), "excluded": ()}, labels={"phase": "train"},
    )  # fmt: skip
    assert _quick(line_of(event, 7), 7) is not None
    assert _quick(line_of(event, 7, {"name": "Ada", "reason": "needed: [a] {b}, c"}), 7) is not None


@settings(max_examples=300)
@given(events, st.none() | payloads, st.integers(0, 2**31))
def test_the_quick_way_takes_nothing_that_the_slow_way_refuses(event: AuditEvent, payload: object, seed: int) -> None:
    """Bytes changed, dropped, doubled and swapped anywhere in the line."""
    chance = random.Random(seed)
    for _ in range(20):
        line = bytearray(line_of(event, 7, payload))
        at, other = chance.randrange(len(line)), chance.randrange(len(line))
        match chance.randrange(4):
            case 0:
                line[at] = chance.choice(b'0159.-eE"\\,:{}[]azAZ_ \x00\xff')
            case 1:
                del line[at : at + chance.randrange(1, 4)]
            case 2:
                line[at:at] = line[other : other + chance.randrange(1, 30)]
            case _:
                line[at], line[other] = line[other], line[at]
        try:
            quick = _quick(bytes(line), 7)
        except CloisterError:
            assert read(bytes(line), 7) is None
        else:
            assert quick is None or quick == read(bytes(line), 7)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"epsilon":0.25', b'"epsilon":0.250'),
        (b'"epsilon":0.25', b'"epsilon":-0'),
        (b'"epsilon":0.25', b'"epsilon":-0.0'),
        (b'"epsilon":0.25', b'"epsilon":1.0'),
        (b'"epsilon":0.25', b'"epsilon":0.0000001'),
        (b'"epsilon":0.25', b'"epsilon":0.30000000000000001'),
        (b'"epsilon":0.25', b'"epsilon":true'),
        (b'"epsilon":0.25', b'"epsilon":"1"'),
        (b'"epsilon":0.25', b'"round":1,"epsilon":0.25'),
        (b'"epsilon":0.25', b'"epsilon":0.25,"epsilon":0.25'),
        (b'{"a":"x","b":"y"}', b'{"b":"y","a":"x"}'),
        (b'{"a":"x","b":"y"}', b'{"a":"x","a":"y"}'),
        (b'{"a":"x","b":"y"}', b'{"a":"x","b":"y",}'),
        (b'"index":7', b'"index":07'),
        (b'"index":7', b'"index":7.0'),
        (b'"version":1', b'"version":2'),
        (b'"version":1', b'"version":1,"x":1'),
        (b"round.committed", b"round.commited"),
        (b'{"name":"Ada","reason":"r"}', b'{"reason":"r","name":"Ada"}'),
        (b'{"name":"Ada","reason":"r"}', b'{"name":"Ada","reason":"r" }'),
        (b'{"name":"Ada","reason":"r"}', b'{"name":"\\u0041da","reason":"r"}'),
        (b'{"name":"Ada","reason":"r"}', b'{"name":"Eda","reason":"r"}'),
        (base64.b64encode(SALT), base64.b64encode(SALT)[:-2] + b"9="),
    ],
)
def test_another_form_of_the_same_or_another_value_is_refused(old: bytes, new: bytes) -> None:
    event = AuditEvent(
        event=EventType.ROUND_COMMITTED, at="2026-11-23T00:00:00Z", actor="coordinator", subject="s",
        numbers={"epsilon": 0.25}, labels={"a": "x", "b": "y"},
    )  # fmt: skip
    line = line_of(event, 7, {"name": "Ada", "reason": "r"})
    assert read_line(line, 7)
    assert line.count(old) == 1
    changed = line.replace(old, new)
    with pytest.raises((Malformed, VerificationFailed)):
        read_line(changed, 7)


def test_a_payload_of_another_form_is_refused_even_with_its_hash() -> None:
    """A log could have hashed a payload that is no canonical JSON: two readers might read it differently."""
    event = AuditEvent(event=EventType.PERSON_INVITED, at="2026-11-23T00:00:00Z", actor="a", subject="b")
    for body in (b'{"a":1,"a":2}', b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":NaN}', b'{"a":1.0}', b'{"a":"\xff"}', b"{"):
        hashed = event.model_copy(update={"payload": payload_hash(SALT, body)})
        with pytest.raises(Malformed):
            read_line(encode_line(3, hashed.leaf(), body, SALT)[:-1], 3)


@given(
    st.recursive(
        st.none() | st.booleans() | numbers | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_canonical_bytes_are_parsed_and_no_others(value: object) -> None:
    data = canonical(value)
    assert parse_canonical(data) == parse(data)
    for other in (data + b" ", b" " + data):
        with pytest.raises(Malformed):
            parse_canonical(other)


@pytest.mark.parametrize(
    "data",
    [b'{"b":1,"a":2}', b'{"a":1,"a":1}', b"NaN", b"1.0", b"-0", b"1e2", b'"\\u0041"', b"9007199254740993", b"[" * 70],
)
def test_json_in_another_form_is_no_canonical_json(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_canonical(data)
