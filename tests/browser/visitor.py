"""A person at a real browser: Chromium, the system's, with a virtual authenticator."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pyotp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coordinator.appliance import Appliance
from coordinator.database import transaction
from coordinator.people import local_sign_in
from tests.coordinator.appliances import MovingClock

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IN_A_BROWSER = [
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed on this machine"),
]
PASSWORD = "twelve plums and a kite"
SECONDS = 15


@contextlib.contextmanager
def browser_that_trusts(appliance: Appliance) -> Iterator[playwright.Browser]:
    """A browser that trusts this one server's key, as it would trust the authority once that was imported."""
    certificate = x509.load_pem_x509_certificate(appliance.keys.server_certificate_path.read_bytes())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(hashlib.sha256(key).digest()).decode()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=[f"--ignore-certificate-errors-spki-list={pin}", "--no-proxy-server"]
        )
        yield browser
        browser.close()


class Place(Protocol):
    """A coordinator that is served."""

    appliance: Appliance
    address: str
    clock: MovingClock


@dataclass
class Visitor:
    """A person at a browser of their own, with an authenticator that knows them."""

    name: str
    served: Place
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
