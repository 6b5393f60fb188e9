"""A dossier stays ten years out of effect; then two people in two roles may remove it, and its name stays taken."""

from __future__ import annotations

from datetime import date

import pytest

from coordinator.database import reading, transaction
from coordinator.errors import Conflict, NotFound
from coordinator.policy.active import active_policy
from coordinator.releases.repository import ReleaseRepository
from coordinator.retention import dossier
from coordinator.retention.erasure import ErasureDenied
from coordinator.retention.gate import plan
from policies.decided import Decided
from policies.retention import RecordClass
from protocol.audit_event import EventType
from protocol.errors import Refused
from tests.coordinator.test_release_review import RELEASE, STUDY, Federation, federation
from tests.coordinator.test_release_stopping import released

__all__ = ["federation"]
MODEL_UNTIL = date(2036, 1, 1)


def pass_until(made: Federation, day: date) -> None:
    made.appliance.clock.move(days=(day - made.appliance.clock().date()).days)  # type: ignore[attr-defined]


def ask(made: Federation, who: str) -> None:
    with transaction(made.appliance.engine) as session:
        policy = active_policy(session, made.appliance)
        dossier.ask(session, made.appliance, policy, made.people[who], RELEASE)


def confirm(made: Federation, who: str) -> Decided:
    with transaction(made.appliance.engine) as session:
        policy = active_policy(session, made.appliance)
        return dossier.confirm(session, made.appliance, policy, made.people[who], RELEASE)


def there(made: Federation) -> bool:
    with reading(made.appliance.engine) as session:
        judged = plan(session, made.appliance, active_policy(session, made.appliance))
    return any(one.holding.record_class is RecordClass.DOSSIER for one in judged)


@pytest.fixture
def old(federation: Federation) -> Federation:
    released(federation)
    pass_until(federation, date(2046, 1, 5))
    return federation


def test_it_is_kept_for_ten_years(federation: Federation) -> None:
    released(federation)
    for day in (date(2030, 1, 1), date(2045, 12, 28)):
        pass_until(federation, day)
        with pytest.raises(ErasureDenied, match="ten years"):
            ask(federation, "bo")
    assert there(federation)


def test_two_people_in_two_roles_remove_it_and_the_log_tells(old: Federation) -> None:
    ask(old, "bo")
    assert there(old)
    assert confirm(old, "cy").decision.allowed
    assert not there(old)
    with reading(old.appliance.engine) as session:
        with pytest.raises(NotFound):
            ReleaseRepository(session).get(RELEASE)
        assert ReleaseRepository(session).removed_of(STUDY) == 1
    told = [event for event in old.events() if event.event.value.startswith("dossier.")]
    assert [event.event for event in told] == [EventType.DOSSIER_REMOVAL_ASKED, EventType.DOSSIER_REMOVED]
    assert {event.subject for event in told} == {f"release:{RELEASE}"}
    assert "decision" in told[1].digests
    with pytest.raises(Conflict, match="gone already"):
        confirm(old, "cy")
    old.witness()  # the log goes on


@pytest.mark.parametrize(("asker", "confirmer"), [("bo", "bo"), ("cy", "eve")])
def test_one_person_or_one_role_removes_nothing(old: Federation, asker: str, confirmer: str) -> None:
    ask(old, asker)
    with pytest.raises(Refused, match="another person in another role"):
        confirm(old, confirmer)
    assert there(old)


def test_nobody_confirms_what_nobody_asked(old: Federation) -> None:
    with pytest.raises(NotFound, match="Nobody asked"):
        confirm(old, "cy")


def test_an_incident_between_the_two_holds_it_and_the_denial_is_on_record(old: Federation) -> None:
    from coordinator.incidents.report import open_by_person
    from protocol.incident import Incident
    from protocol.timestamp import timestamp

    ask(old, "bo")
    happened = Incident(
        incident="incident-00000000000000a1", kind="security", scope="federation", about="everything",
        aware_at=timestamp(old.appliance.clock()),
    )  # fmt: skip
    with transaction(old.appliance.engine) as session:
        open_by_person(session, old.appliance, old.people["cy"], happened, words="A break-in")
    decided = confirm(old, "cy")
    assert not decided.decision.allowed
    assert "G19-kept" in {finding.rule for finding in decided.decision.findings}
    assert there(old)
    last = [event for event in old.events() if event.event is EventType.POLICY_DECIDED][-1]
    assert (last.labels["gate"], last.labels["outcome"]) == ("retention", "deny")
