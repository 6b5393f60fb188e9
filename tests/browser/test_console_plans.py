"""A held plan, read and decided in a real browser by an approver's passkey."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.appliance import Appliance
from coordinator.database import reading
from coordinator.studies.repository import StudyRepository
from coordinator.studies.states import StudyState
from protocol.canonical import parse
from protocol.passkey import is_passkey_signature
from tests.browser.visitor import IN_A_BROWSER, Visitor, browser_that_trusts, playwright
from tests.coordinator.appliances import MovingClock, bound_socket, serving
from tests.simulator.federation import Federation, build_federation, study_spec

pytestmark = IN_A_BROWSER
ATTACK = "<img src=x onerror=document.getElementById('decide-plan').remove()>"


@dataclass
class Stage:
    federation: Federation
    carl: Visitor

    def held(self, study: str, title: str = "Hearts") -> str:
        spec = study_spec(study=study, title=title, privacy={"epsilon": 3.0, "delta": 1e-4, "retries": 3})
        assert self.federation.propose(spec).state is StudyState.HELD
        return study

    def open(self, study: str) -> None:
        self.carl.page.goto("/console/studies")
        self.carl.page.get_by_role("link", name=study).click()


class _Moved(MovingClock):
    """The simulator's clock, as a visitor knows it."""

    def __init__(self, federation: Federation) -> None:
        super().__init__()
        self._clock = federation.clock

    def __call__(self) -> datetime:
        return self._clock.now()

    def move(self, **span: float) -> None:
        self._clock.seconds += span["seconds"]


@dataclass
class Place:
    """The simulated federation's coordinator, served."""

    appliance: Appliance
    address: str
    clock: MovingClock


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with bound_socket() as listener:
        address = f"localhost:{listener.getsockname()[1]}"
        federation = build_federation(tmp_path, address=address, begins=datetime.now(UTC))
        place = Place(federation.appliance, address, _Moved(federation))
        with serving(place.appliance, listener), browser_that_trusts(place.appliance) as browser:
            carl = Visitor("carl", place, browser)
            carl.sign_in()
            yield Stage(federation, carl)


def test_a_held_plan_is_approved_by_a_passkey_that_knows_the_person(stage: Stage) -> None:
    stage.carl.register()
    study = stage.held("plan-by-passkey", title=ATTACK)
    stage.open(study)
    page = stage.carl.page
    playwright.expect(page.get_by_text(ATTACK, exact=True)).to_be_visible()
    digest = stage.federation.row(study).plan_digest
    playwright.expect(page.locator("#digest")).to_have_text(digest)
    stage.carl.knows_them(False)
    page.get_by_role("button", name="Approve and sign").click()
    playwright.expect(page.get_by_role("status")).to_contain_text("gave no signature")
    assert stage.federation.state(study) is StudyState.HELD
    stage.carl.knows_them(True)
    page.get_by_role("button", name="Approve and sign").click()
    playwright.expect(page.locator("#decisions")).to_contain_text("carl, compliance officer: approve")
    playwright.expect(page.get_by_role("button", name="Approve and sign")).to_have_count(0)
    assert stage.federation.state(study) is StudyState.CONSENTING
    with reading(stage.federation.appliance.engine) as session:
        [vote] = StudyRepository(session).approvals(study)
        assert is_passkey_signature(parse(vote.envelope))
    assert stage.carl.troubles == []


def test_a_plan_that_changes_while_it_is_read_is_not_signed_and_a_rejection_stops_it(stage: Stage) -> None:
    stage.carl.register()
    study = stage.held("plan-refused")
    stage.open(study)
    page = stage.carl.page
    page.evaluate("document.getElementById('decide-plan').dataset.digest = 'sha256:' + '0'.repeat(64)")
    page.get_by_role("button", name="Reject and sign").click()
    playwright.expect(page.get_by_role("status")).to_contain_text("changed while you read it")
    assert stage.federation.state(study) is StudyState.HELD
    page.reload()
    page.get_by_role("button", name="Reject and sign").click()
    playwright.expect(page.locator("#state")).to_have_text("stopped")
    assert stage.federation.state(study) is StudyState.STOPPED


def test_a_plan_made_before_the_passkey_is_signed_by_key(stage: Stage) -> None:
    study = stage.held("plan-before")
    stage.carl.register()
    stage.open(study)
    playwright.expect(stage.carl.page.get_by_text(f"cloister study approve {study}")).to_be_visible()
    playwright.expect(stage.carl.page.get_by_role("button", name="Approve and sign")).to_have_count(0)
