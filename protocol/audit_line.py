"""One line of an audit bundle's entries: {"index", "leaf", and where it was not erased "payload" with its "salt"}.

A line has one form, its canonical JSON, and a leaf one meaning, its closed schema. What the coordinator writes is a
regular language but for the order of names, so one expression reads a line, and knows its form and its schema; what
it does not know is read by the general parser, which alone refuses.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import NamedTuple

from pydantic import ValidationError

from protocol.audit_event import SALT_BYTES, AuditEvent, EventType, payload_hash
from protocol.canonical import canonical, parse, parse_canonical
from protocol.errors import Malformed, VerificationFailed
from protocol.identifiers import COLUMN_PATTERN, DIGEST_PATTERN, LABEL_PATTERN, TIME_PATTERN

MAX_LINE = 4 << 20
POLICY_FIELD = "witness_policy"

_AGAIN = "Export the bundle again."
_EVENTS = {event.value.encode(): event.value for event in EventType}


class AuditLine(NamedTuple):
    """A line that holds: the leaf's bytes, the event's type, the witness policy it tells ("" if none), its payload."""

    leaf: bytes
    event: str
    policy: str
    payload: bytes | None


def encode_line(index: int, leaf: bytes, payload: bytes | None = None, salt: bytes | None = None) -> bytes:
    """The line, with its newline, of canonical leaf and payload bytes."""
    if payload is None or salt is None:
        return b'{"index":%d,"leaf":%b}\n' % (index, leaf)
    return b'{"index":%d,"leaf":%b,"payload":%b,"salt":"%b"}\n' % (index, leaf, payload, base64.b64encode(salt))


def read_line(line: bytes, index: int) -> AuditLine:
    """The line (without its newline) of the entry `index`, form, schema and payload checked.

    Raises Malformed, and VerificationFailed for a payload that is not the one in the leaf.
    """
    return _quick(line, index) or _slow(line, index)


def _quick(line: bytes, index: int) -> AuditLine | None:
    """What `_slow` gives, in a fraction of its time; None where that is not plain."""
    match = _LINE.match(line)
    if match is None:
        return None
    number, leaf, digests, event, groups, labels, numbers, hashed, end = match.groups()
    known = _EVENTS.get(event)
    if known is None or int(number) != index or len(line) > MAX_LINE:
        return None
    if not (_in_order(digests) and _in_order(groups) and _in_order(labels) and _in_order(numbers)):
        return None
    if b"." in numbers and not _shortest(numbers):
        return None
    if end == b"}":
        payload = None
        if match.end() != len(line):
            return None
    else:
        payload, salt = line[match.end() : -_SALT_END], _SALT.fullmatch(line[-_SALT_END:])
        if hashed is None or salt is None:
            return None
        if _WORDS.fullmatch(payload) is None or not _in_order(payload):
            parse_canonical(payload, limit=MAX_LINE)
        if hashlib.sha256(binascii.a2b_base64(salt[1]) + payload).hexdigest().encode() != hashed:
            raise _other_payload()
    return AuditLine(leaf, known, _told_policy(digests) if _POLICY_NAME in digests else "", payload)


def _slow(line: bytes, index: int) -> AuditLine:
    document = parse(line, limit=MAX_LINE)
    if not isinstance(document, dict) or canonical(document) != line:
        raise Malformed("the line is not a canonical JSON object.", _AGAIN)
    if document.keys() - {"index", "leaf", "payload", "salt"} or document.get("index") != index:
        raise Malformed("the line has other fields, or another index.", _AGAIN)
    try:
        event = AuditEvent.model_validate(document.get("leaf"))
    except ValidationError:
        raise Malformed("the leaf is not an audit event.", _AGAIN) from None
    leaf = event.leaf()
    if leaf != canonical(document["leaf"]):
        raise Malformed("the leaf is not in its one form.", _AGAIN)
    salt = document.get("salt")
    if ("payload" in document) != isinstance(salt, str):
        raise Malformed("a payload stands without its salt.", _AGAIN)
    payload = None
    if isinstance(salt, str):  # else the event had none, or it was erased, as the law may ask; the leaf's hash stays
        payload = canonical(document["payload"])
        _require_payload(payload, salt.encode("utf-8"), event.payload)
    return AuditLine(leaf, event.event.value, event.digests.get(POLICY_FIELD, ""), payload)


def _require_payload(payload: bytes, salt: bytes, hashed: str | None) -> None:
    try:
        raw = base64.b64decode(salt, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != SALT_BYTES or base64.b64encode(raw) != salt or payload_hash(raw, payload) != hashed:
        raise _other_payload()


def _other_payload() -> VerificationFailed:
    return VerificationFailed("the payload is not the one that was logged.", "Find out who changed it.")


def _in_order(members: bytes) -> bool:
    """Whether the names of an object's members are sorted, each there once."""
    if members.count(b'":') < 2:
        return True
    before = b""
    for name in _NAMES.findall(members):
        if name <= before:
            return False
        before = name
    return True


def _shortest(members: bytes) -> bool:
    """Whether each number with a fraction is written as Python writes it, which without an exponent is canonical."""
    for number in _FRACTIONS.findall(members):  # noqa: SIM110 - a generator would cost as much again
        if repr(float(number)).encode() != number:
            return False
    return True


def _told_policy(digests: bytes) -> str:
    match = _POLICY.search(digests)
    return match[1].decode("ascii") if match else ""


def _bare(pattern: str) -> str:
    return pattern.removeprefix("^").removesuffix("$")


def _members(value: str) -> str:
    member = f'"{_bare(COLUMN_PATTERN)}":{value}'
    return rf"\{{((?:{member}(?:,{member})*+)?+)\}}"


def _line_pattern() -> re.Pattern[bytes]:
    label, digest = f'"{_bare(LABEL_PATTERN)}"', f'"{_bare(DIGEST_PATTERN)}"'
    names = rf"\[(?:{label}(?:,{label})*+)?+\]"
    number = r"(?:-?(?:0|[1-9][0-9]{0,14})\.[0-9]{0,16}[1-9]|0|-?[1-9][0-9]{0,14})"
    leaf = "".join(
        (
            rf'\{{"actor":{label},"at":"{_bare(TIME_PATTERN)}","digests":{_members(digest)}',
            rf',"event":"([a-z-]+\.[a-z-]+)","groups":{_members(names)}',
            rf',"labels":{_members(label)},"numbers":{_members(number)}',
            rf',"payload":(?:null|"sha256:([0-9a-f]{{64}})"),"subject":{label},"version":1\}}',
        )
    )
    return re.compile(rf'\{{"index":(0|[1-9][0-9]{{0,17}}),"leaf":({leaf})(\}}|,"payload":)'.encode("ascii"))


_LINE = _line_pattern()
_SALT = re.compile(rb',"salt":"([A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=)"\}')
_SALT_END = 55  # bytes that it matches
_NAMES = re.compile(rb'"([A-Za-z0-9_]+)":')
# A payload of words: names and printable ASCII without an escape, whose canonical form is itself if names are in order.
_WORDS = re.compile(rb'\{(?:"[a-z_]+":"[ !#-\[\]-~]*"(?:,"[a-z_]+":"[ !#-\[\]-~]*")*+)?+\}')
_FRACTIONS = re.compile(rb"-?[0-9]+\.[0-9]+")
_POLICY_NAME = f'"{POLICY_FIELD}":'.encode()
_POLICY = re.compile(rb'"%b":"(%b)"' % (POLICY_FIELD.encode(), _bare(DIGEST_PATTERN).encode()))
