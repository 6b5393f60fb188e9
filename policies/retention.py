"""What the retention gate is asked of each holding, at the coordinator and at each site, and what its two answers come
to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any

from policies.findings import Decision, Kind


class RecordClass(StrEnum):
    """What kind of record a holding is, as the policy packs name it."""

    UPDATE = "update"
    CHECKPOINT = "checkpoint"
    MODEL = "model"
    DOSSIER = "technical-documentation"
    POLICY = "policy-record"
    AUDIT = "audit-entry"
    UNLAWFUL = "unlawful-content"
    SERVING_LOG = "serving-log"
    SCRATCH = "scratch"
    MEMBERSHIP = "membership"


class Standing(StrEnum):
    """kept: it may not go. free: it may go, and nobody says that it must. due: it must go, and may. stuck: it must go,
    and may not, so that a person has to look."""

    KEPT = "kept"
    FREE = "free"
    DUE = "due"
    STUCK = "stuck"


@dataclass(frozen=True)
class Holding:
    """Something that is held. about: a study, a release or a record's digest. until: the last day that
    the study set for it. ended: its end has come, by that day or because what it was for is over. in_effect_until: None
    while it is in effect. held: an open incident asks that it stays. running: a study that still needs it."""

    record_class: RecordClass
    about: str
    items: int
    size: int
    made: date
    in_effect_until: date | None = None
    until: date | None = None
    ended: bool = False
    held: bool = False
    us_law: bool = True
    running: bool = False


def facts_of(
    holding: Holding, *, on: date, purge: bool, asked_by: Sequence[dict[str, str]] = ()
) -> dict[str, dict[str, Any]]:
    """The facts of the retention gate, were the holding kept (purge False) or purged (True) on this day."""
    effect = holding.in_effect_until
    return {
        "record": {
            "class": holding.record_class.value,
            "age_days": max((on - holding.made).days, 0),
            "out_of_effect_days": 0 if effect is None else max((on - effect).days, 0),
            "purge_asked": purge,
            "past_end_date": holding.ended,
            "held": holding.held,
            "us_law": holding.us_law,
            "asked_by": list(asked_by),
        }
    }


def standing_of(kept: Decision, purged: Decision) -> Standing:
    """From the gate's answers to keeping and to purging. Only a rule that was broken says that a thing must go: a fact
    that is missing or an error never does."""
    must = any(finding.effect == "deny" and finding.kind is Kind.VIOLATED for finding in kept.findings)
    if purged.allowed:
        return Standing.DUE if must else Standing.FREE
    return Standing.STUCK if must else Standing.KEPT


def day(text: str | None) -> date | None:
    """The day that a study's governance or a time names; None where it names none."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).date()
    except ValueError:
        return None
