"""A study that can't go on and need not fail: it waits, on record, and is charged nothing meanwhile.

Too few sites are connected, papers have lapsed, the round gate is shut or an incident is open. The driver looks again
now and then and goes on by itself; after the declared patience (`patience` in coordinator.toml) the study fails. An
incident has no such end: people close it, or stop the study.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlmodel import Session, select

from coordinator.rounds.states import FailureCode
from coordinator.rounds.tables import StudyWait
from policies.decided import Decided
from policies.findings import reasons
from protocol.errors import CloisterError
from protocol.timestamp import moment, timestamp


class WaitReason(StrEnum):
    """Why a study waits."""

    SITES_ABSENT = "sites-absent"
    PAPERS_LAPSED = "papers-lapsed"
    GATE_SHUT = "round-gate-shut"
    INCIDENT = "incident-open"


class StudyWaits(CloisterError):
    """The study can't go on now. sites: whom it waits for. code_after: what it fails with once patience ends, None for
    never. denied: the decision that shut the round's gate. excluded: codes of the sites that are left out."""

    code = "study-waits"

    def __init__(
        self,
        reason: WaitReason,
        detail: str,
        remedy: str,
        *,
        sites: tuple[str, ...] = (),
        code_after: FailureCode | None = None,
        excluded: Mapping[str, str] | None = None,
        denied: Decided | None = None,
    ) -> None:
        super().__init__(detail, remedy)
        self.reason, self.sites, self.code_after = reason, sites, code_after
        self.excluded, self.denied = dict(excluded or {}), denied


def absent(sites: tuple[str, ...], detail: str, left_out: Mapping[str, Decided]) -> StudyWaits:
    """Too few sites are connected."""
    also = f"; left out by policy: {_ruled(left_out)}" if left_out else ""
    return StudyWaits(
        WaitReason.SITES_ABSENT,
        f"{detail}{also}",
        f"Start `cloister-site agent` at {', '.join(sites)}, or look there why it does not connect.",
        sites=sites,
        code_after=FailureCode.TOO_FEW_SITES,
    )


def lapsed(left_out: Mapping[str, Decided], detail: str, code: str) -> StudyWaits:
    """The papers of so many sites have lapsed that too few are left. code: of each such site, in records."""
    remedies = [f"{site}: {reasons(decided.decision)[0].remedy}" for site, decided in left_out.items()]
    return StudyWaits(
        WaitReason.PAPERS_LAPSED,
        f"{detail}; left out by policy: {_ruled(left_out)}",
        " ".join(remedies),
        sites=tuple(left_out),
        code_after=FailureCode.POLICY_DENIED,
        excluded=dict.fromkeys(left_out, code),
    )


def gate_shut(decided: Decided) -> StudyWaits:
    """The round's own gate is shut: for the study's papers, or for the log that nobody cosigns."""
    first = reasons(decided.decision)[0]
    return StudyWaits(
        WaitReason.GATE_SHUT,
        f"{first.rule} ({first.citation}): {first.message}",
        first.remedy,
        code_after=FailureCode.POLICY_DENIED,
        denied=decided,
    )


def frozen(detail: str) -> StudyWaits:
    """An incident is open."""
    return StudyWaits(WaitReason.INCIDENT, detail, "See `cloister incident list`; two people close it.")


def begin(session: Session, study: str, wait: StudyWaits, now: datetime) -> bool:
    """Record that the study waits; whether that is new: another reason, or other sites. The patience runs from the
    first reason on."""
    row = session.get(StudyWait, study)
    sites = json.dumps(wait.sites)
    new = row is None or (row.reason, row.sites) != (wait.reason.value, sites)
    since = timestamp(now) if row is None or row.reason == WaitReason.INCIDENT else row.since
    row = row or StudyWait(study=study, reason="", sites="[]", detail="", remedy="", since=since)
    row.reason, row.sites, row.since = wait.reason.value, sites, since
    row.detail, row.remedy = wait.message, wait.remedy
    session.add(row)
    session.flush()
    return new


def end(session: Session, study: str) -> str | None:
    """Record that it waits no more; the reason that it did for, None where it did not."""
    row = session.get(StudyWait, study)
    if row is None:
        return None
    session.delete(row)
    session.flush()
    return row.reason


def overdue(session: Session, study: str, patience: float, now: datetime) -> bool:
    """Whether the study has waited for longer than `patience` seconds."""
    row = session.get(StudyWait, study)
    return row is not None and now >= moment(row.since) + timedelta(seconds=patience)


def waiting(session: Session) -> frozenset[str]:
    """The studies that wait."""
    return frozenset(session.exec(select(StudyWait.study)))


def shown(session: Session, study: str, patience: float) -> dict[str, Any] | None:
    """What people are told: why, what to do, since when, and until when at most."""
    row = session.get(StudyWait, study)
    if row is None:
        return None
    ends = row.reason != WaitReason.INCIDENT
    return {
        "reason": row.reason,
        "detail": row.detail,
        "remedy": row.remedy,
        "sites": json.loads(row.sites),
        "since": row.since,
        "until": timestamp(moment(row.since) + timedelta(seconds=patience)) if ends else None,
    }


def _ruled(left_out: Mapping[str, Decided]) -> str:
    return ", ".join(f"{site} ({reasons(decided.decision)[0].rule})" for site, decided in left_out.items())
