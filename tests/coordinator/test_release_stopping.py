"""Reviews that fail or expire, waivers, vetoes, revocation and broken glass, by a real coordinator's own verbs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import select

from coordinator.database import reading, transaction
from coordinator.errors import Conflict, Forbidden, NotFound
from coordinator.people.tables import Person
from coordinator.policy.active import active_policy
from coordinator.releases import review, stopping, waivers
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.seal import ReleaseDenied
from coordinator.releases.states import ReleaseState
from coordinator.releases.tables import Release, ReleaseFile, ReleaseWaiverRecord
from coordinator.rounds.tables import Candidate
from policies.packs import builtin_policy
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.envelope import seal as sign
from protocol.errors import CloisterError, Refused
from protocol.identifiers import Role
from protocol.release import VETO_TYPE, WAIVER_TYPE, ReleaseVeto, ReleaseWaiver
from protocol.timestamp import timestamp
from tests.coordinator.test_release_review import HASH, RELEASE, STUDY, Federation, federation
from tests.releases import keys

__all__ = ["federation"]
PACK = next(pack.id for pack in builtin_policy().packs if any(rule.text.id == "A03" for rule in pack.rules))


def state(made: Federation) -> ReleaseState:
    with reading(made.appliance.engine) as session:
        return ReleaseState(ReleaseRepository(session).get(RELEASE).state)


def settled(made: Federation) -> ReleaseState:
    with transaction(made.appliance.engine) as session:
        review.settle(session, made.appliance, RELEASE)
    return state(made)


def released(made: Federation) -> None:
    made.to_review()
    made.decide("bo")
    made.decide("cy")
    made.seal()
    made.witness()
    assert made.seal()


def act(made: Federation, verb: Callable[..., Release], who: str, reason: str = "a fault was seen") -> None:
    with transaction(made.appliance.engine) as session:
        verb(session, made.appliance, made.people[who], RELEASE, reason=reason)


def waive(made: Federation, who: str, *, days: float = 30, rule: str = "A03", **changes: Any) -> None:
    with transaction(made.appliance.engine) as session:
        asked = review.challenge(session, made.appliance, made.people[who], RELEASE)
    now = made.appliance.clock()
    fields = {
        "release": RELEASE,
        "subject_digest": asked["subject_digest"],
        "person": who,
        "role": Role(made.people[who].role),
        "pack": PACK,
        "rule": rule,
        "reason_hash": sha256_hex(b"until the audit in spring"),
        "expires_at": timestamp(now + timedelta(days=days)),
        "challenge": asked["challenge"],
        "signed_at": timestamp(now),
    }
    key = changes.pop("signed_by", who)
    document = ReleaseWaiver(**{**fields, **changes}).model_dump(mode="json")
    with transaction(made.appliance.engine) as session:
        waivers.grant_waiver(
            session,
            made.appliance,
            active_policy(session, made.appliance),
            made.people[who],
            RELEASE,
            envelope=sign(WAIVER_TYPE, document, made.keys[key]).to_bytes(),
            reason="until the audit in spring",
        )


def veto(made: Federation, site: str, /, **changes: Any) -> None:
    with reading(made.appliance.engine) as session:
        digest = ReleaseRepository(session).get(RELEASE).subject_digest
    fields = {
        "release": RELEASE,
        "subject_digest": digest,
        "site": site,
        "reason": "safety",
        "at": "2026-11-23T00:00:00Z",
    }
    key = keys(changes.pop("signed_by", site)).popitem()[1]
    document = ReleaseVeto(**{**fields, **changes}).model_dump(mode="json")
    with transaction(made.appliance.engine) as session:
        stopping.veto(session, made.appliance, site, RELEASE, sign(VETO_TYPE, document, key).to_bytes())


def test_a_review_that_nobody_ends_expires_and_the_study_gets_another(federation: Federation) -> None:
    federation.to_review()
    federation.decide("bo")
    assert settled(federation) is ReleaseState.IN_REVIEW
    federation.appliance.clock.move(days=31)  # type: ignore[attr-defined]
    assert settled(federation) is ReleaseState.EXPIRED
    assert federation.events()[-1].event is EventType.RELEASE_EXPIRED
    with pytest.raises(Refused, match="expired"):
        federation.decide("cy")
    with transaction(federation.appliance.engine) as session:
        again = review.draft(
            session, federation.appliance, federation.people["ada"], study=STUDY, intended_use="research.heart",
            use_mode="research",
        )  # fmt: skip
        assert again.id != RELEASE


def test_a_file_that_was_changed_on_the_disk_fails_the_release_before_anybody_signs(federation: Federation) -> None:
    federation.to_review()
    with transaction(federation.appliance.engine) as session:
        row = session.exec(select(ReleaseFile).where(ReleaseFile.name == "model.onnx")).one()
        row.content += b"\0"
        session.add(row)
    assert settled(federation) is ReleaseState.FAILED
    last = federation.events()[-1]
    assert (last.event, last.groups) == (EventType.RELEASE_FAILED, {"faults": ("file:model.onnx",)})


def test_a_candidate_that_was_changed_after_the_draft_fails_at_its_submission(federation: Federation) -> None:
    with transaction(federation.appliance.engine) as session:
        review.draft(
            session, federation.appliance, federation.people["ada"], study=STUDY, intended_use="research.heart",
            use_mode="research",
        )  # fmt: skip
        candidate = session.get(Candidate, STUDY)
        assert candidate is not None
        candidate.weights = bytes(len(candidate.weights))
        session.add(candidate)
    with transaction(federation.appliance.engine) as session:
        row = review.submit(session, federation.appliance, federation.people["ada"], RELEASE)
        assert row.state == ReleaseState.FAILED.value
    assert "candidate:model.safetensors" in federation.events()[-1].groups["faults"]


def test_an_insider_who_breaks_the_glass_stops_a_model_and_releases_none(federation: Federation) -> None:
    federation.to_review()
    federation.decide("bo")
    federation.decide("cy")
    with pytest.raises(Refused, match="cannot become"):
        act(federation, stopping.smash, "ada")
    assert state(federation) is ReleaseState.APPROVED
    federation.seal()
    federation.witness()
    federation.seal()
    act(federation, stopping.smash, "ada")
    with pytest.raises(Refused, match="suspended"):
        federation.bundle()
    logged = [event.event for event in federation.events()]
    assert logged[-2:] == [EventType.GLASS_BROKEN, EventType.RELEASE_SUSPENDED]
    assert b"a fault was seen" not in b"".join(event.leaf() for event in federation.events())
    with pytest.raises(Refused):
        act(federation, stopping.smash, "bo")


def test_whoever_broke_the_glass_does_not_judge_it(federation: Federation) -> None:
    released(federation)
    with pytest.raises(NotFound):
        act(federation, stopping.review_broken_glass, "bo")
    act(federation, stopping.smash, "bo")
    for who in ("bo", "ada"):
        with pytest.raises(Refused, match="does not judge"):
            act(federation, stopping.review_broken_glass, who)
    act(federation, stopping.review_broken_glass, "cy")
    assert state(federation) is ReleaseState.SUSPENDED
    with pytest.raises(Conflict):
        act(federation, stopping.review_broken_glass, "cy")


def test_an_auditor_reads_and_breaks_nothing(federation: Federation) -> None:
    released(federation)
    auditor = Person(name="otto", role=Role.AUDITOR.value, status="active", invited_at="2026-11-23T00:00:00Z")
    federation.people["otto"] = auditor
    with pytest.raises(Forbidden):
        act(federation, stopping.smash, "otto")
    assert state(federation) is ReleaseState.RELEASED


def test_a_revoked_release_is_gone_for_good(federation: Federation) -> None:
    released(federation)
    act(federation, stopping.suspend, "cy")
    act(federation, stopping.revoke, "bo")
    assert federation.events()[-1].event is EventType.RELEASE_REVOKED
    with pytest.raises(Refused, match="revoked"):
        federation.bundle()
    with pytest.raises(Refused):
        federation.seal()


def test_one_sites_veto_ends_the_release_and_names_a_code_only(federation: Federation) -> None:
    federation.to_review()
    federation.decide("bo")
    veto(federation, "clinic-c")
    assert state(federation) is ReleaseState.REJECTED
    event = federation.events()[-1]
    assert (event.event, event.actor, event.labels) == (EventType.RELEASE_VETOED, "site:clinic-c", {"reason": "safety"})
    veto(federation, "clinic-c")  # sent again
    veto(federation, "clinic-d")
    with pytest.raises(Refused):
        federation.decide("cy")
    with pytest.raises(Refused):
        federation.seal()


@pytest.mark.parametrize(
    "changes",
    [{"signed_by": "clinic-b"}, {"site": "clinic-b"}, {"subject_digest": HASH}, {"release": "heart-study-r2"}],
)
def test_a_forged_or_moved_veto_is_refused(federation: Federation, changes: dict[str, Any]) -> None:
    federation.to_review()
    with pytest.raises(CloisterError):
        veto(federation, "clinic-c", **changes)
    assert state(federation) is ReleaseState.IN_REVIEW


def test_a_veto_does_not_come_after_the_sealing(federation: Federation) -> None:
    released(federation)
    with pytest.raises(Refused, match="before it is sealed"):
        veto(federation, "clinic-c")


def test_a_waived_rule_no_longer_holds_the_gate(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    with transaction(federation.appliance.engine) as session:
        review.draft(
            session, federation.appliance, federation.people["ada"], study=STUDY, intended_use="research.heart",
            use_mode="decision-support",
        )  # fmt: skip
    with transaction(federation.appliance.engine) as session:
        review.submit(session, federation.appliance, federation.people["ada"], RELEASE)
    waive(federation, "bo")
    assert federation.events()[-1].event is EventType.RULE_WAIVED
    federation.decide("bo")
    federation.decide("cy")
    with pytest.raises(ReleaseDenied) as caught:
        federation.seal()
    open_rules = {found["rule"] for found in caught.value.facts["findings"]}
    assert "A03" not in open_rules  # that was waived
    assert "A04" in open_rules  # nobody answered for that
    with reading(federation.appliance.engine) as session:
        row = ReleaseRepository(session).get(RELEASE)
        assert waivers.standing_waivers(session, federation.appliance, row) == {(PACK, "A03")}
        federation.appliance.clock.move(days=31)  # type: ignore[attr-defined]
        assert waivers.standing_waivers(session, federation.appliance, row) == frozenset()


@pytest.mark.parametrize(
    ("who", "changes", "why"),
    [
        ("bo", {"rule": "A15"}, "can't be waived"),
        ("bo", {"rule": "A14"}, "can't be waived"),
        ("bo", {"rule": "N06"}, "can't be waived"),
        ("bo", {"rule": "H26", "pack": "hipaa"}, "can't be waived"),
        ("bo", {"rule": "G09", "pack": "gdpr"}, "can't be waived"),
        ("bo", {"days": 91}, "too far away"),
        ("bo", {"days": -1}, "past"),
        ("bo", {"signed_by": "cy"}, ""),
        ("bo", {"subject_digest": HASH}, "another person, release or digest"),
        ("bo", {"reason_hash": HASH}, "reason"),
        ("bo", {"challenge": HASH}, "unknown, used"),
        ("ada", {}, "does not name ada"),
        ("eve", {}, "does not name eve"),
    ],
)
def test_wrong_waivers_are_refused(federation: Federation, who: str, changes: dict[str, Any], why: str) -> None:
    federation.to_review()
    with pytest.raises(CloisterError) as caught:
        waive(federation, who, **changes)
    assert why in caught.value.message
    with reading(federation.appliance.engine) as session:
        assert not session.exec(select(ReleaseWaiverRecord)).all()


def test_nothing_is_waived_behind_somebody_who_decided(federation: Federation) -> None:
    federation.to_review()
    federation.decide("bo")
    with pytest.raises(Refused, match="must not change"):
        waive(federation, "cy")


def test_a_bundle_is_not_handed_out_once_its_waiver_has_ended(federation: Federation) -> None:
    federation.to_review()
    waive(federation, "bo", days=5)
    federation.decide("bo")
    federation.decide("cy")
    federation.seal()
    federation.witness()
    assert federation.seal()
    assert federation.bundle()
    federation.appliance.clock.move(days=6)  # type: ignore[attr-defined]
    with pytest.raises(Refused, match="has ended"):
        federation.bundle()
