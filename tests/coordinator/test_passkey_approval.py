"""Approvals by passkey: from registration over the plan's roster and the review to what a site installs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlmodel import Session

from coordinator.audit.witnessing import policy_in_force
from coordinator.database import reading, transaction
from coordinator.errors import Conflict, Forbidden, NotFound
from coordinator.identity import Caller
from coordinator.passkeys import register
from coordinator.passkeys.repository import PasskeyRepository
from coordinator.people.challenge import ChallengeRefused
from coordinator.people.states import AuthLevel, Medium
from coordinator.releases import by_passkey, review
from coordinator.releases.repository import ReleaseRepository
from coordinator.studies.propose import _approvers
from coordinator.studies.tables import Study
from protocol.bundle import unpack
from protocol.canonical import canonical, parse, sha256_hex
from protocol.consent import PLAN_TYPE
from protocol.envelope import Envelope
from protocol.envelope import seal as sign
from protocol.errors import BadSignature, CloisterError, Refused
from protocol.identifiers import Role
from protocol.passkey import PasskeySignature, decode, encode
from protocol.plan import PlannedApprover
from protocol.release import APPROVAL_TYPE, BUNDLE_FILES
from protocol.study import StudyPlan
from protocol.timestamp import timestamp
from site_agent.releases.trusted_release import TrustRoot, verify
from tests.authenticator import PRESENT, Authenticator
from tests.coordinator.appliances import Made, make_coordinator
from tests.coordinator.test_release_review import RELEASE, STUDY, Federation, federation
from tests.releases import Maker

__all__ = ["federation"]
ADDRESS = "localhost:8443"


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Made]:
    """A coordinator with a host name, as passkeys need."""
    made = make_coordinator(tmp_path, address=ADDRESS)
    yield made
    made.appliance.engine.dispose()


def caller(made: Federation, name: str, *, ago: float = 0) -> Caller:
    now = made.appliance.clock()
    started = timestamp(now.fromtimestamp(now.timestamp() - ago, now.tzinfo))
    return Caller(made.people[name], AuthLevel.PASSWORD_AND_CODE, Medium.BROWSER, started, "hash", "csrf")


def join(made: Federation, name: str, authenticator: Authenticator, **changes: Any) -> None:
    with reading(made.appliance.engine) as session:
        asked = register.registration_options(session, made.appliance, caller(made, name))
    assert decode(asked["options"]["challenge"]) == asked["challenge"].encode()
    answer = authenticator.register(asked["challenge"].encode(), **changes)
    keep(made, name, asked["challenge"], answer)


def keep(made: Federation, name: str, challenge: str, answer: dict[str, Any]) -> None:
    with transaction(made.appliance.engine) as session:
        register.register(session, made.appliance, caller(made, name), challenge=challenge, credential=answer)


@pytest.fixture
def hers(federation: Federation) -> dict[str, Authenticator]:
    """bo has a key and a passkey, cy a passkey alone; the plan that the sites granted fixes them."""
    held = {"bo": Authenticator(ADDRESS), "cy": Authenticator(ADDRESS)}
    for name, authenticator in held.items():
        join(federation, name, authenticator)
    plan_anew(federation)
    return held


def plan_anew(made: Federation) -> None:
    """The study's plan with the roster as it is registered now; cy signs by passkey alone, once there is one."""
    with transaction(made.appliance.engine) as session:
        row = session.get(Study, STUDY)
        assert row is not None
        assert row.plan is not None
        plan = StudyPlan.model_validate_json(Envelope.from_bytes(row.plan).payload)
        roster = tuple(
            entry.model_copy(update={"key": None}) if entry.person == "cy" and entry.passkeys else entry
            for entry in _approvers(session)
            if entry.person in ("bo", "cy")
        )
        plan = plan.model_copy(update={"approvers": roster})
        envelope = sign(PLAN_TYPE, plan.model_dump(mode="json"), made.appliance.keys.coordinator)
        row.plan, row.plan_digest = envelope.to_bytes(), sha256_hex(envelope.payload)
        made.plan_digest = row.plan_digest
        session.add(row)


def site_root(made: Federation, address: str) -> TrustRoot:
    """What clinic-a pinned and granted."""
    with reading(made.appliance.engine) as session:
        policy = policy_in_force(session, made.appliance)
    assert policy is not None
    evaluated = {made.plan_digest: frozenset({Maker().model_digest()})}
    key = made.appliance.keys.coordinator.public
    return TrustRoot("clinic-a", key, policy, frozenset({made.plan_digest}), evaluated, address)


def ask(
    made: Federation, name: str, decision: Literal["approve", "reject"] = "approve", reason: str = "read it"
) -> dict[str, Any]:
    with transaction(made.appliance.engine) as session:
        return by_passkey.ask(session, made.appliance, made.people[name], RELEASE, decision=decision, reason=reason)


def answer(asked: dict[str, Any], authenticator: Authenticator, **changes: Any) -> PasskeySignature:
    """What the page sends, once the authenticator has signed the challenge that it was handed."""
    signed = authenticator.sign(asked["payload_type"], decode(asked["payload"]), **changes)
    if "challenge" not in changes:
        told = parse(decode(signed.client_data))
        assert isinstance(told, dict)
        assert told["challenge"] == asked["options"]["challenge"]
    return signed


def decide(made: Federation, name: str, authenticator: Authenticator, **changes: Any) -> PasskeySignature:
    signed = answer(ask(made, name), authenticator, **changes)
    made.send(name, signed.to_bytes())
    return signed


def votes(made: Federation) -> int:
    with reading(made.appliance.engine) as session:
        return len(ReleaseRepository(session).votes(RELEASE))


def test_two_passkeys_approve_and_a_site_verifies_them_offline(
    federation: Federation, hers: dict[str, Authenticator]
) -> None:
    federation.to_review()
    for name in ("bo", "cy"):
        decide(federation, name, hers[name])
    federation.seal()
    federation.witness()
    assert federation.seal()
    files = unpack(federation.bundle(), BUNDLE_FILES)
    installable = verify(files, site_root(federation, ADDRESS))
    assert installable.logged.approved.methods == ("passkey",)
    assert set(installable.logged.approved.roles) == {Role.COMPLIANCE_OFFICER, Role.CLINICAL_LEAD}
    with pytest.raises(CloisterError, match="another address"):
        verify(files, site_root(federation, "coordinator.example.org:8443"))


def test_a_key_and_a_passkey_count_beside_each_other(federation: Federation, hers: dict[str, Authenticator]) -> None:
    federation.to_review()
    federation.decide("bo")
    decide(federation, "cy", hers["cy"])
    assert not federation.seal()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"flags": PRESENT}, "not verified"),
        ({"origin": "https://localhost:9443"}, "another address"),
        ({"challenge": bytes(32)}, "another document"),
        ({"extra": {"crossOrigin": True}}, "another site's frame"),
    ],
)
def test_an_assertion_that_is_not_what_was_asked_for_decides_nothing(
    federation: Federation, hers: dict[str, Authenticator], changes: dict[str, Any], why: str
) -> None:
    federation.to_review()
    with pytest.raises(BadSignature, match=why):
        decide(federation, "bo", hers["bo"], **changes)
    assert votes(federation) == 0


def test_an_approval_moves_to_no_other_digest_decision_reason_person_or_day(
    federation: Federation, hers: dict[str, Authenticator]
) -> None:
    federation.to_review()
    asked = ask(federation, "bo")
    signed = answer(asked, hers["bo"])
    approval = parse(signed.document)
    assert isinstance(approval, dict)
    for change in (
        {"subject_digest": sha256_hex(b"another")},
        {"decision": "reject", "meaning": "reviewed-and-rejected"},
        {"packs": {"gdpr": sha256_hex(b"laxer")}},
        {"challenge": sha256_hex(b"another")},
        {"reason_hash": sha256_hex(b"another")},
    ):
        moved = signed.model_copy(update={"payload": encode(canonical({**approval, **change}))})
        with pytest.raises(BadSignature, match="another document"):
            federation.send("bo", moved.to_bytes())
    with pytest.raises(Refused, match="another person"):
        federation.send("cy", signed.to_bytes())
    federation.appliance.clock.move(minutes=16)  # type: ignore[attr-defined]
    with pytest.raises(Refused, match="expired"):
        federation.send("bo", signed.to_bytes())
    assert votes(federation) == 0


def test_a_replayed_assertion_is_refused(federation: Federation, hers: dict[str, Authenticator]) -> None:
    federation.to_review()
    signed = decide(federation, "bo", hers["bo"])
    with pytest.raises(BadSignature, match="old one"):
        federation.send("bo", signed.to_bytes())
    without = hers["cy"]
    without.counts, without.count = False, 0
    kept = decide(federation, "cy", without)
    with pytest.raises(Refused):
        federation.send("cy", kept.to_bytes())
    assert votes(federation) == 2


def test_a_copied_authenticator_is_told_by_its_counter(federation: Federation, hers: dict[str, Authenticator]) -> None:
    federation.to_review()
    with transaction(federation.appliance.engine) as session:
        row = PasskeyRepository(session).get(hers["bo"].passkey.credential)
        assert row is not None
        row.uses = 40
        session.add(row)
    with pytest.raises(BadSignature, match="copied"):
        decide(federation, "bo", hers["bo"])


def test_a_revoked_passkey_signs_nothing_and_one_that_came_later_counts_in_no_older_plan(
    federation: Federation, hers: dict[str, Authenticator]
) -> None:
    federation.to_review()
    asked = ask(federation, "bo")
    with transaction(federation.appliance.engine) as session:
        register.revoke(session, federation.appliance, caller(federation, "bo"), hers["bo"].passkey.credential)
    with pytest.raises(BadSignature, match="revoked"):
        federation.send("bo", answer(asked, hers["bo"]).to_bytes())
    later = Authenticator(ADDRESS)
    join(federation, "bo", later)
    with pytest.raises(Refused, match="fixes no passkey"):
        ask(federation, "bo")
    with pytest.raises(BadSignature, match="not one that the plan fixes"):
        federation.send("bo", answer(asked, later).to_bytes())
    with pytest.raises(NotFound), transaction(federation.appliance.engine) as session:
        register.revoke(session, federation.appliance, caller(federation, "cy"), later.passkey.credential)


def test_one_passkey_does_not_serve_two_accounts(federation: Federation, hers: dict[str, Authenticator]) -> None:
    """One person with two accounts, one in each role, and one security key."""
    with pytest.raises(Conflict, match="registered already"):
        join(federation, "eve", hers["bo"])
    renamed = Authenticator(ADDRESS, private=hers["bo"].private)
    with pytest.raises(Conflict, match="registered already"):
        join(federation, "eve", renamed)
    shared = [
        PlannedApprover(person=name, role=role, passkeys=(hers["bo"].passkey,))
        for name, role in (("bo", Role.COMPLIANCE_OFFICER), ("bo-too", Role.CLINICAL_LEAD))
    ]
    with pytest.raises(ValueError, match="share one key"):
        StudyPlan.model_validate({**Maker().plan().model_dump(), "approvers": shared})


@pytest.mark.parametrize(
    "changes",
    [
        {"flags": PRESENT | 0x40},
        {"origin": "https://localhost:9443"},
        {"host": "evil.example"},
        {"challenge": b"another"},
        {"kind": "webauthn.get"},
    ],
)
def test_a_passkey_is_registered_here_by_a_verified_person_or_not_at_all(
    federation: Federation, changes: dict[str, Any]
) -> None:
    with pytest.raises(BadSignature):
        join(federation, "bo", Authenticator(ADDRESS), **changes)
    assert held(federation, "bo") == 0


def test_a_registration_is_for_one_person_once_and_in_a_fresh_session(federation: Federation) -> None:
    def options(session: Session, name: str, ago: float = 0) -> str:
        asked = register.registration_options(session, federation.appliance, caller(federation, name, ago=ago))
        return str(asked["challenge"])

    with reading(federation.appliance.engine) as session:
        challenge = options(session, "bo")
        with pytest.raises(Forbidden):
            options(session, "bo", ago=700)
    first = Authenticator(ADDRESS)
    with pytest.raises(ChallengeRefused):
        keep(federation, "cy", challenge, first.register(challenge.encode()))
    keep(federation, "bo", challenge, first.register(challenge.encode()))
    with pytest.raises(ChallengeRefused):
        keep(federation, "bo", challenge, Authenticator(ADDRESS).register(challenge.encode()))
    assert held(federation, "bo") == 1


def test_a_researcher_has_no_decision_to_sign(federation: Federation, hers: dict[str, Authenticator]) -> None:
    federation.to_review()
    join(federation, "ada", Authenticator(ADDRESS))
    with pytest.raises(Refused, match="does not name ada"):
        ask(federation, "ada")


def test_the_signed_approval_names_what_21_cfr_11_50_asks_for(
    federation: Federation, hers: dict[str, Authenticator]
) -> None:
    federation.to_review()
    asked = ask(federation, "bo")
    told = parse(decode(asked["payload"]))
    assert asked["payload_type"] == APPROVAL_TYPE
    assert isinstance(told, dict)
    assert (told["person"], told["meaning"]) == ("bo", "reviewed-and-approved")
    assert asked["options"]["userVerification"] == "required"
    assert told["signed_at"] <= timestamp(federation.appliance.clock())
    with reading(federation.appliance.engine) as session:
        assert told["subject_digest"] == ReleaseRepository(session).get(RELEASE).subject_digest
        assert told["packs"] == review.subject_of_release(ReleaseRepository(session).get(RELEASE)).packs


def held(made: Federation, name: str) -> int:
    with reading(made.appliance.engine) as session:
        return len(PasskeyRepository(session).of(name))
