"""The console in a real browser: Chromium with a virtual authenticator, against the appliance's own TLS server.

Chromium is the system's; where none is installed these tests are skipped.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyotp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coordinator.database import reading, transaction
from coordinator.people import local_sign_in
from coordinator.releases import review
from coordinator.releases.repository import ReleaseRepository
from protocol.bundle import unpack
from protocol.canonical import parse
from protocol.passkey import is_passkey_signature
from protocol.release import BUNDLE_FILES
from site_agent.releases.trusted_release import verify
from tests.coordinator.appliances import Served, served_coordinator
from tests.coordinator.test_passkey_approval import plan_anew, site_root
from tests.coordinator.test_release_review import RELEASE, STUDY, Federation, federation
from tests.coordinator.test_release_stopping import PACK

__all__ = ["federation"]
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed on this machine"),
]
PASSWORD = "twelve plums and a kite"
SECONDS = 15


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Served]:
    """A coordinator with a host name, served on loopback; the tests integrate the log themselves."""
    with served_coordinator(tmp_path, beside=(), host="localhost") as served:
        yield served


@pytest.fixture
def chromium(local: Served) -> Iterator[playwright.Browser]:
    """A browser that trusts this one server's key, as it would trust the authority once that was imported."""
    certificate = x509.load_pem_x509_certificate(local.appliance.keys.server_certificate_path.read_bytes())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(hashlib.sha256(key).digest()).decode()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=[f"--ignore-certificate-errors-spki-list={pin}", "--no-proxy-server"]
        )
        yield browser
        browser.close()


@dataclass
class Visitor:
    """A person at a browser of their own, with an authenticator that knows them."""

    name: str
    served: Served
    browser: playwright.Browser

    def __post_init__(self) -> None:
        made = local_sign_in.begin(self.served.appliance, self.name, PASSWORD)
        self.secret = made.secret
        with transaction(self.served.appliance.engine) as session:
            local_sign_in.confirm(session, self.served.appliance, self.name, self._code())
        self.served.clock.move(seconds=30)  # a code counts once
        context = self.browser.new_context(base_url=f"https://{self.served.address}")
        self.page = context.new_page()
        self.page.set_default_timeout(1000 * SECONDS)
        self.troubles: list[str] = []
        self.page.on("console", lambda said: self.troubles.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.protocol = context.new_cdp_session(self.page)
        self.protocol.send("WebAuthn.enable")
        options = {
            "protocol": "ctap2",
            "transport": "internal",
            "hasResidentKey": True,
            "hasUserVerification": True,
            "isUserVerified": True,
            "automaticPresenceSimulation": True,
        }
        added = self.protocol.send("WebAuthn.addVirtualAuthenticator", {"options": options})
        self.authenticator = added["authenticatorId"]

    def _code(self) -> str:
        return pyotp.TOTP(self.secret).at(self.served.clock())

    def knows_them(self, verified: bool) -> None:
        """Whether the authenticator recognises the person: finger, face, PIN."""
        told = {"authenticatorId": self.authenticator, "isUserVerified": verified}
        self.protocol.send("WebAuthn.setUserVerified", told)

    def sign_in(self) -> None:
        self.page.goto("/console")
        self.page.get_by_label("Name").fill(self.name)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_label("One-time code").fill(self._code())
        self.page.get_by_role("button", name="Sign in").click()
        playwright.expect(self.page.get_by_role("heading", name="Releases")).to_be_visible()

    def register(self) -> str:
        """The new passkey's fingerprint, as the page shows it."""
        self.page.goto("/console/passkeys")
        self.page.get_by_role("button", name="Register a passkey").click()
        shown = self.page.locator("code.fingerprint")
        playwright.expect(shown).to_have_count(1)
        return str(shown.text_content())

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
    bo, cy = (Visitor(name, local, chromium) for name in ("bo", "cy"))
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
    bo = Visitor("bo", local, chromium)
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
    bo = Visitor("bo", local, chromium)
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
    bo = Visitor("bo", local, chromium)
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
