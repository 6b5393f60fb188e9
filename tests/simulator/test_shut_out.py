"""A site that a person shuts out: not invited from the next attempt on, whatever it sends; the log says who and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlmodel import select

from coordinator.audit.tables import LogEntry
from coordinator.database import reading, transaction
from coordinator.errors import Conflict, NotFound
from coordinator.people.repository import PersonRepository
from coordinator.rounds.exchange import Answer
from coordinator.studies.exclude import ask, confirm
from coordinator.studies.states import StudyConflict, StudyState
from protocol.audit_event import EventType
from protocol.errors import Malformed, Refused
from tests.simulator import invariants
from tests.simulator.federation import PASS, Delivery, Federation

Begin = Callable[..., str]
WHY = "Its export turned out to hold another column"


def asked(federation: Federation, study: str, site: str, reason: str = WHY) -> None:
    with transaction(federation.appliance.engine) as session:
        ask(session, federation.appliance, federation.researcher, study, site, reason=reason)


def confirmed(federation: Federation, study: str, site: str, by: str = "carl") -> tuple[str, ...]:
    with transaction(federation.appliance.engine) as session:
        person = PersonRepository(session).get(by)
        assert person is not None
        return confirm(session, federation.appliance, person, study, site)


def shut_out(federation: Federation, study: str, site: str, reason: str = WHY) -> tuple[str, ...]:
    asked(federation, study, site, reason)
    return confirmed(federation, study, site)


def after(federation: Federation, group: str, action: Callable[[], object]) -> None:
    def once() -> None:
        if federation.exchange.requests[-1][1] == group:
            federation.exchange.after_request = lambda: None
            action()

    federation.exchange.after_request = once


def test_the_next_round_leaves_it_out_and_says_so(federation: Federation, begin: Begin) -> None:
    study = begin()
    after(federation, "train-1-1", lambda: shut_out(federation, study, "cologne"))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    rounds = federation.records(study)
    assert "cologne" in rounds[0]["contributed"]  # what it added stays in the model
    for record in rounds[1:]:
        assert record["invited"] == ["aachen", "berlin", "dresden"]
        assert record["excluded"] == {"cologne": "shut-out"}
    assert federation.charged(study, "cologne")[False] == 1
    entry = next(event for event in federation.events(study) if event.event == "study.site-shut-out")
    assert (entry.groups["excluded"], entry.groups["cohort"]) == (("cologne",), ("aachen", "berlin", "dresden"))
    assert entry.actor.startswith("person-")
    with reading(federation.appliance.engine) as session:
        leaves = b"".join(row.leaf for row in session.exec(select(LogEntry)))
    assert WHY.encode() not in leaves
    assert b"rosa" not in leaves


def test_what_it_keeps_sending_counts_nowhere(federation: Federation, begin: Begin) -> None:
    study = begin()
    kept: list[bytes] = []

    def keeps_sending(delivery: Delivery) -> Answer | None:
        """Once shut out, its old contribution comes in the place of another site's."""
        if delivery.site.name == "cologne" and delivery.group == "train-1-1":
            kept.append(delivery.answer())
            return kept[0]
        return kept[0] if delivery.site.name == "berlin" and delivery.group == "train-2-1" else PASS

    federation.exchange.faults.append(keeps_sending)
    after(federation, "train-1-1", lambda: shut_out(federation, study, "cologne"))
    # Three are left, the agreed minimum: without berlin's own answer the second round has too few.
    assert federation.driver(study).run() is StudyState.FAILED
    tried = next(a.attempt for a in federation.attempts(study) if a.attempt.round == 2)
    assert tried.cohort == ("aachen", "berlin", "dresden")
    assert dict(tried.excluded) == {"berlin": "bad-signature"}


def test_never_below_the_minimum_that_the_sites_granted(federation: Federation, begin: Begin) -> None:
    study = begin()
    assert shut_out(federation, study, "cologne") == ("aachen", "berlin", "dresden")
    with pytest.raises(StudyConflict, match="only 2 sites are left"):
        shut_out(federation, study, "berlin")
    with pytest.raises(StudyConflict, match="takes no part"):
        shut_out(federation, study, "cologne")
    assert federation.driver(study).run() is StudyState.CANDIDATE
    assert all("cologne" not in record["invited"] for record in federation.records(study))
    with pytest.raises(StudyConflict, match="candidate"):
        shut_out(federation, study, "aachen")


def test_it_takes_a_person_of_the_study_and_a_reason(federation: Federation, begin: Begin) -> None:
    study = begin()
    with pytest.raises(Malformed):
        shut_out(federation, study, "cologne", reason="")
    other = federation.researcher.model_copy(update={"name": "ruth"})
    with pytest.raises(Refused), transaction(federation.appliance.engine) as session:
        ask(session, federation.appliance, other, study, "cologne", reason=WHY)


def test_one_person_or_one_role_shuts_nobody_out(federation: Federation, begin: Begin) -> None:
    """An insider alone takes no hospital out of a study; asking changes nothing."""
    study = begin()
    with pytest.raises(NotFound, match="Nobody asked"):
        confirmed(federation, study, "cologne")
    asked(federation, study, "cologne")
    with pytest.raises(Conflict, match="already"):
        asked(federation, study, "cologne")
    with pytest.raises(Refused, match="another person"):
        confirmed(federation, study, "cologne", by="rosa")
    twin = federation.researcher.model_copy(update={"role": "administrator"})
    with pytest.raises(Refused, match="another person"), transaction(federation.appliance.engine) as session:
        confirm(session, federation.appliance, twin, study, "cologne")
    assert federation.driver(study).run() is StudyState.CANDIDATE
    assert all("cologne" in record["contributed"] for record in federation.records(study))
    assert [event.event for event in federation.events(study)].count(EventType.SHUT_OUT_ASKED) == 1
    assert EventType.SITE_SHUT_OUT not in {event.event for event in federation.events(study)}
