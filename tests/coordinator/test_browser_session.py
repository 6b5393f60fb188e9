"""A browser's session: its cookie, its CSRF token, and what another site's page or a thief gets."""

from __future__ import annotations

import httpx
import pytest

from coordinator.database import transaction
from coordinator.identity import CSRF_HEADER, SESSION_COOKIE
from coordinator.people import accounts
from coordinator.people.repository import PersonRepository
from coordinator.people.states import AuthLevel, Medium
from protocol.identifiers import Role
from tests.coordinator.appliances import Served, TestPerson

pytestmark = pytest.mark.processes


class Browser:
    """ada, signed in with a cookie."""

    def __init__(self, served: Served, role: Role = Role.COMPLIANCE_OFFICER, name: str = "ada") -> None:
        self.served = served
        self.person = TestPerson(name)
        self.person.join(served, role)
        self.token = self.open()
        self.csrf = self.get("/v1/people/me").json()["csrf"]

    def open(self) -> str:
        with transaction(self.served.appliance.engine) as session:
            person = PersonRepository(session).get(self.person.name)
            assert person is not None
            return accounts.open_session(
                session, self.served.appliance, person, AuthLevel.PASSWORD_AND_CODE, Medium.BROWSER
            )

    def get(self, path: str) -> httpx.Response:
        return self.send("GET", path)

    def send(self, method: str, path: str, **what: object) -> httpx.Response:
        headers = {"cookie": f"{SESSION_COOKIE}={self.token}", **what.pop("headers", {})}  # type: ignore[dict-item]
        with self.served.client() as client:
            return client.request(method, path, headers=headers, **what)  # type: ignore[arg-type]


@pytest.fixture
def browser(served: Served) -> Browser:
    return Browser(served)


def test_the_cookie_tells_who_it_is_and_by_what(browser: Browser) -> None:
    me = browser.get("/v1/people/me").json()
    assert (me["name"], me["role"], me["level"]) == ("ada", "compliance_officer", "password-and-code")


def test_a_change_needs_the_sessions_own_token(browser: Browser) -> None:
    path = "/v1/people/me/password"
    with_header = {"headers": {CSRF_HEADER: browser.csrf}, "json": {"password": "twelve plums and a kite"}}
    assert browser.send("POST", path, json={"password": "x"}).json()["code"] == "forbidden"
    assert browser.send("POST", path, headers={CSRF_HEADER: "0" * 64}, json={"password": "x"}).status_code == 403
    other = Browser(browser.served, Role.AUDITOR, "bob")
    assert browser.send("POST", path, headers={CSRF_HEADER: other.csrf}, json={"password": "x"}).status_code == 403
    assert browser.send("POST", path, **with_header).status_code == 200
    from_elsewhere = {CSRF_HEADER: browser.csrf, "origin": "https://evil.example"}
    assert browser.send("POST", path, headers=from_elsewhere, json=with_header["json"]).status_code == 403
    ours = {CSRF_HEADER: browser.csrf, "origin": f"https://{browser.served.address}"}
    assert browser.send("POST", path, headers=ours, json=with_header["json"]).status_code == 200


def test_a_form_may_show_the_token_in_a_field(browser: Browser) -> None:
    """A form's DELETE doesn't exist; what matters is that the field is looked at for a form, and nothing else is."""
    assert browser.send("DELETE", "/v1/people/session", data={"csrf": "0" * 64}).status_code == 403
    assert browser.send("DELETE", "/v1/people/session", json={"csrf": browser.csrf}).status_code == 403
    assert browser.send("DELETE", "/v1/people/session", data={"csrf": browser.csrf}).status_code == 204
    assert browser.get("/v1/people/me").status_code == 401


def test_signing_in_again_makes_the_earlier_csrf_token_worthless(browser: Browser) -> None:
    stolen, old = browser.token, browser.csrf
    browser.token = browser.open()
    assert browser.send("DELETE", "/v1/people/session", headers={CSRF_HEADER: old}).status_code == 403
    browser.token = stolen
    assert browser.get("/v1/people/me").status_code == 401


def test_a_cookie_is_no_bearer_token_and_a_bearer_token_no_cookie(browser: Browser) -> None:
    with browser.served.client(token=browser.token) as client:
        assert client.get("/v1/people/me").status_code == 401
    bearer = browser.person.sign_in(browser.served)
    with browser.served.client(token=bearer) as client:
        assert client.get("/v1/people/me").json()["level"] == "key"
    browser.token = bearer
    assert browser.get("/v1/people/me").status_code == 401


def test_a_browser_that_is_left_alone_is_logged_off(browser: Browser) -> None:
    browser.served.clock.move(minutes=16)
    assert browser.get("/v1/people/me").status_code == 401


def test_the_cookie_is_of_this_host_over_tls_and_hidden_from_scripts(served: Served) -> None:
    import pyotp

    with transaction(served.appliance.engine) as session:
        token = accounts.invite(session, served.appliance, "ada", Role.AUDITOR)
    told, password = {"secret": token.secret, "name": "ada"}, "twelve plums and a kite"
    with served.client() as client:
        secret = client.post("/v1/people/register-password", json={**told, "password": password}).json()["secret"]
        confirmation = {**told, "code": pyotp.TOTP(secret).at(served.clock())}
        assert client.post("/v1/people/register-password/confirm", json=confirmation).status_code == 201
        served.clock.move(seconds=60)
        body = {"name": "ada", "password": password, "code": pyotp.TOTP(secret).at(served.clock()), "browser": True}
        elsewhere = client.post("/v1/people/local-session", json=body, headers={"origin": "https://evil.example"})
        assert elsewhere.status_code == 403, "nobody is signed in by another site's page"
        answer = client.post("/v1/people/local-session", json=body)
        assert answer.status_code == 201, answer.text
        assert "token" not in answer.json()
        name, *attributes = answer.headers["set-cookie"].split("; ")
        assert name.startswith(f"{SESSION_COOKIE}=")
        assert {item.lower() for item in attributes} == {"httponly", "path=/", "samesite=strict", "secure"}
        signed_out = client.delete("/v1/people/session", headers={CSRF_HEADER: answer.json()["csrf"]})
        assert signed_out.status_code == 204
        assert client.get("/v1/people/me").status_code == 401
