"""The policy in force: the package's set at first, changed by two people in two roles; and what insiders, a changed
database and a changed document come to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlmodel import select
from typer.testing import CliRunner

from coordinator.audit.append import COORDINATOR
from coordinator.audit.tables import LogEntry
from coordinator.client.account import register, sign_in
from coordinator.client.cli import app
from coordinator.database import reading, transaction
from coordinator.errors import Conflict
from coordinator.people import accounts
from coordinator.people.tables import Person
from coordinator.policy.active import active_policy, active_set, policy_in_force
from coordinator.policy.change import decide, propose
from coordinator.policy.decisions import record
from coordinator.policy.repository import PolicyRepository
from coordinator.policy.states import Proposal, SetState, Vote, outcome
from coordinator.policy.tables import PolicyDocument, PolicySetRow, PolicyVoteRow
from policies.cases import load_cases
from policies.decided import decide as decide_at
from policies.documents import BadPolicyDocument
from policies.packs import builtin_packs
from protocol.activated_policy import bundle, read_bundle
from protocol.audit_event import AuditEvent, EventType
from protocol.canonical import canonical, parse, sha256_hex
from protocol.envelope import seal
from protocol.errors import BadSignature, CloisterError, Refused, VerificationFailed
from protocol.identifiers import Role
from protocol.policy_set import POLICY_SET_TYPE, POLICY_VOTE_TYPE, PolicySet, PolicyVote
from protocol.signing import SigningKey
from protocol.timestamp import timestamp
from tests.coordinator.appliances import Made, Served

REASON = "stricter than the package"
STRICTER = yaml.safe_dump({"values": {"epsilon_ceiling": 2.0}}).encode()
PEOPLE = {
    "ada": Role.ADMINISTRATOR,
    "carl": Role.COMPLIANCE_OFFICER,
    "cora": Role.COMPLIANCE_OFFICER,
    "lena": Role.CLINICAL_LEAD,
    "rosa": Role.RESEARCHER,
}


@dataclass
class Room:
    """A coordinator with people whose keys the test holds."""

    made: Made
    keys: dict[str, SigningKey]

    def person(self, name: str) -> Person:
        with reading(self.made.appliance.engine) as session:
            found = session.get(Person, name)
        assert found is not None
        return found

    def add(self, name: str, role: Role, key: SigningKey | None = None) -> None:
        self.keys[name] = key or SigningKey.generate()
        now = timestamp(self.made.clock())
        person = Person(name=name, role=role.value, status="active", invited_at=now, registered_at=now)
        person.key = self.keys[name].public.text
        with transaction(self.made.appliance.engine) as session:
            session.add(person)

    def documents(self, **changes: bytes) -> dict[str, bytes]:
        return {**builtin_packs(), **changes}

    def propose(self, name: str, documents: Mapping[str, bytes], /, key: str = "", **changes: Any) -> str:
        with reading(self.made.appliance.engine) as session:
            current = active_set(session, self.made.appliance).set
        fields = {
            "origin": "people",
            "coordinator": self.made.appliance.settings.name,
            "number": current.number + 1,
            "previous": current.digest,
            "documents": {title: sha256_hex(data) for title, data in documents.items()},
            "proposer": name,
            "proposed_at": timestamp(self.made.clock()),
            **changes,
        }
        given = PolicySet.model_validate(fields)
        envelope = seal(POLICY_SET_TYPE, given.model_dump(mode="json"), self.keys[key or name]).to_bytes()
        with transaction(self.made.appliance.engine) as session:
            propose(session, self.made.appliance, self.person(name), envelope=envelope, documents=documents)
        return given.digest

    def vote(self, name: str, digest: str, decision: str = "activate", key: str = "", **changes: Any) -> SetState:
        with reading(self.made.appliance.engine) as session:
            row = PolicyRepository(session).get(digest)
        fields = {
            "set": digest,
            "policy": row.policy,
            "person": name,
            "role": self.person(name).role,
            "decision": decision,
            "reason_hash": sha256_hex(REASON.encode()),
            "signed_at": timestamp(self.made.clock()),
            **changes,
        }
        signed = seal(
            POLICY_VOTE_TYPE, PolicyVote.model_validate(fields).model_dump(mode="json"), self.keys[key or name]
        )
        with transaction(self.made.appliance.engine) as session:
            done = decide(
                session, self.made.appliance, self.person(name), digest, envelope=signed.to_bytes(), reason=REASON
            )
            return SetState(done.state)

    def ceiling(self) -> object:
        return policy_in_force(self.made.appliance).parameters.values["epsilon_ceiling"]

    def events(self, *wanted: EventType) -> list[AuditEvent]:
        with reading(self.made.appliance.engine) as session:
            rows = session.exec(select(LogEntry)).all()
        found = [AuditEvent.model_validate_json(row.leaf) for row in rows]
        return [event for event in found if event.event in wanted]


@pytest.fixture
def room(local: Made) -> Room:
    found = Room(local, {})
    for name, role in PEOPLE.items():
        found.add(name, role)
    local.clock.move(seconds=2)
    return found


def test_a_new_coordinator_decides_by_the_packages_own_documents(room: Room) -> None:
    with reading(room.made.appliance.engine) as session:
        found = active_set(session, room.made.appliance)
    assert (found.set.origin, found.set.number, found.set.proposer, found.votes) == ("package", 1, None, ())
    assert found.documents == builtin_packs()
    (event,) = room.events(EventType.PACKS_ACTIVATED)
    assert event.actor == COORDINATOR
    assert event.digests["policy"] == found.set.policy == policy_in_force(room.made.appliance).digest
    assert event.labels == {"origin": "package"}


def test_two_people_in_two_roles_put_a_proposed_set_in_force(room: Room) -> None:
    digest = room.propose("ada", room.documents(organisation=STRICTER))
    assert room.ceiling() != 2.0
    assert room.vote("carl", digest) is SetState.PROPOSED
    assert room.ceiling() != 2.0
    assert room.vote("lena", digest) is SetState.ACTIVE
    assert room.ceiling() == 2.0
    with reading(room.made.appliance.engine) as session:
        states = [row.state for row in PolicyRepository(session).all()]
    assert states == ["superseded", "active"]
    told = room.events(EventType.PACKS_PROPOSED, EventType.PACKS_APPROVED, EventType.PACKS_ACTIVATED)
    assert [event.event.value for event in told[1:]] == [
        "packs.proposed", "packs.approved", "packs.approved", "packs.activated",
    ]  # fmt: skip
    assert {event.digests["set"] for event in told[1:]} == {digest}
    assert REASON.encode() not in b"".join(event.leaf() for event in told)


def test_an_insider_can_not_activate_alone(room: Room) -> None:
    digest = room.propose("carl", room.documents(organisation=STRICTER))
    with pytest.raises(Refused, match="proposed a set does not decide"):
        room.vote("carl", digest)
    with pytest.raises(Refused, match="does not activate"):
        room.vote("ada", digest)
    room.vote("cora", digest)
    with pytest.raises(Refused, match="already decided"):
        room.vote("cora", digest)
    room.add("late", Role.CLINICAL_LEAD)
    with pytest.raises(Refused, match="registered after"):
        room.vote("late", digest)
    with pytest.raises(BadSignature):
        room.vote("lena", digest, key="cora")
    with pytest.raises(Refused, match="another person or role"):
        room.vote("lena", digest, role=Role.COMPLIANCE_OFFICER)
    assert room.ceiling() != 2.0


def test_one_person_with_two_accounts_of_one_role_counts_once(room: Room) -> None:
    digest = room.propose("ada", room.documents(organisation=STRICTER))
    room.vote("carl", digest)
    with pytest.raises(Refused, match="Somebody in the role"):
        room.vote("cora", digest)
    proposal = Proposal("set", "ada", "key-a", "2026-01-02T00:00:00Z", None)
    one_key = [
        Vote(name, role, "one-key", "2026-01-01T00:00:00Z", "set", activate=True)
        for name, role in (("carl", Role.COMPLIANCE_OFFICER), ("lena", Role.CLINICAL_LEAD))
    ]
    assert outcome(one_key, proposal) is SetState.PROPOSED


def test_a_rejection_ends_a_set_and_another_activation_leaves_it_behind(room: Room) -> None:
    rejected = room.propose("ada", room.documents(organisation=STRICTER))
    assert room.vote("lena", rejected, "reject") is SetState.REJECTED
    with pytest.raises(Refused, match="rejected"):
        room.vote("carl", rejected)
    room.made.clock.move(seconds=2)
    first = room.propose("ada", room.documents(organisation=STRICTER))
    second = room.propose("cora", room.documents(organisation=b"values: {epsilon_ceiling: 3.0}\n"))
    room.vote("carl", second)
    assert room.vote("lena", second) is SetState.ACTIVE
    with pytest.raises(Refused, match="stale"):
        room.vote("carl", first)
    with pytest.raises(Conflict, match="does not follow"):
        room.propose("ada", room.documents(organisation=STRICTER), number=2, previous=rejected)


def test_a_vote_is_worth_nothing_for_another_set(room: Room) -> None:
    """A replayed vote: over the set that it names alone, and over those very documents."""
    digest = room.propose("ada", room.documents(organisation=STRICTER))
    with pytest.raises(Refused, match="another set"):
        room.vote("carl", digest, set=sha256_hex(b"another"))
    with pytest.raises(Refused, match="other documents"):
        room.vote("carl", digest, policy=sha256_hex(b"other documents"))


def test_what_does_not_compile_or_is_not_signed_is_never_proposed(room: Room) -> None:
    broken = room.documents(
        gdpr=builtin_packs()["gdpr"].replace(b"require: release.intended_use", b"require: nothing.")
    )
    with pytest.raises(BadPolicyDocument):
        room.propose("ada", broken)
    with pytest.raises(CloisterError, match="at most"):
        room.propose("ada", room.documents(organisation=b"values: {epsilon_ceiling: 400}\n"))
    with pytest.raises(Refused, match="does not propose"):
        room.propose("rosa", room.documents(organisation=STRICTER))
    with pytest.raises(BadSignature):
        room.propose("ada", room.documents(organisation=STRICTER), key="carl")
    with pytest.raises(Refused, match="somebody or somewhere else"):
        room.propose("ada", room.documents(organisation=STRICTER), coordinator="another-hospital")
    with pytest.raises(CloisterError, match="no cases"):
        room.propose("ada", {name: data for name, data in builtin_packs().items() if name != "cases/hipaa"})
    with pytest.raises(Conflict, match="decide already"):
        room.propose("ada", room.documents())


def test_a_pack_swapped_in_the_database_decides_nothing(room: Room) -> None:
    """Whoever writes to the database without the keys of two people: a document, a state, a set of their own."""
    appliance = room.made.appliance
    laxer = builtin_packs()["gdpr"].replace(b"effect: deny", b"effect: warn")
    with transaction(appliance.engine) as session:
        row = session.get(PolicyDocument, sha256_hex(builtin_packs()["gdpr"]))
        assert row is not None
        row.content = laxer
        session.add(row)
    with pytest.raises(VerificationFailed, match="gdpr"):
        policy_in_force(appliance)


def test_a_set_marked_active_by_hand_decides_nothing(room: Room) -> None:
    appliance = room.made.appliance
    digest = room.propose("carl", room.documents(organisation=b"values: {epsilon_ceiling: 10.0}\n"))
    with transaction(appliance.engine) as session:
        session.get_one(PolicySetRow, digest).state = "active"
    with pytest.raises(VerificationFailed, match="another policy set"):
        policy_in_force(appliance)
    with transaction(appliance.engine) as session:
        first = next(row for row in PolicyRepository(session).all() if row.number == 1)
        row = session.get_one(PolicySetRow, digest)
        row.activation, row.activated_at, first.state = first.activation, first.activated_at, "superseded"
    with pytest.raises((VerificationFailed, BadSignature)):
        policy_in_force(appliance)


def test_an_earlier_set_put_back_by_hand_decides_nothing(room: Room) -> None:
    appliance = room.made.appliance
    digest = room.propose("ada", room.documents(organisation=STRICTER))
    room.vote("carl", digest)
    room.vote("lena", digest)
    with transaction(appliance.engine) as session:
        for row in PolicyRepository(session).all():
            row.state = "active" if row.number == 1 else "superseded"
    with pytest.raises(VerificationFailed, match="last that came into force"):
        policy_in_force(appliance)


def test_a_bundle_with_one_voter_or_the_proposers_vote_is_refused(room: Room) -> None:
    """What a site reads: the coordinator alone can't make up a set that two people signed for."""
    appliance = room.made.appliance
    digest = room.propose("ada", room.documents(organisation=STRICTER))
    room.vote("carl", digest)
    room.vote("lena", digest)
    with reading(appliance.engine) as session:
        row = PolicyRepository(session).get(digest)
        votes = [vote.envelope for vote in PolicyRepository(session).votes(digest)]
    key, documents = appliance.keys.coordinator.public, room.documents(organisation=STRICTER)
    whole = bundle(row.envelope, votes, row.activation or b"", documents)
    assert read_bundle(canonical(whole), key).set.digest == digest
    for changed in (
        {**whole, "votes": whole["votes"][:1]},
        {**whole, "votes": whole["votes"][:1] * 2},
        {**whole, "documents": {**whole["documents"], "gdpr": "pack: gdpr\n"}},
        {**whole, "set": parse(seal(POLICY_SET_TYPE, b"{}", room.keys["ada"]).to_bytes())},
    ):
        with pytest.raises(CloisterError):
            read_bundle(canonical(changed), key)
    with pytest.raises(BadSignature):
        read_bundle(canonical(whole), SigningKey.generate().public)


def test_every_decision_names_its_policy_and_keeps_its_facts_where_they_can_be_erased(room: Room) -> None:
    appliance = room.made.appliance
    documents = builtin_packs()
    case = load_cases(documents["cases/iso27001"], documents["cases/base"])[0]
    decided = decide_at("release", case.facts, policy_in_force(appliance), now=case.now, salt=b"s" * 32)
    with transaction(appliance.engine) as session:
        entry = record(session, appliance, decided, actor=COORDINATOR, subject="release:one")
    (event,) = room.events(EventType.POLICY_DECIDED)
    assert event.digests["policy"] == policy_in_force(appliance).digest
    assert b"lyon" not in event.leaf()
    with transaction(appliance.engine) as session:
        ((row, payload),) = PolicyRepository(session).decisions(gate="release", subject=None, before=None, limit=5)
        assert row.entry == entry
        assert payload is not None
        assert b"lyon" in payload
        stored = session.get_one(LogEntry, entry)
        stored.payload = stored.salt = None
    with reading(appliance.engine) as session:
        ((_, payload),) = PolicyRepository(session).decisions(gate=None, subject=None, before=None, limit=5)
    assert payload is None


@pytest.mark.processes
def test_the_commands_change_the_policy_and_take_decisions_again(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "correct horse battery")
    homes = {name: tmp_path / "people" / name for name in ("ada", "carl", "lena")}
    for name, home in homes.items():
        with transaction(served.appliance.engine) as session:
            token = accounts.invite(session, served.appliance, name, PEOPLE[name])
        account = register(token.to_text(), home, b"correct horse battery")
        sign_in(account, account.unlock(b"correct horse battery"))
    served.clock.move(seconds=5)
    _decide_once(served)
    parameters = tmp_path / "organisation.yaml"
    parameters.write_text("values: {epsilon_ceiling: 0.5, epsilon_default: 0.4, epsilon_approval: 0.5}\n")
    replayed = _run(homes["carl"], "dry-run", "in-force", "--parameters", str(parameters))
    assert (replayed["replayed"], replayed["changed"]) == (1, 1)
    assert replayed["decisions"][0]["was"] == "allow"
    assert any(found["rule"].startswith("N01") for found in replayed["decisions"][0]["findings"])
    assert _run(homes["carl"], "dry-run", "in-force")["changed"] == 0
    made = _run(homes["ada"], "propose", "--parameters", str(parameters), "--yes")
    assert made["state"] == "proposed"
    shown = _run(homes["carl"], "show", made["set"])
    assert shown["difference"]["same"] is False
    assert _run(homes["carl"], "activate", made["set"], "--reason", "read it", "--yes")["state"] == "proposed"
    assert _run(homes["lena"], "activate", made["set"], "--reason", "read it", "--yes")["state"] == "active"
    assert [row["state"] for row in _run(homes["lena"], "list")] == ["superseded", "active"]
    with reading(served.appliance.engine) as session:
        assert active_policy(session, served.appliance).parameters.values["epsilon_ceiling"] == 0.5
        assert len(session.exec(select(PolicyVoteRow)).all()) == 2


def _decide_once(served: Served) -> None:
    """A release that the package's packs let pass."""
    documents, appliance = builtin_packs(), served.appliance
    case = load_cases(documents["cases/iso27001"], documents["cases/base"])[0]
    decided = decide_at("release", case.facts, policy_in_force(appliance), now=case.now)
    assert decided.decision.allowed, decided.decision.findings
    with transaction(appliance.engine) as session:
        record(session, appliance, decided, actor=COORDINATOR, subject="release:one")


def _run(home: Path, *arguments: str) -> Any:
    result = CliRunner().invoke(app, ["policy", *arguments, "--home", str(home), "--json"])
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)
