"""The coordinator's round gate for each site: a site whose papers lapse during a study is left out of the next attempt,
with the reason in the log, and is back once they are in order; the agreed minimum decides."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from coordinator.database import reading, transaction
from coordinator.evidence.record import revoke
from coordinator.people.tables import Person
from coordinator.rounds.site_gates import SiteGates
from coordinator.rounds.waiting import shown
from coordinator.sites.repository import SiteRepository
from coordinator.sites.statements import renew_statement
from coordinator.studies.states import StudyState
from policies.packs import builtin_policy
from policies.replay import coordinators_part, sites_part
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.evidence import EvidenceRecord
from site_agent.database import transaction as at_site
from site_agent.evidence.record import import_records
from site_agent.evidence.record import revoke as revoke_here
from site_agent.evidence.repository import SiteEvidenceRepository
from tests.papers import SITE_KINDS, site_record, statement_of
from tests.simulator import invariants
from tests.simulator.federation import Federation

Begin = Callable[..., str]
_DOCUMENTS = itertools.count()
OFFICER = Person(name="bo", role="compliance_officer", status="active", invited_at="2026-01-01T00:00:00Z")


def state(federation: Federation, name: str, *, records: list[EvidenceRecord] | None = None, **changes: Any) -> None:
    """The site makes a new statement and the coordinator takes it."""
    federation.clock.seconds += 2
    key = federation.sites[name].keys.identity
    ca = federation.appliance.keys.authority.fingerprint
    data = statement_of(name, key, ca, now=federation.clock.now(), records=records, **changes)
    with transaction(federation.appliance.engine) as session:
        site = SiteRepository(session).get(name)
        assert site is not None
        renew_statement(session, federation.appliance, site, data)


def at(federation: Federation, group: str, action: Callable[[], object]) -> None:
    """Once that attempt's answers are in."""

    def once() -> None:
        if federation.exchange.requests[-1][1] == group:
            federation.exchange.after_request = lambda: None
            action()

    federation.exchange.after_request = once


def renewed(federation: Federation, name: str, kind: str, **changes: Any) -> EvidenceRecord:
    """A document that nobody has seen yet: what was revoked once does not count again."""
    file = sha256_hex(str(next(_DOCUMENTS)).encode())
    return site_record(name, kind, today=federation.clock.now().date(), **{"file": file, **changes})


def without(federation: Federation, name: str, *kinds: str) -> list[EvidenceRecord]:
    return [renewed(federation, name, kind) for kind in SITE_KINDS if kind not in kinds]


@pytest.fixture(autouse=True)
def papers_in_order(federation: Federation) -> None:
    for name, site in federation.sites.items():
        state(federation, name, records=without(federation, name))
        with at_site(site.store._engine) as session:
            import_records(session, name, without(federation, name), now=federation.clock.now())


def decisions(federation: Federation, study: str) -> list[tuple[str, str, str | None]]:
    told = [e for e in federation.events(study) if e.event == "policy.decided" and "site" in e.labels]
    return [(event.labels["site"], event.labels["outcome"], event.labels.get("rule")) for event in told]


def test_a_site_whose_papers_lapse_is_left_out_and_the_log_says_why(federation: Federation, begin: Begin) -> None:
    study = begin()
    at(federation, "train-1-1", lambda: state(federation, "cologne", records=without(federation, "cologne", "dpa")))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    first, *others = federation.records(study)
    assert "cologne" in first["contributed"]
    for record in others:
        assert record["invited"] == ["aachen", "berlin", "dresden"]
        assert record["excluded"] == {"cologne": "gate-shut"}
    assert decisions(federation, study) == [("cologne", "deny", "G16-agreement")]
    assert federation.charged(study, "cologne")[False] == 1, "its patients pay for no round that it is not in"


@pytest.mark.parametrize(
    ("changes", "lost", "rule"),
    [
        ({"disk_encryption": False}, (), "G07"),
        ({"pseudonymised": False}, (), "G07"),
        ({}, ("dpa",), "G16-agreement"),
        ({"jurisdiction": "US", "hipaa_role": "covered-entity"}, ("baa",), "H02"),
        ({"jurisdiction": "US"}, ("risk_analysis",), "H16"),
        ({"jurisdiction": "US", "idle_logoff": False}, (), "H25"),
    ],
)
def test_each_rule_keeps_a_site_out(
    federation: Federation, begin: Begin, changes: dict[str, Any], lost: tuple[str, ...], rule: str
) -> None:
    gates = gates_of(federation, begin())
    with reading(federation.appliance.engine) as session:
        assert all(decided.decision.allowed for decided in gates.decide(session, federation.sites).values())
    state(federation, "cologne", records=without(federation, "cologne", *lost), **changes)
    with reading(federation.appliance.engine) as session:
        told = gates.decide(session, federation.sites)
    assert [site for site, decided in told.items() if not decided.decision.allowed] == ["cologne"]
    assert rule in {finding.rule for finding in told["cologne"].decision.findings}


def test_it_is_back_once_its_papers_are(federation: Federation, begin: Begin) -> None:
    study = begin()

    def lose_then_mend() -> None:
        state(federation, "cologne", disk_encryption=False, records=without(federation, "cologne"))
        at(federation, "train-2-1", lambda: state(federation, "cologne", records=without(federation, "cologne")))

    at(federation, "train-1-1", lose_then_mend)
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invited = ["cologne" in record["invited"] for record in federation.records(study)]
    assert invited[:3] == [True, False, True]
    assert decisions(federation, study) == [("cologne", "deny", "G07"), ("cologne", "allow", None)]


def test_what_an_officer_revokes_counts_in_the_next_attempt(federation: Federation, begin: Begin) -> None:
    study = begin()
    dpa = renewed(federation, "cologne", "dpa")
    records = [*without(federation, "cologne", "dpa"), dpa]
    state(federation, "cologne", records=records)

    def revoked() -> None:
        with transaction(federation.appliance.engine) as session:
            revoke(session, federation.appliance, OFFICER, dpa.digest)

    at(federation, "train-1-1", revoked)
    assert federation.driver(study).run() is StudyState.CANDIDATE
    assert [record["excluded"] for record in federation.records(study)][1] == {"cologne": "gate-shut"}
    # The site can't bring back what was revoked; its next agreement counts.
    state(federation, "cologne", records=records)
    with reading(federation.appliance.engine) as session:
        gates = gates_of(federation, study)
        assert not gates.decide(session, ["cologne"])["cologne"].decision.allowed
    state(federation, "cologne", records=[*records, renewed(federation, "cologne", "dpa")])
    with reading(federation.appliance.engine) as session:
        assert gates.decide(session, ["cologne"])["cologne"].decision.allowed


@pytest.mark.parametrize("renewed_in_time", [True, False])
def test_below_the_agreed_minimum_the_study_waits_and_names_the_sites(
    federation: Federation, begin: Begin, renewed_in_time: bool
) -> None:
    study = begin()

    def two_lapse() -> None:
        for name in ("berlin", "cologne"):
            state(federation, name, records=without(federation, name, "dpa"))

    at(federation, "train-1-1", two_lapse)
    for _ in range(2):  # and looking again changes nothing, and tells the log nothing new
        assert federation.driver(study).run() is StudyState.RUNNING
    assert len(federation.attempts(study)) == 1, "nobody is charged while it waits"
    assert [event.event for event in federation.events(study)].count(EventType.STUDY_WAITING) == 1
    with reading(federation.appliance.engine) as session:
        told = shown(session, study, federation.appliance.settings.patience)
    assert told is not None
    assert (told["reason"], told["sites"]) == ("papers-lapsed", ["berlin", "cologne"])
    assert "berlin: " in told["remedy"]
    if renewed_in_time:
        state(federation, "berlin", records=without(federation, "berlin"))
        assert federation.driver(study).run() is StudyState.CANDIDATE
        invariants.check(federation, study)
        resumed = next(event for event in federation.events(study) if event.event is EventType.STUDY_RESUMED)
        assert resumed.labels == {"reason": "papers-lapsed"}
        assert [record["invited"] for record in federation.records(study)][1] == ["aachen", "berlin", "dresden"]
        return
    federation.clock.seconds += federation.appliance.settings.patience
    assert federation.driver(study).run() is StudyState.FAILED
    row = federation.row(study)
    assert row.reason == "policy-denied"
    assert "berlin (G16-agreement), cologne (G16-agreement)" in (row.detail or "")
    assert len(federation.records(study)) == 1
    stopped = next(event for event in federation.events(study) if event.event == "study.stopped")
    assert stopped.groups["excluded"] == ("berlin:gate-shut", "cologne:gate-shut")
    assert {site for site, *_ in decisions(federation, study)} == {"berlin", "cologne"}


def test_a_coordinator_that_keeps_a_lapsed_site_gets_nothing_of_it(federation: Federation, begin: Begin) -> None:
    """A malicious coordinator skips its own gate: the hospital's own shuts, before any charge."""
    study = begin()
    cologne = federation.sites["cologne"]

    def lapse_at_the_site_alone() -> None:
        with at_site(cologne.store._engine) as session:
            for row in SiteEvidenceRepository(session).all():
                if row.kind == "dpa" and row.revoked_at is None:
                    revoke_here(session, row.digest, now=federation.clock.now())

    at(federation, "train-1-1", lapse_at_the_site_alone)
    federation.driver(study).run()
    assert federation.charged(study, "cologne")[False] == 1
    tried = [recorded.attempt for recorded in federation.attempts(study) if recorded.attempt.round == 2]
    assert "cologne" in tried[0].cohort
    assert "cologne" in tried[0].excluded


def gates_of(federation: Federation, study: str) -> SiteGates:
    plan = federation.plan(study)
    return SiteGates(federation.appliance, study, plan, federation.row(study).plan_digest or "")


def test_no_rule_about_a_site_is_judged_by_nobody() -> None:
    policy = builtin_policy()

    def at_round(packs: Any) -> set[str]:
        return {rule.text.id for pack in packs for rule in pack.rules if "round" in rule.text.gates}

    per_site = at_round(map(sites_part, policy.packs))
    assert {"G07", "G16", "G16-agreement", "H02", "H16", "H25", "N07"} <= per_site
    assert not per_site & at_round(map(coordinators_part, policy.packs)), "a rule is judged once"


def test_an_agreement_that_expires_shuts_the_gate_by_itself(federation: Federation, begin: Begin) -> None:
    study, today = begin(), federation.clock.now().date()
    last_day = [*without(federation, "cologne", "dpa"), renewed(federation, "cologne", "dpa", expires=today)]
    state(federation, "cologne", records=last_day)
    gates = gates_of(federation, study)
    with reading(federation.appliance.engine) as session:
        assert gates.decide(session, ["cologne"])["cologne"].decision.allowed
        federation.clock.seconds += timedelta(days=1).total_seconds()
        assert not gates.decide(session, ["cologne"])["cologne"].decision.allowed
        federation.clock.seconds += timedelta(days=366).total_seconds()
        shut = gates.decide(session, ["aachen"])["aachen"].decision
    assert "G07" in {finding.rule for finding in shut.findings}, "an attestation counts for a year"
