"""From a hospital's list to a review at the coordinator: a study goes on without who withdrew, and its model waits."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from coordinator.database import reading, transaction
from coordinator.reviews.decide import open_review
from coordinator.reviews.repository import ReviewRepository
from coordinator.sites.repository import SiteRepository
from protocol.audit_event import EventType
from protocol.errors import CloisterError
from site_agent.cohort.tables import WithdrawnPatient
from site_agent.cohort.withdrawal import LIST, deliver_notices, record, waiting_notices
from site_agent.database import transaction as site_transaction
from tests.simulator.federation import Federation, SimulatedSite

Begin = Callable[..., str]
TRAINING, HELD_OUT = 70, 3
"""Patients of the simulated snapshots, by number: 0 to 19 are held out."""


def patient(number: int) -> bytes:
    return number.to_bytes(32, "big")


def leave(federation: Federation, site: SimulatedSite, *numbers: int) -> tuple[str, ...]:
    return record(
        site.store._engine,
        [patient(number) for number in numbers],
        ground="consent-withdrawn",
        site=site.name,
        key=site.keys.identity,
        now=federation.clock.now(),
        entropy=os.urandom,
    ).studies


class Wire:
    """What a site sends, into the coordinator's own verb; or into nothing, where it suppresses."""

    def __init__(self, federation: Federation, site: str) -> None:
        self.federation, self.site = federation, site

    def post_withdrawal(self, notice: bytes) -> None:
        with transaction(self.federation.appliance.engine) as session:
            row = SiteRepository(session).get(self.site)
            assert row is not None
            open_review(session, self.federation.appliance, row, notice)


@pytest.fixture(autouse=True)
def everybody_is_back(federation: Federation):  # type: ignore[no-untyped-def]
    yield
    for site in federation.sites.values():
        with site_transaction(site.store._engine) as session:
            for gone in session.exec(WithdrawnPatient.__table__.select()).all():  # type: ignore[attr-defined]
                session.delete(session.get_one(WithdrawnPatient, gone.patient_hash))
        (site.settings.home.path / LIST).unlink(missing_ok=True)


def test_a_study_that_charged_them_is_reviewed_and_one_that_did_not_is_not(
    federation: Federation, begin: Begin
) -> None:
    trained, never = begin(), begin()
    site = federation.sites["berlin"]
    federation.driver(trained).run()
    assert leave(federation, site, TRAINING, HELD_OUT) == (trained,)
    sent = deliver_notices(site.store._engine, Wire(federation, "berlin"))  # type: ignore[arg-type]
    assert deliver_notices(site.store._engine, Wire(federation, "berlin")) == []  # type: ignore[arg-type]
    with reading(federation.appliance.engine) as session:
        reviews = ReviewRepository(session)
        assert [row.id for row in reviews.open_of(trained)] == sent
        assert reviews.open_of(never) == []
    entry = next(event for event in federation.events(trained) if event.event is EventType.REVIEW_OPENED)
    assert (entry.actor, entry.labels["causes"]) == ("site:berlin", "consent-withdrawn")
    assert entry.numbers == {}  # how many is nobody's business


def test_a_refused_notice_stays_to_be_sent(federation: Federation, begin: Begin) -> None:
    trained = begin()
    site = federation.sites["dresden"]
    federation.driver(trained).run()
    leave(federation, site, TRAINING + 1)
    with pytest.raises(CloisterError):
        deliver_notices(site.store._engine, Wire(federation, "aachen"))  # type: ignore[arg-type]
    with site_transaction(site.store._engine) as session:
        assert [row.delivered for row in waiting_notices(session, trained)] == [False]


def test_a_site_whose_snapshot_still_holds_them_is_left_out_and_charged_nothing(
    federation: Federation, begin: Begin
) -> None:
    study = begin()
    leave(federation, federation.sites["cologne"], TRAINING + 2)
    federation.driver(study).run()
    assert federation.charged(study, "cologne") == {False: 0, True: 0}
    tried = federation.attempts(study)[0].attempt
    assert dict(tried.excluded) == {"cologne": "refused:policy-denied"}
