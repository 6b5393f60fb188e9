"""Minimum-index pruning of the log's payloads: the words of old entries go, their leaves stay for ever.

Below the minimum index every payload that has been out of effect for as long as the law asks is gone, with its salt;
the log itself tells the index, so that whoever reads an export knows which words may be missing and which may not.
Every proof still holds: the tree is made of leaves, and a leaf holds the payload's salted hash alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import LOCAL_ADMINISTRATOR, append, person_label, site_label
from coordinator.audit.repository import LogRepository
from coordinator.incidents.repository import IncidentRepository
from coordinator.people.repository import PersonRepository
from coordinator.policy.decisions import index as note
from coordinator.releases.repository import ReleaseRepository
from coordinator.retention.gate import decide
from coordinator.retention.inventory import us_law
from coordinator.retention.repository import RetentionRepository
from coordinator.retention.tables import PayloadPruning
from coordinator.sites.repository import SiteRepository
from coordinator.studies.repository import StudyRepository, plan_of
from coordinator.studies.states import ENDED, StudyState
from policies.decided import Decided
from policies.packs import Policy
from policies.retention import Holding, RecordClass, day
from protocol.audit_event import EventType
from protocol.canonical import digest
from protocol.timestamp import moment, timestamp

MOMENTARY = frozenset(
    {
        EventType.PERSON_SIGNED_IN,
        EventType.SITE_CERTIFICATE_RENEWED,
        EventType.AUDIT_EXPORTED,
        EventType.ROUND_ATTEMPTED,
    }
)
"""Entries that were never in effect for longer than they took."""


@dataclass(frozen=True)
class Pruned:
    """minimum_index: below it a payload may be missing. erased: how many go, or went, now. kept: payloads that stay."""

    minimum_index: int
    erased: int
    kept: int


@dataclass(frozen=True)
class Entry:
    """What pruning reads of a leaf."""

    index: int
    event: str
    subject: str
    made: date
    payload: bool


def choose(
    entries: Callable[[], Iterable[Entry]],
    *,
    in_effect: Callable[[str], bool],
    may_go: Callable[[date, date | None], bool],
) -> tuple[int, list[int], int]:
    """Pure: (minimum index, the payloads that go, how many stay). entries: in the log's order, gone through twice.

    in_effect: whether a subject still is; one that is not was last in effect when its last entry was made. may_go:
    whether a payload of an entry made then, in effect until then, may be erased. The minimum is the first entry that is
    too young whatever it is about; of those below it the ones still in effect stay.
    """
    last = {entry.subject: entry.made for entry in entries()}
    minimum, young, going, staying = 0, False, list[int](), 0
    for entry in entries():
        young = young or not may_go(entry.made, entry.made)
        if not young:
            minimum = entry.index + 1
        if not entry.payload:
            continue
        until = entry.made if entry.event in MOMENTARY else None if in_effect(entry.subject) else last[entry.subject]
        if not young and may_go(entry.made, until):
            going.append(entry.index)
        else:
            staying += 1
    return minimum, going, staying


def forecast(session: Session, appliance: Appliance, policy: Policy) -> tuple[Pruned, list[int], Decided | None]:
    """What a pruning would do now, the indices of the payloads that would go, and the decision on the youngest of
    them, None where none goes."""
    published = LogRepository(session, appliance.settings.origin).head().size
    retention = RetentionRepository(session)
    live, american = _live(session, appliance), us_law(session)
    live |= {_entry(0, leaf, False).subject for leaf in retention.unpublished(published)}  # told of just now
    held = bool(IncidentRepository(session).open())  # what is open may be about anything in the log
    answers: dict[tuple[date, date | None], Decided] = {}

    def may_go(made: date, until: date | None) -> bool:
        if (made, until) not in answers:
            holding = Holding(RecordClass.AUDIT, "log", 1, 0, made, in_effect_until=until, held=held, us_law=american)
            answers[made, until] = decide(appliance, policy, holding, purge=True)
        return answers[made, until].decision.allowed

    def entries() -> Iterator[Entry]:
        return (_entry(index, leaf, payload) for index, leaf, payload in retention.published(published))

    minimum, going, staying = choose(entries, in_effect=lambda subject: subject in live, may_go=may_go)
    let_go = [(until, made) for (made, until), one in answers.items() if one.decision.allowed and until is not None]
    youngest = None if not going else answers[max(let_go)[1], max(let_go)[0]]
    return Pruned(max(minimum, retention.minimum_index()), len(going), staying), going, youngest


def prune(session: Session, appliance: Appliance, policy: Policy) -> Pruned:
    """Erase what may go, and log it. Nothing is logged where nothing goes."""
    told, going, decided = forecast(session, appliance, policy)
    if not going or decided is None:
        return told
    retention = RetentionRepository(session)
    retention.erase_payloads(going)
    retention.add_pruning(
        PayloadPruning(
            minimum_index=told.minimum_index, erased=told.erased, pruned_at=timestamp(appliance.clock())
        )
    )  # fmt: skip
    entry = append(
        session,
        appliance,
        EventType.PAYLOADS_PRUNED,
        actor=LOCAL_ADMINISTRATOR,
        subject=appliance.settings.name,
        digests={"packs": digest({pack.id: pack.digest for pack in policy.packs}), **decided.digests},
        numbers={"minimum_index": told.minimum_index, "entries": told.erased},
        payload=decided.payload(),
    )
    note(session, decided, entry=entry, subject=appliance.settings.name)
    return told


def effect_of(session: Session, appliance: Appliance, leaf: bytes) -> tuple[date, date | None]:
    """(when an entry was made, until when it was in effect; None where it still is)"""
    published = LogRepository(session, appliance.settings.origin).head().size
    wanted = _entry(0, leaf, True)
    if wanted.event in MOMENTARY:
        return wanted.made, wanted.made
    if wanted.subject in _live(session, appliance):
        return wanted.made, None
    last = wanted.made
    for index, other, payload in RetentionRepository(session).published(published):
        entry = _entry(index, other, payload)
        if entry.subject == wanted.subject:
            last = max(last, entry.made)
    return wanted.made, last


def _entry(index: int, leaf: bytes, payload: bool) -> Entry:
    event = json.loads(leaf)
    return Entry(index, event["event"], event["subject"], moment(event["at"]).date(), payload)


def _live(session: Session, appliance: Appliance) -> frozenset[str]:
    """The subjects of entries that are still in effect: active people and sites, studies that run or whose model may
    still be kept, and their releases; evidence that counts follows its study, release or site."""
    today = appliance.clock().date()
    live: set[str] = {
        person_label(appliance, row.name) for row in PersonRepository(session).all() if row.status != "disabled"
    }
    for site in SiteRepository(session).all():
        if site.status != "revoked":
            live |= {site_label(site.name), site.name}
    releases = ReleaseRepository(session)
    for row in StudyRepository(session).all():
        until = None if row.plan is None else day(plan_of(row).spec.governance.model_until)
        if StudyState(row.state) in ENDED and (row.plan is None or (until is not None and today > until)):
            continue
        live.add(row.id)
        for release in releases.of_study(row.id):
            live |= {f"release:{release.id}", release.subject_digest}
    return frozenset(live)
