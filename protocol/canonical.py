"""Canonical JSON (RFC 8785) and the digests taken over it.

Two parties that agree on a document agree on its bytes: `canonical` is the only form that is ever hashed or
signed, and `parse` accepts only JSON that has one meaning.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from types import NoneType
from typing import NoReturn, TypeAlias

import rfc8785

from protocol.errors import Malformed

JsonValue: TypeAlias = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None

MAX_DEPTH = 64
MAX_SAFE_INTEGER = 2**53 - 1

# Always matches from an opening quote on, even when the string never ends: the scan stays linear.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
# The longest integer literal: canonical JSON writes doubles of up to 21 digits without an exponent.
_MAX_INTEGER_CHARS = 22


def canonical(value: object) -> bytes:
    """The RFC 8785 bytes of a JSON value (None, bool, int, float, str, list or tuple, dict with str keys).

    Raises Malformed for NaN and infinities, integers beyond 2^53 - 1, keys that are not strings, lone
    surrogates, nesting deeper than 64 and any other type.
    """
    try:
        text = _ENCODER.encode(_plain(value, MAX_DEPTH))
        if text.isascii():  # else keys may sort in another order than by UTF-16 code units
            return text.encode("ascii")
    except _NotPlain:
        pass
    _refuse_depth(value, MAX_DEPTH)
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]  # it checks the type itself
    except UnicodeEncodeError:
        raise Malformed("A string holds a lone surrogate, which UTF-8 can't carry.", "Send valid text.") from None
    except rfc8785.CanonicalizationError as error:
        raise Malformed(
            f"The value has no canonical JSON form ({type(error).__name__}).",
            "Use finite numbers, integers within 2^53, string keys and plain JSON types.",
        ) from None


class _NotPlain(Exception):
    """A value whose RFC 8785 form the standard encoder may not give."""


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), check_circular=False)
_EXACT = frozenset({str, bool, NoneType})


def _plain(value: object, left: int) -> object:
    """A copy that the standard encoder writes as RFC 8785 asks, if its text is ASCII; _NotPlain for any other value.

    Such are strings, booleans, None, integers within 2^53, and doubles: a whole one becomes an integer, another is
    written by both as its shortest digits, without an exponent from 1e-4 up to 1e16.
    """
    kind = type(value)
    if kind in _EXACT:
        return value
    if left == 0 and kind in (dict, list, tuple):
        raise _too_deep()
    if kind is dict:
        items: dict[object, object] = value  # type: ignore[assignment]
        for key in items:
            if type(key) is not str:
                raise _NotPlain
        return {key: item if type(item) is str else _plain(item, left - 1) for key, item in items.items()}
    if kind is list or kind is tuple:
        return [item if type(item) is str else _plain(item, left - 1) for item in value]  # type: ignore[attr-defined]
    if kind is int and -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER:  # type: ignore[operator]
        return value
    if kind is float:
        number: float = value  # type: ignore[assignment]
        size = abs(number)
        if number.is_integer() and size <= MAX_SAFE_INTEGER:
            return int(number)
        if 1e-4 <= size < 1e15:
            return number
    raise _NotPlain


def digest(value: object) -> str:
    """The digest of `canonical(value)`: "sha256:" + 64 hex digits. Raises Malformed as `canonical` does."""
    return sha256_hex(canonical(value))


def sha256_hex(data: bytes) -> str:
    """The digest of the raw bytes: "sha256:" + 64 lower-case hex digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse(data: bytes, *, limit: int = 1 << 20) -> JsonValue:
    """The JSON value in UTF-8 `data` of at most `limit` bytes.

    Raises Malformed for bytes over the limit, bad UTF-8 or a byte order mark, duplicate keys, NaN and
    infinities (1e999 too), an integer that a double can't hold, lone surrogates and nesting deeper than 64.
    The white space and number forms that JSON allows are accepted: compare with `canonical` where one byte
    form is demanded.
    """
    if len(data) > limit:
        raise Malformed(f"The JSON document has {len(data)} bytes; the limit is {limit}.", "Send a smaller document.")
    _refuse_deep_text(data)
    try:
        value: JsonValue = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except UnicodeDecodeError:
        raise Malformed("The JSON document is not UTF-8.", "Encode it as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise Malformed(
            f"The document is not JSON: {error.msg} at byte {error.pos}.", "Send one valid JSON value."
        ) from None
    if b"\\u" in data:
        _refuse_surrogates(value)
    return value


def parse_canonical(data: bytes, *, limit: int = 1 << 20) -> JsonValue:
    """The value whose canonical bytes `data` is. Raises Malformed as `parse` does, and for any other byte form."""
    if len(data) <= limit and data.isascii() and b"\\" not in data and data.count(b"{") + data.count(b"[") < MAX_DEPTH:
        try:
            value: JsonValue = _PLAIN_DECODER.decode(data.decode("ascii"))
        except (_NotPlain, json.JSONDecodeError):
            pass
        else:
            if _ENCODER.encode(value).encode("utf-8") == data:  # so no name is twice there, and no white space
                return value
    value = parse(data, limit=limit)
    if canonical(value) != data:
        raise Malformed("The JSON document is not in its canonical form.", "Send its RFC 8785 bytes.")
    return value


def _plain_integer(text: str) -> int:
    if len(text) > _SURELY_SAFE_DIGITS:
        raise _NotPlain
    return int(text)


def _not_plain(_: str) -> NoReturn:
    raise _NotPlain


_SURELY_SAFE_DIGITS = 15
_PLAIN_DECODER = json.JSONDecoder(parse_int=_plain_integer, parse_float=_not_plain, parse_constant=_not_plain)


def _object(pairs: Sequence[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise Malformed("A JSON object names one key twice.", "Give each key once.")
    return result


def _integer(text: str) -> int | float:
    # Beyond 2^53 only the digits that canonical JSON writes for a double: no value changes silently.
    if len(text) <= _MAX_INTEGER_CHARS:
        number = int(text)
        if abs(number) <= MAX_SAFE_INTEGER:
            return number
        if rfc8785.dumps(float(number)) == text.encode("ascii"):
            return float(number)
    raise Malformed("A JSON integer is beyond 2^53 - 1.", "Send it as a string or a smaller number.")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Malformed("A JSON number is too large for a double.", "Send a finite number.")
    return number


def _constant(text: str) -> NoReturn:
    raise Malformed(f"JSON has no {text}.", "Send a finite number or null.")


def _refuse_deep_text(data: bytes) -> None:
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            raise _too_deep()


def _refuse_depth(value: object, left: int) -> None:
    if isinstance(value, dict | list | tuple):
        if left == 0:
            raise _too_deep()
        for item in value.values() if isinstance(value, dict) else value:
            _refuse_depth(item, left - 1)


def _too_deep() -> Malformed:
    return Malformed(f"The JSON value nests deeper than {MAX_DEPTH}.", "Send a flatter document.")


def _refuse_surrogates(value: JsonValue) -> None:
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise Malformed("A JSON string holds a lone surrogate.", "Send valid text.")
    elif isinstance(value, list):
        for item in value:
            _refuse_surrogates(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_surrogates(key)
            _refuse_surrogates(item)
