"""Who did what and when, from a verified audit bundle: offline, with `protocol` alone.

A bundle that does not verify answers nothing. Times are the coordinator's own word, to the second; that entries were
not changed, dropped or put in another order since is what the sites' cosignatures vouch for.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

from coordinator.client.audit_bundle import AuditBundle, AuditReport, verify_bundle
from coordinator.client.audit_proofs import BlockProofs
from protocol.audit_event import AuditEvent, EventType
from protocol.audit_line import MAX_LINE, read_line
from protocol.canonical import parse
from protocol.errors import Malformed, Refused, VerificationFailed
from protocol.identifiers import DIGEST_PATTERN
from protocol.merkle import leaf_hash
from protocol.note import VerifierKey
from protocol.tiles import TILE_WIDTH
from protocol.timestamp import moment
from protocol.witness_policy import WitnessPolicy

COLUMNS = (
    "index", "at", "event", "actor", "subject", "labels", "numbers", "groups", "digests",
    "name", "reason", "payload", "payload_erased",
)  # fmt: skip
FORMULA = "=+-@|%＝＋－＠"  # a spreadsheet takes the full-width forms for the others
INTRODUCTIONS = (EventType.PERSON_INVITED, EventType.PERSON_REGISTERED)
"""Whose payloads tell a person's name, their subject being the pseudonym."""
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class BadQuery(Refused):
    """A filter that can match nothing because it is none."""

    code = "bad-query"


@dataclass(frozen=True)
class AuditQuery:
    """All given filters must match. `events`: any of these; `since` and `until` ("YYYY-MM-DDTHH:MM:SSZ") included.

    `study` finds the study's own events and those of its releases; `release` those of one release. `person`: a name,
    found by the pseudonyms under which the log's payloads introduce it, as who acted or whom it was about. `site`: a
    site that acted, was acted upon or is among those an event names. `digest`: a document that an event tells of.
    """

    events: frozenset[EventType] = frozenset()
    actor: str | None = None
    subject: str | None = None
    study: str | None = None
    release: str | None = None
    since: str | None = None
    until: str | None = None
    person: str | None = None
    site: str | None = None
    digest: str | None = None

    @classmethod
    def of(
        cls,
        *,
        events: Iterable[str] = (),
        actor: str | None = None,
        subject: str | None = None,
        study: str | None = None,
        release: str | None = None,
        since: str | None = None,
        until: str | None = None,
        person: str | None = None,
        site: str | None = None,
        digest: str | None = None,
    ) -> AuditQuery:
        """From what a person typed; a day stands for its first second, or as `until` its last. Raises BadQuery."""
        if digest is not None and not re.fullmatch(DIGEST_PATTERN, digest):
            raise BadQuery(f"{digest[:80]!r} is not a digest.", "Write sha256: and 64 hexadecimal digits.")
        query = cls(
            frozenset(map(_event, events)), actor, subject, study, release,
            _time(since, "00:00:00"), _time(until, "23:59:59"), person, site, digest,
        )  # fmt: skip
        if query.since and query.until and query.since > query.until:
            raise BadQuery("--since is after --until.", "Give the earlier time as --since.")
        return query

    def matches(self, event: AuditEvent, known_as: frozenset[str] = frozenset()) -> bool:
        """Whether every filter that was given lets the event through. known_as: the person's pseudonyms."""
        return (
            (not self.events or event.event in self.events)
            and self.actor in (None, event.actor)
            and self.subject in (None, event.subject)
            and (self.study is None or _of_study(event, self.study))
            and (self.release is None or event.subject == f"release:{self.release}")
            and (self.since is None or event.at >= self.since)
            and (self.until is None or event.at <= self.until)
            and (self.person is None or not known_as.isdisjoint((event.actor, event.subject)))
            and (self.site is None or _of_site(event, self.site))
            and (self.digest is None or self.digest in (event.subject, event.payload, *event.digests.values()))
        )


@dataclass(frozen=True)
class FoundEvent:
    """An event with its place in the log, and its payload where the log still holds it.

    `line`: the bundle's line as it is; `proof`: its audit path under the bundle's root, the leaf's sibling first.
    """

    index: int
    event: AuditEvent
    payload: Any
    line: Mapping[str, Any]
    proof: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, line: bytes) -> FoundEvent:
        """From a bundle's line. Raises Malformed, and VerificationFailed for a payload that was not logged."""
        document = parse(line, limit=MAX_LINE)
        if not isinstance(document, dict) or type(index := document.get("index")) is not int:
            raise Malformed("An entry is not of the bundle's form.", "Export the bundle again.")
        read_line(line, index)
        return cls(index, AuditEvent.model_validate(document["leaf"]), document.get("payload"), document)

    @property
    def erased(self) -> bool:
        """There was a payload, and it was erased."""
        return self.event.payload is not None and self.payload is None

    def document(self) -> dict[str, Any]:
        """JSON."""
        leaf = self.event.model_dump(mode="json", exclude={"version", "payload"})
        return {"index": self.index, **leaf, "payload": self.payload, "payload_erased": self.erased}


def find(
    bundle: AuditBundle | Mapping[str, bytes],
    query: AuditQuery,
    *,
    policy: WitnessPolicy | None = None,
    log: VerifierKey | None = None,
) -> tuple[AuditReport, list[FoundEvent]]:
    """The report of the bundle's verification, and what matches in the log's order.

    policy, log: pins, as for `verify_bundle`. Raises VerificationFailed for a bundle that does not verify, BadQuery for
    a person whom no payload that is left introduces.
    """
    opened = bundle if isinstance(bundle, AuditBundle) else AuditBundle.of(bundle)
    proofs = BlockProofs()
    report = verify_bundle(opened, policy=policy, log=log, entry=proofs.add)
    if not report.verified:
        raise VerificationFailed(
            f"The bundle is not a true bundle of the log, so it answers nothing: {report.problems[0]}",
            "Run `cloister audit verify` on it, export it again, and tell the sites that watch the log.",
        )
    known_as = frozenset() if query.person is None else _pseudonyms(opened.entries(), query.person)
    return report, list(_matches(opened.entries(), query, known_as, proofs))


def to_csv(found: Iterable[FoundEvent]) -> str:
    """RFC 4180, every cell quoted, none that a spreadsheet would take for a formula."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for item in found:
        writer.writerow([safe_cell(value) for value in _row(item)])
    return out.getvalue()


def safe_cell(value: object) -> str:
    """Text that a spreadsheet shows as it is: an apostrophe before what would begin a formula, no control character.

    Source: OWASP, "CSV Injection".
    """
    text = _CONTROL.sub(" ", str(value))
    return f"'{text}" if text.lstrip()[:1] in tuple(FORMULA) else text


def to_rows(found: Iterable[FoundEvent]) -> list[tuple[object, ...]]:
    """index, time, event, actor, subject and details: what is safe to show at a terminal, so no payload."""
    return [
        (item.index, item.event.at, item.event.event.value, item.event.actor, item.event.subject, _details(item.event))
        for item in found
    ]


def _pseudonyms(lines: Iterable[bytes], person: str) -> frozenset[str]:
    """Under which labels the entries' payloads introduce a person of this name."""
    introduced = (FoundEvent.of(line) for line in lines if b'"event":"person.' in line)
    found = frozenset(
        item.event.subject
        for item in introduced
        if item.event.event in INTRODUCTIONS and isinstance(item.payload, dict) and item.payload.get("name") == person
    )
    if not found:
        raise BadQuery(
            f"Nobody named {person[:64]!r} was invited, or that entry's payload was erased.",
            "Give the name as it was invited, or the pseudonym as --actor.",
        )
    return found


def _matches(
    lines: Iterable[bytes], query: AuditQuery, known_as: frozenset[str], proofs: BlockProofs
) -> Iterator[FoundEvent]:
    """What matches, each proved by the path that it has among the entries that come by."""
    numbered = enumerate(lines)
    for block in count():
        hashes: list[bytes] = []
        found: list[FoundEvent] = []
        for index, line in islice(numbered, TILE_WIDTH):
            leaf = read_line(line, index).leaf
            hashes.append(leaf_hash(leaf))
            if query.matches(AuditEvent.model_validate_json(leaf), known_as):
                found.append(FoundEvent.of(line))
        if not hashes:
            return
        for item in found:
            yield replace(item, proof=proofs.prove(block, hashes, item.index))


def _row(item: FoundEvent) -> tuple[object, ...]:
    event, payload = item.event, item.payload if isinstance(item.payload, dict) else {}
    words = [value if isinstance(value := payload.get(name), str) else "" for name in ("name", "reason")]
    whole = "" if item.payload is None else json.dumps(item.payload, sort_keys=True, ensure_ascii=False)
    groups = {name: " ".join(members) for name, members in event.groups.items()}
    return (
        item.index, event.at, event.event.value, event.actor, event.subject,
        _pairs(event.labels), _pairs(event.numbers), _pairs(groups), _pairs(event.digests),
        *words, whole, "yes" if item.erased else "no",
    )  # fmt: skip


def _details(event: AuditEvent) -> str:
    groups = {name: ",".join(members) for name, members in event.groups.items()}
    return " ".join(f"{name}={value}" for name, value in {**event.labels, **event.numbers, **groups}.items())


def _pairs(fields: Mapping[str, object]) -> str:
    return "; ".join(f"{name}={value}" for name, value in sorted(fields.items()))


def _of_study(event: AuditEvent, study: str) -> bool:
    if event.subject in (study, f"study:{study}"):
        return True
    return re.fullmatch(rf"release:{re.escape(study)}-r[0-9]+", event.subject) is not None


def _of_site(event: AuditEvent, site: str) -> bool:
    if f"site:{site}" in (event.actor, event.subject) or any(site in members for members in event.groups.values()):
        return True
    return event.labels.get("site") == site or (
        event.subject == site and event.labels.get("scope") in ("site", "deployment")
    )


def _event(name: str) -> EventType:
    try:
        return EventType(name)
    except ValueError:
        known = [event.value for event in EventType]
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
        raise BadQuery(f"There is no event {name[:60]!r}.", f"Events: {', '.join(near or known)}.") from None


def _time(text: str | None, clock: str) -> str | None:
    if text is None:
        return None
    whole = f"{text}T{clock}Z" if _DAY.fullmatch(text) else text
    try:
        moment(whole)
    except Malformed:
        raise BadQuery(f"{text[:40]!r} is not a time.", "Write YYYY-MM-DD, or YYYY-MM-DDTHH:MM:SSZ, in UTC.") from None
    return whole
