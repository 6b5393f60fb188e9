"""Retention of the log's words: what is pruned and when, what two people may erase, and that proofs still hold."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlmodel import col, select

from coordinator.audit.append import append, person_label
from coordinator.audit.sequencer import integrate_once, verify_log
from coordinator.audit.tables import LogEntry
from coordinator.audit.witnessing import accept_cosignatures, latest_note
from coordinator.client.audit_bundle import AuditReport, read_archive, verify_bundle
from coordinator.client.audit_erasures import Erasures
from coordinator.database import reading, transaction
from coordinator.errors import Conflict, NotFound
from coordinator.people.repository import PersonRepository
from coordinator.people.tables import Person
from coordinator.policy.active import active_policy, policy_in_force
from coordinator.policy.repository import PolicyRepository
from coordinator.retention.erasure import ErasureDenied, ask, confirm
from coordinator.retention.prune import Entry, choose
from coordinator.retention.purge import Run, run
from coordinator.retention.repository import RetentionRepository
from coordinator.sites import enrolment
from policies.replay import Past, replay
from protocol.audit_event import AuditEvent, EventType
from protocol.checkpoint import cosigner_key
from protocol.enrolment import witness_name
from protocol.errors import Refused
from protocol.identifiers import Role
from protocol.timestamp import timestamp
from tests.coordinator.appliances import Made, Served, TestPerson, TestSite, exported

SIX_YEARS = 2192
WORDS = "Anna Example, ward 7"


@dataclass
class Kept:
    """A log that four sites watch, with words in it, and the people who look after it."""

    made: Made
    sites: list[TestSite]

    def log(self, event: EventType, subject: str, words: str = WORDS) -> int:
        """Append an entry with words; its index."""
        with transaction(self.made.appliance.engine) as session:
            entry = append(
                session, self.made.appliance, event, actor="coordinator", subject=subject, payload={"reason": words}
            )
        self.witness()
        with reading(self.made.appliance.engine) as session:
            found = session.exec(select(LogEntry.log_index).where(LogEntry.id == entry)).one()
        assert found is not None
        return found

    def witness(self) -> None:
        appliance = self.made.appliance
        integrate_once(appliance)
        for site in self.sites[:3]:
            with transaction(appliance.engine) as session:
                key = cosigner_key(witness_name(site.name), site.witness).text
                note = latest_note(session, appliance)
                accept_cosignatures(session, appliance, key, site.cosign(note, self.made.clock()))

    def pass_days(self, days: int) -> None:
        self.made.clock.move(days=days)

    def run(self) -> Run:
        done = run(self.made.appliance, policy_in_force(self.made.appliance))
        self.witness()
        return done

    def words(self, index: int) -> bytes | None:
        with reading(self.made.appliance.engine) as session:
            return session.exec(select(LogEntry).where(LogEntry.log_index == index)).one().payload

    def person(self, name: str) -> Person:
        with reading(self.made.appliance.engine) as session:
            found = PersonRepository(session).get(name)
        assert found is not None
        return found

    def erase(self, asker: str, index: int, confirmer: str, ground: str = "unlawful-content") -> None:
        appliance = self.made.appliance
        with transaction(appliance.engine) as session:
            ask(session, appliance, self.person(asker), index, ground)  # type: ignore[arg-type]
        self.confirm(confirmer, index)

    def confirm(self, confirmer: str, index: int) -> None:
        appliance = self.made.appliance
        with transaction(appliance.engine) as session:
            _, decision = confirm(session, appliance, active_policy(session, appliance), self.person(confirmer), index)
        if not decision.allowed:
            raise ErasureDenied(decision)

    def verified(self) -> AuditReport:
        self.witness()
        report = verify_bundle(read_archive(exported(self.made)))
        assert report.problems == []
        return report

    def events(self) -> list[AuditEvent]:
        with reading(self.made.appliance.engine) as session:
            leaves = session.exec(select(LogEntry.leaf).order_by(col(LogEntry.id))).all()
        return [AuditEvent.model_validate_json(leaf) for leaf in leaves]


@pytest.fixture
def kept(made: Made, tmp_path: Path) -> Kept:
    sites = [TestSite(f"site-{number}", tmp_path) for number in range(4)]
    for site in sites:
        site.enrol_in(made.appliance)
    now = timestamp(made.appliance.clock())
    roles = {"bo": "compliance_officer", "bea": "compliance_officer", "dan": "clinical_lead", "max": "clinical_lead"}
    with transaction(made.appliance.engine) as session:
        for name, role in roles.items():
            PersonRepository(session).save(
                Person(name=name, role=role, status="active", key=None, invited_at=now, registered_at=now)
            )
    return Kept(made, sites)


def test_an_insider_cannot_prune_early_and_the_log_tells_when_words_go(kept: Kept) -> None:
    index = kept.log(EventType.STUDY_REFUSED, "gone-study")
    kept.pass_days(SIX_YEARS - 1)
    assert kept.run().pruned.erased == 0
    assert WORDS.encode() in (kept.words(index) or b"")
    kept.pass_days(1)
    done = kept.run()
    assert done.pruned.erased == 1
    assert kept.words(index) is None
    told = [event for event in kept.events() if event.event is EventType.PAYLOADS_PRUNED]
    assert [dict(event.numbers) for event in told] == [{"minimum_index": done.pruned.minimum_index, "entries": 1}]
    assert index < done.pruned.minimum_index
    assert kept.run().pruned.erased == 0
    assert len([event for event in kept.events() if event.event is EventType.PAYLOADS_PRUNED]) == 1


def test_every_proof_holds_after_a_pruning(kept: Kept) -> None:
    for number in range(5):
        kept.log(EventType.STUDY_REFUSED, f"study-{number}")
    before = kept.verified()
    kept.pass_days(SIX_YEARS)
    kept.log(EventType.STUDY_REFUSED, "new-study")
    assert kept.run().pruned.erased == 5
    after = kept.verified()
    assert (after.payloads_erased, after.erasures_untold) == (5, 0)
    assert after.payloads == before.payloads - 5 + 2  # the new study's, and the decision on this pruning
    assert verify_log(kept.made.appliance) == after.entries


def test_words_about_what_is_still_in_effect_stay_below_the_minimum(kept: Kept) -> None:
    """An active site's and an active person's; they go once those have been gone for six years."""
    appliance = kept.made.appliance
    about = {name: kept.log(EventType.STUDY_REFUSED, name) for name in ("site:site-0", "study-x")}
    about["bo"] = kept.log(EventType.PERSON_REGISTERED, person_label(appliance, "bo"))
    kept.pass_days(SIX_YEARS)
    assert kept.run().pruned.minimum_index > max(about.values())
    assert {name: kept.words(index) is None for name, index in about.items()} == {
        "site:site-0": False, "study-x": True, "bo": False,
    }  # fmt: skip
    with transaction(appliance.engine) as session:
        enrolment.revoke(session, appliance, "site-0")
    kept.pass_days(SIX_YEARS - 1)
    kept.run()
    assert kept.words(about["site:site-0"]) is not None
    kept.pass_days(1)
    kept.run()
    assert kept.words(about["site:site-0"]) is None
    assert kept.verified().erasures_untold == 0


def test_nothing_is_pruned_while_an_incident_is_open(kept: Kept) -> None:
    from coordinator.incidents.tables import IncidentRecord

    index = kept.log(EventType.STUDY_REFUSED, "study-x")
    kept.pass_days(SIX_YEARS)
    now = timestamp(kept.made.clock())
    with transaction(kept.made.appliance.engine) as session:
        session.add(
            IncidentRecord(
                id="incident-1", kind="breach", scope="federation", about="federation", state="open", aware_at=now,
                opened_by="bo", opened_at=now,
            )
        )  # fmt: skip
    assert kept.run().pruned.erased == 0
    assert kept.words(index) is not None


def test_the_words_are_gone_from_the_database_s_files(kept: Kept, request: pytest.FixtureRequest) -> None:
    """PostgreSQL's write-ahead log is left out: it is recycled by its server, and archived by its operator."""
    appliance = kept.made.appliance
    postgresql = appliance.engine.dialect.name == "postgresql"
    folder = request.getfixturevalue("postgresql_cluster") / "data" / "base" if postgresql else appliance.home

    def holding() -> list[Path]:
        if postgresql:
            with appliance.engine.connect() as connection:
                connection.exec_driver_sql("CHECKPOINT")
        return [path for path in folder.rglob("*") if path.is_file() and b"Zyxwvuts" in path.read_bytes()]

    index = kept.log(EventType.STUDY_REFUSED, "study-x", words="Zyxwvuts Qponmlk")
    assert holding()
    kept.pass_days(SIX_YEARS)
    if postgresql:
        with appliance.engine.connect() as reader:
            reader.execution_options(isolation_level="REPEATABLE READ")
            reader.exec_driver_sql("SELECT 1")
            assert not kept.run().forgotten, "somebody may still see what was there"
            assert kept.words(index) is None
    assert kept.run().forgotten
    assert kept.words(index) is None
    assert holding() == []


def test_two_people_in_two_roles_erase_what_must_not_stand_there(kept: Kept) -> None:
    index, other = kept.log(EventType.STUDY_REFUSED, "study-x"), kept.log(EventType.STUDY_REFUSED, "study-y")
    kept.erase("bo", index, "dan")
    assert (kept.words(index), kept.words(other) is None) == (None, False)
    report = kept.verified()
    assert (report.payloads_erased, report.erasures_untold) == (1, 0)
    told = [event for event in kept.events() if event.event.value.startswith("payload.")]
    assert [(event.event.value, event.numbers["entry_index"]) for event in told] == [
        ("payload.erasure-asked", index), ("payload.erased", index),
    ]  # fmt: skip
    assert "bo" not in {event.actor for event in told}
    with pytest.raises(Conflict, match="gone already"):
        kept.confirm("dan", index)


def test_a_dry_run_sees_what_retention_decided(kept: Kept) -> None:
    """An erasure that was denied, one that was carried out and a pruning are taken again on their own facts."""
    first, second = (kept.log(EventType.STUDY_REFUSED, name) for name in ("study-x", "study-y"))
    with pytest.raises(ErasureDenied):
        kept.erase("bo", first, "dan", ground="subject-request")
    kept.erase("bo", second, "dan")
    kept.pass_days(SIX_YEARS)
    kept.run()
    with reading(kept.made.appliance.engine) as session:
        rows = PolicyRepository(session).decisions(gate="retention", subject=None, before=None, limit=50)
    assert [row.outcome for row, _ in reversed(rows)] == ["deny", "allow", "allow"]
    past = [
        Past(
            row.entry, "retention", row.subject, datetime.fromisoformat(row.at), row.policy, row.outcome,
            json.loads(json.loads(payload)["facts"]),
        )
        for row, payload in rows if payload is not None
    ]  # fmt: skip
    policy = policy_in_force(kept.made.appliance)
    assert (len(past), replay(past, policy)["changed"]) == (3, 0)
    longer = replace(policy, parameters=policy.parameters.for_site({"record_min_days": 4000}))
    again = replay(past, longer)
    assert [item["becomes"] for item in again["decisions"]] == ["deny"]  # the pruning came too early for these


@pytest.mark.parametrize("confirmer", ["bo", "bea"])
def test_one_person_or_one_role_erases_nothing(kept: Kept, confirmer: str) -> None:
    index = kept.log(EventType.STUDY_REFUSED, "study-x")
    with pytest.raises(Refused, match="another person in another role"):
        kept.erase("bo", index, confirmer)
    assert kept.words(index) is not None


def test_without_a_compliance_officer_nothing_goes_at_once(kept: Kept) -> None:
    """Two people, two roles, and neither vouches for the law."""
    index = kept.log(EventType.STUDY_REFUSED, "study-x")
    with transaction(kept.made.appliance.engine) as session:
        PersonRepository(session).save(
            Person(name="adm", role="administrator", status="active", key=None, invited_at=timestamp(kept.made.clock()))
        )
    with pytest.raises(ErasureDenied, match="G05-erased"):
        kept.erase("dan", index, "adm")
    assert kept.words(index) is not None
    assert "payload.erased" not in {event.event.value for event in kept.events()}


def test_a_person_s_own_wish_waits_for_the_six_years(kept: Kept) -> None:
    index = kept.log(EventType.STUDY_REFUSED, "study-x")
    with pytest.raises(ErasureDenied, match=r"six years|2192 days"):
        kept.erase("bo", index, "dan", ground="subject-request")
    kept.pass_days(SIX_YEARS)
    kept.confirm("dan", index)
    assert kept.words(index) is None


def test_an_erasure_of_nothing(kept: Kept) -> None:
    with pytest.raises(NotFound):
        kept.erase("bo", 10_000, "dan")
    with pytest.raises(NotFound, match="Nobody asked"):
        kept.confirm("dan", kept.log(EventType.STUDY_REFUSED, "study-x"))
    with pytest.raises(Conflict, match="has no words"):
        kept.erase("bo", 0, "dan")


def test_a_coordinator_that_erases_in_silence_is_told_of(kept: Kept) -> None:
    """It takes words that incriminate it out of its database: proofs hold, and the reader learns that they are gone."""
    first = kept.log(EventType.STUDY_REFUSED, "study-x")
    kept.log(EventType.STUDY_REFUSED, "study-y")
    with transaction(kept.made.appliance.engine) as session:
        RetentionRepository(session).erase_payloads([first])
    report = kept.verified()
    assert (report.payloads_erased, report.erasures_untold) == (1, 1)
    assert "the log tells nothing" in report.text()
    assert json.loads(json.dumps(report.document()))["erasures_untold"] == 1


def test_erasures_above_the_minimum_and_beside_the_named_entry_are_untold() -> None:
    def told(minimum: int | None, single: list[int], missing: list[int]) -> int:
        found = Erasures()
        for index in missing:
            found.lacks(index)
        for event, name, value in [
            *([(EventType.PAYLOADS_PRUNED, "minimum_index", minimum)] if minimum is not None else []),
            *((EventType.PAYLOAD_ERASED, "entry_index", index) for index in single),
        ]:
            leaf = AuditEvent(
                event=event, at="2026-11-23T00:00:00Z", actor="a", subject="b", numbers={name: value}
            ).leaf()  # fmt: skip
            found.tells(event.value, leaf)
        return found.untold

    assert told(5, [], [0, 1, 4]) == 0
    assert told(5, [], [0, 1, 4, 5]) == 1
    assert told(5, [7], [3, 4, 5, 6, 7]) == 2
    assert told(None, [2], [1, 2, 3]) == 2
    assert told(None, [9], [1]) == 1


def test_the_minimum_is_the_first_entry_that_is_too_young() -> None:
    today = date(2026, 1, 1)

    def entry(index: int, age: int, subject: str, payload: bool = True) -> Entry:
        return Entry(index, "study.refused", subject, today - timedelta(days=age), payload)

    def may_go(made: date, until: date | None) -> bool:
        return (today - made).days >= 10 and until is not None and (today - until).days >= 10

    log = [entry(0, 30, "live"), entry(1, 20, "a"), entry(2, 15, "b"), entry(3, 12, "c", payload=False),
           entry(4, 9, "d"), entry(5, 11, "late"), entry(6, 1, "b")]  # fmt: skip
    chosen = choose(lambda: log, in_effect=lambda subject: subject == "live", may_go=may_go)
    assert chosen == (4, [1], 5)


@pytest.mark.processes
def test_erasures_over_the_wire_ask_who_asks(served: Served) -> None:
    bo, dan, ada = TestPerson("bo"), TestPerson("dan"), TestPerson("ada")
    for person, role in ((bo, Role.COMPLIANCE_OFFICER), (dan, Role.CLINICAL_LEAD), (ada, Role.RESEARCHER)):
        person.join(served, role)
    integrate_once(served.appliance)
    with reading(served.appliance.engine) as session:
        index = session.exec(
            select(LogEntry.log_index).where(col(LogEntry.payload).is_not(None), col(LogEntry.log_index).is_not(None))
        ).first()

    def post(person: TestPerson, path: str, body: dict[str, object] | None = None) -> httpx.Response:
        with served.client(token=person.sign_in(served)) as client:
            return client.post(f"/v1/audit/erasures{path}", json=body)

    asked: dict[str, object] = {"index": index, "ground": "unlawful-content"}
    assert post(ada, "", asked).status_code == 403
    assert post(bo, "", {**asked, "ground": "because"}).status_code == 422
    assert post(bo, "", asked).status_code == 201
    assert post(bo, "", asked).status_code == 409
    assert post(bo, f"/{index}/confirm").status_code == 403
    done = post(dan, f"/{index}/confirm")
    assert (done.status_code, done.json()["confirmed_by"]) == (200, "dan")
    assert post(dan, f"/{index}/confirm").status_code == 409
    with served.client(token=dan.sign_in(served)) as client:
        assert [row["index"] for row in client.get("/v1/audit/erasures").json()] == [index]
