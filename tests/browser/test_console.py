"""The console in a real browser: Chromium with a virtual authenticator, against the appliance's own TLS server.

Chromium is the system's; where none is installed these tests are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.database import reading, transaction
from coordinator.releases import review
from coordinator.releases.repository import ReleaseRepository
from protocol.bundle import unpack
from protocol.canonical import parse
from protocol.passkey import is_passkey_signature
from protocol.release import BUNDLE_FILES
from site_agent.releases.trusted_release import verify
from tests.browser.visitor import IN_A_BROWSER, Visitor, browser_that_trusts, playwright
from tests.coordinator.appliances import Served, served_coordinator
from tests.coordinator.test_passkey_approval import plan_anew, site_root
from tests.coordinator.test_release_review import RELEASE, STUDY, Federation, federation
from tests.coordinator.test_release_stopping import PACK

__all__ = ["federation"]
pytestmark = IN_A_BROWSER


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Served]:
    """A coordinator with a host name, served on loopback; the tests integrate the log themselves."""
    with served_coordinator(tmp_path, beside=(), host="localhost") as served:
        yield served


@pytest.fixture
def chromium(local: Served) -> Iterator[playwright.Browser]:
    with browser_that_trusts(local.appliance) as browser:
        yield browser


class Reviewer(Visitor):
    """Somebody who decides on the release."""

    def decide(self, decision: str, reason: str) -> None:
        self.page.goto(f"/console/releases/{RELEASE}")
        self.page.get_by_label("Reason").fill(reason)
        self.page.get_by_role("button", name=decision).click()


def recorded(made: Federation) -> list[tuple[str, bool, str | None]]:
    with reading(made.appliance.engine) as session:
        return [(row.person, row.approve, row.reason) for row in ReleaseRepository(session).votes(RELEASE)]


def test_two_people_approve_in_the_browser_and_a_site_installs_what_they_signed(
    federation: Federation, local: Served, chromium: playwright.Browser
) -> None:
    bo, cy = (Reviewer(name, local, chromium) for name in ("bo", "cy"))
    fingerprints = set()
    for visitor in (bo, cy):
        visitor.sign_in()
        fingerprints.add(visitor.register())
    plan_anew(federation)
    federation.to_review()
    bo.decide("Approve and sign", "the risks are weighed")
    playwright.expect(bo.page.locator("#decisions")).to_contain_text("bo, compliance officer: approve")
    assert recorded(federation) == [("bo", True, "the risks are weighed")]
    bo.page.reload()
    playwright.expect(bo.page.get_by_role("button", name="Approve and sign")).to_have_count(0)
    cy.decide("Approve and sign", "it helps at the bedside")
    playwright.expect(cy.page.locator("#state")).to_have_text("approved")
    assert bo.troubles == cy.troubles == [], "the pages keep to their own content security policy"
    federation.seal()
    federation.witness()
    assert federation.seal()
    installable = verify(unpack(federation.bundle(), BUNDLE_FILES), site_root(federation, local.address))
    assert installable.logged.approved.methods == ("passkey",)
    trusted = installable.logged.approved.trusted
    assert {key for approver in trusted.plan.approvers for key in approver.key_ids} >= fingerprints


def test_an_authenticator_that_does_not_know_the_person_signs_nothing(
    federation: Federation, local: Served, chromium: playwright.Browser
) -> None:
    bo = Reviewer("bo", local, chromium)
    bo.sign_in()
    bo.knows_them(False)
    bo.page.goto("/console/passkeys")
    bo.page.get_by_role("button", name="Register a passkey").click()
    playwright.expect(bo.page.get_by_role("status")).to_contain_text("gave no signature")
    bo.knows_them(True)
    bo.register()
    plan_anew(federation)
    federation.to_review()
    bo.knows_them(False)
    bo.decide("Approve and sign", "read it")
    playwright.expect(bo.page.get_by_role("status")).to_contain_text("gave no signature")
    assert recorded(federation) == []
    bo.knows_them(True)
    bo.page.get_by_role("button", name="Reject and sign").click()
    playwright.expect(bo.page.locator("#state")).to_have_text("rejected")
    assert recorded(federation) == [("bo", False, "read it")]


def test_a_revoked_passkey_is_gone_and_a_page_says_what_to_do_instead(
    federation: Federation, local: Served, chromium: playwright.Browser
) -> None:
    bo = Reviewer("bo", local, chromium)
    bo.sign_in()
    bo.register()
    plan_anew(federation)
    federation.to_review()
    bo.page.goto("/console/passkeys")
    bo.page.get_by_role("button", name="Revoke").click()
    playwright.expect(bo.page.locator("code.fingerprint")).to_have_count(0)
    bo.page.goto(f"/console/releases/{RELEASE}")
    playwright.expect(bo.page.get_by_text("cloister release approve")).to_be_visible()
    bo.page.get_by_role("button", name="Sign out").click()
    playwright.expect(bo.page.get_by_role("heading", name="Sign in")).to_be_visible()
    bo.page.goto(f"/console/releases/{RELEASE}")
    playwright.expect(bo.page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_one_rule_is_answered_for_in_the_browser_before_anybody_decided(
    federation: Federation, local: Served, chromium: playwright.Browser
) -> None:
    bo = Reviewer("bo", local, chromium)
    bo.sign_in()
    bo.register()
    plan_anew(federation)
    with transaction(federation.appliance.engine) as session:
        review.draft(
            session, federation.appliance, federation.people["ada"], study=STUDY, intended_use="research.heart",
            use_mode="decision-support",
        )  # fmt: skip
    with transaction(federation.appliance.engine) as session:
        review.submit(session, federation.appliance, federation.people["ada"], RELEASE)
    bo.page.goto(f"/console/releases/{RELEASE}")
    bo.page.get_by_label("Rule").select_option(f"{PACK} A03")
    bo.page.get_by_label("Why you answer for it").fill("until the audit in spring")
    bo.knows_them(False)
    bo.page.get_by_role("button", name="Waive and sign").click()
    playwright.expect(bo.page.get_by_role("status")).to_contain_text("gave no signature")
    bo.knows_them(True)
    bo.page.get_by_role("button", name="Waive and sign").click()
    playwright.expect(bo.page.locator("#decisions")).to_contain_text(f"bo answers for {PACK} A03 until")
    assert bo.troubles == []
    with reading(federation.appliance.engine) as session:
        (row,) = ReleaseRepository(session).waivers(RELEASE)
        assert (row.person, row.rule, row.reason) == ("bo", "A03", "until the audit in spring")
        assert is_passkey_signature(parse(row.envelope))
