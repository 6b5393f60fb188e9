"""YAML with one meaning, and a line for everything that has none."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import Malformed
from protocol.strict_yaml import load_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("~", None),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("-5", -5),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("5.", 5.0),
        ('"7"', "7"),
        ("'true'", "true"),
        ("1.0e-4", 1e-4),
    ],
)
def test_a_plain_word_has_the_core_schemas_type(text, value):
    found = load_yaml(f"key: {text}\n".encode()).value
    assert found == {"key": value}
    assert type(found["key"]) is type(value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' stands twice"),
        ("a: &x 1\nb: 2\n", "line 1: anchors"),
        ("a: 1\nb: *x\n", "line 2: anchors"),
        ("a: !!python/object:os.system ls\n", "line 1: tags"),
        ("a: !!int 3\n", "line 1: tags"),
        ("x:\n  <<: {a: 1}\n", "line 2: merge keys"),
        ("[1, 2]: 3\n", "line 1: a key is not a plain word"),
        ("a: 1\n---\nb: 2\n", "line 3: a second document|line 2: a second document"),
        ("a: 012\n", "line 1: a number begins with 0"),
        ("a: .nan\n", "line 1: a number is not finite"),
        ("a:\n  - .inf\n", "line 2: a number is not finite"),
        ("a: 1e999\n", "line 1: a number is too large"),
        ("a: [1, 2\nb: 3\n", "line 2: this is not YAML"),
        ("a:\tb: c: d\n", "line 1: this is not YAML"),
        ("", "empty"),
        ("# nothing\n", "empty"),
    ],
)
def test_what_is_refused_is_told_with_its_line(text, match):
    with pytest.raises(Malformed, match=match) as caught:
        load_yaml(text.encode())
    assert caught.value.remedy


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"a: \0", b"\x00\x01\x02", b"a: \x07", "a: \ud83d".encode("utf-8", "surrogatepass")]
)
def test_binary_is_refused(data):
    with pytest.raises(Malformed):
        load_yaml(data)


def test_nesting_and_size_are_bounded():
    with pytest.raises(Malformed, match="nested deeper"):
        load_yaml(b"a: " + b"[" * 5000)
    with pytest.raises(Malformed, match="limit is 100"):
        load_yaml(b"a" * 101, limit=100)


def test_an_alias_bomb_is_refused_at_its_first_anchor():
    bomb = 'a: &a ["x","x"]\n' + "".join(
        f"{c}: &{c} [*{p},*{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    with pytest.raises(Malformed, match="line 1"):
        load_yaml(bomb.encode())


def test_lines_are_known_for_every_path():
    document = load_yaml(b"a: 1\nb:\n  - x\n  - c: 2\n")
    assert document.line(("b", 1, "c")) == 4
    assert document.line(("b", 1, "absent")) == 4
    assert document.line(("absent",)) == 1


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.text(st.characters(codec="ascii", exclude_categories=["Cc"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(_JSON.filter(lambda value: value is not None))
@settings(deadline=None, max_examples=60)
def test_json_means_the_same_in_it(value):
    if isinstance(value, str | int) or value is None:
        value = [value]
    assert load_yaml(json.dumps(value).encode()).value == value


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_no_bytes_raise_anything_but_malformed(data):
    with contextlib.suppress(Malformed):
        load_yaml(data)
