"""Canonical JSON: the published vectors, the round trip and every form that must be refused."""

from __future__ import annotations

import enum
import math
import time
from pathlib import Path

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from protocol.canonical import MAX_SAFE_INTEGER, canonical, digest, parse, sha256_hex
from protocol.errors import Malformed

VECTORS = Path(__file__).parents[2].parent / "shared/vectors/rfc8785_jcs"
needs_vectors = pytest.mark.skipif(not VECTORS.is_dir(), reason="the RFC 8785 vectors are not beside the checkout")

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
json_values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=25)


@needs_vectors
def test_published_vectors() -> None:
    names = sorted(path.name for path in (VECTORS / "input").iterdir())
    assert len(names) == 6
    for name in names:
        expected = (VECTORS / "output" / name).read_bytes()
        assert canonical(parse((VECTORS / "input" / name).read_bytes())) == expected, name
        hexadecimal = (VECTORS / "outhex" / name.replace(".json", ".txt")).read_text()
        assert bytes.fromhex(hexadecimal) == expected, name


@given(json_values)
def test_parse_undoes_canonical(value: object) -> None:
    once = canonical(value)
    again = parse(once)
    assert again == value
    assert canonical(again) == once


ASCII = st.text(st.characters(max_codepoint=127))
plain_scalars = (
    st.none() | st.booleans() | st.integers() | ASCII | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, -0.0, 1.0, 1e-4, 9.9e-5, 1e-6, 1e-7, 1e14, 1e15, 1e16, 1e21, 0.1 + 0.2, 2.0**53, 5e-324])
)  # fmt: skip
plain_values = st.recursive(plain_scalars, lambda inner: st.lists(inner) | st.dictionaries(ASCII, inner), max_leaves=25)


@given(plain_values | json_values)
def test_the_quick_way_gives_the_bytes_of_the_slow_one(value: object) -> None:
    try:
        slow = rfc8785.dumps(value)  # type: ignore[arg-type]
    except rfc8785.CanonicalizationError:
        with pytest.raises(Malformed):
            canonical(value)
    else:
        assert canonical(value) == slow


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_double_keeps_its_value(number: float) -> None:
    assert parse(canonical(number)) == number


@given(st.dictionaries(st.text(), st.integers(0, 9), min_size=2))
def test_key_order_does_not_matter(value: dict[str, int]) -> None:
    assert canonical(dict(reversed(list(value.items())))) == canonical(value)


def test_digest_is_over_the_canonical_bytes() -> None:
    assert digest({"b": 1, "a": [1.0]}) == sha256_hex(b'{"a":[1],"b":1}')
    assert sha256_hex(b"abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_string_enum_is_its_value() -> None:
    class Colour(enum.StrEnum):
        RED = "red"

    assert canonical([Colour.RED]) == b'["red"]'


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        [-math.inf],
        2**53,
        -(2**53),
        {1: "a"},
        {None: 1},
        {"a": {2.5: 1}},
        {b"a": 1},
        b"bytes",
        {1, 2},
        object(),
        "\ud800",
        {"\udfff": 1, "a": 2},
    ],
)
def test_values_without_a_canonical_form(value: object) -> None:
    with pytest.raises(Malformed) as caught:
        canonical(value)
    assert caught.value.remedy


def test_depth_is_bounded_both_ways() -> None:
    nested: object = 0
    for _ in range(64):
        nested = [nested]
    assert parse(canonical(nested)) == nested
    with pytest.raises(Malformed, match="deeper"):
        canonical([nested])
    with pytest.raises(Malformed, match="deeper"):
        parse(b"[" * 65 + b"]" * 65)
    with pytest.raises(Malformed, match="deeper"):
        parse(b'{"a":' * 100_000)
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(Malformed, match="deeper"):
        canonical(endless)


def test_brackets_inside_strings_are_not_depth() -> None:
    assert parse(canonical('[{\\"' * 200)) == '[{\\"' * 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1,]",
        b"nul",
        b'{"a":1}{"b":2}',
        b'{"a":1,"a":1}',
        b'[{"a":{"b":1,"\\u0062":2}}]',
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b"-9007199254740993",
        b"9007199254740993",
        b"1" * 5000,
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe[\x00]\x00",
        b'"\\ud800"',
        b'{"\\uDFFF":1}',
        b'"\x01"',
        b"'a'",
        b"01",
        b'"unended',
    ],
)
def test_documents_that_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        parse(data)
    assert caught.value.remedy


def test_an_integer_that_is_a_double_s_canonical_form_is_that_double() -> None:
    assert parse(b"9007199254740992") == 2.0**53
    assert isinstance(parse(b"100000000000000000000"), float)


def test_the_limit_is_inclusive() -> None:
    assert parse(b"[1]", limit=3) == [1]
    with pytest.raises(Malformed, match="limit is 2"):
        parse(b"[1]", limit=2)


def test_hostile_strings_cost_linear_time() -> None:
    started = time.perf_counter()
    with pytest.raises(Malformed):
        parse(b'\\"' * (1 << 19))
    with pytest.raises(Malformed):
        parse(b'"' + b'\\"' * ((1 << 19) - 1))
    assert time.perf_counter() - started < 5


@given(st.binary(max_size=60))
def test_arbitrary_bytes_parse_or_are_malformed(data: bytes) -> None:
    try:
        value = parse(data)
    except Malformed:
        return
    assert parse(canonical(value)) == value
