"""The console over HTTP: what strangers see, what each answer forbids the browser, and that no value becomes markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyotp
import pytest

from coordinator.console.pages import page
from coordinator.database import reading, transaction
from coordinator.identity import SESSION_COOKIE
from coordinator.people import accounts
from coordinator.people.repository import PersonRepository
from coordinator.people.states import AuthLevel, Medium
from protocol.enrolment import Token
from protocol.errors import Malformed
from protocol.identifiers import Role
from tests.coordinator.appliances import Served, served_coordinator
from tests.coordinator.test_release_review import RELEASE, STUDY, Federation, federation

__all__ = ["federation"]
pytestmark = pytest.mark.processes
PASSWORD = "twelve plums and a kite"


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Served]:
    with served_coordinator(tmp_path, beside=()) as served:
        yield served


def opened(served: Served, name: str) -> str:
    with transaction(served.appliance.engine) as session:
        person = PersonRepository(session).get(name)
        assert person is not None
        return accounts.open_session(session, served.appliance, person, AuthLevel.PASSWORD_AND_CODE, Medium.BROWSER)


def get(served: Served, path: str, token: str | None = None) -> httpx.Response:
    headers = {} if token is None else {"cookie": f"{SESSION_COOKIE}={token}"}
    with served.client() as client:
        return client.get(path, headers=headers)


def send(served: Served, path: str, **fields: str) -> httpx.Response:
    with served.client() as client:
        return client.post(path, data=fields, headers={"origin": f"https://{served.address}"})


@pytest.mark.parametrize(
    "path",
    ["/console", "/console/passkeys", "/console/studies", f"/console/studies/{STUDY}", f"/console/releases/{RELEASE}"],
)
def test_a_stranger_is_sent_to_sign_in_and_learns_nothing(local: Served, path: str) -> None:
    answer = get(local, path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/sign-in")
    assert get(local, path, "a" * 43).status_code == 303


def test_every_page_forbids_scripts_frames_and_caches_of_others(federation: Federation, local: Served) -> None:
    federation.to_review()
    token = opened(local, "bo")
    for path in (
        "",
        "/sign-in",
        "/join",
        "/passkeys",
        "/studies",
        f"/studies/{STUDY}",
        f"/releases/{RELEASE}",
        "/releases/nothing",
        "/console.js",
    ):
        answer = get(local, f"/console{path}", token)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        if "html" in answer.headers["content-type"]:
            inline = re.findall(
                r"<script(?![^>]*\bsrc=)|\bstyle=|\bon[a-z]+=|javascript:|https?://(?!127)", answer.text
            )
            assert inline == [], f"{path} needs nothing that its policy forbids, and nothing from elsewhere"


def test_the_page_of_a_release_shows_what_would_be_signed(federation: Federation, local: Served) -> None:
    federation.to_review()
    federation.decide("bo")
    shown = html.unescape(get(local, f"/console/releases/{RELEASE}", opened(local, "cy")).text)
    with reading(local.appliance.engine) as session:
        from coordinator.releases.repository import ReleaseRepository

        releases = ReleaseRepository(session)
        assert releases.get(RELEASE).subject_digest in shown
        assert releases.files(RELEASE)["model_card.md"].decode() in shown
    assert "bo, compliance officer: approve" in shown
    assert "cloister release approve" in shown, "this plan fixes no passkeys"
    assert "Approve and sign" not in shown


def test_the_page_of_a_study_shows_its_plan_and_asks_nobody_once_it_was_decided(
    federation: Federation, local: Served
) -> None:
    answer = get(local, f"/console/studies/{STUDY}", opened(local, "bo"))
    assert answer.status_code == 200
    assert federation.plan_digest in answer.text
    assert "Approve and sign" not in answer.text
    assert get(local, "/console/studies/nothing", opened(local, "bo")).status_code == 404


def test_no_value_becomes_markup(local: Served) -> None:
    attack = "<script>alert(1)</script>\"' onerror=x"
    answer = page("trouble.html", caller=None, error=Malformed(attack, attack))
    assert b"<script>alert" not in answer.body
    assert b"&lt;script&gt;" in answer.body
    refused = send(local, "/console/join", token=attack, password=attack)
    assert refused.status_code == 403
    assert "<script>alert" not in refused.text
    missing = get(local, "/console/releases/%3Cscript%3Ealert(1)", None)
    assert "alert" not in missing.text


def test_forms_of_another_site_are_refused(local: Served) -> None:
    for path in ("/console/sign-in", "/console/join", "/console/join/confirm"):
        with local.client() as client:
            answer = client.post(path, data={"name": "bo"}, headers={"origin": "https://evil.example"})
        assert answer.status_code == 403


def test_signing_out_needs_the_sessions_own_token(federation: Federation, local: Served) -> None:
    token = opened(local, "bo")
    with local.client() as client:
        forged = client.post("/console/sign-out", headers={"cookie": f"{SESSION_COOKIE}={token}"})
    assert forged.status_code == 403
    assert get(local, "/console", token).status_code == 200


def test_a_coordinator_without_a_host_name_says_that_passkeys_need_one(federation: Federation, local: Served) -> None:
    shown = get(local, "/console/passkeys", opened(local, "bo")).text
    assert "host name" in shown
    assert 'id="register"' not in shown


def test_an_invited_person_joins_with_a_token_and_signs_in(local: Served) -> None:
    with transaction(local.appliance.engine) as session:
        token = accounts.invite(session, local.appliance, "flo", Role.CLINICAL_LEAD)
    weak = send(local, "/console/join", token=token.to_text(), password="short")
    assert weak.status_code == 403
    begun = send(local, "/console/join", token=token.to_text(), password=PASSWORD)
    secret = re.search(r'id="secret">([A-Z2-7]+)<', begun.text)
    assert secret is not None
    code = pyotp.TOTP(secret[1]).at(local.clock())
    wrong = f"{(int(code) + 1) % 10**6:06}"
    assert send(local, "/console/join/confirm", token=token.to_text(), code=wrong).status_code == 403
    assert send(local, "/console/join/confirm", token=token.to_text(), code=code).status_code == 303
    assert send(local, "/console/join", token=token.to_text(), password=PASSWORD).status_code == 403, "once"
    local.clock.move(seconds=30)
    refused = send(local, "/console/sign-in", name="flo", password="twelve plums and a cat", code=code)
    assert (refused.status_code, SESSION_COOKIE in refused.cookies) == (403, False)
    code = pyotp.TOTP(secret[1]).at(local.clock())
    signed_in = send(local, "/console/sign-in", name="flo", password=PASSWORD, code=code)
    assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/console")
    cookie = signed_in.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "secure", "samesite=strict"))


def test_a_sites_token_or_another_coordinators_is_refused(local: Served) -> None:
    with transaction(local.appliance.engine) as session:
        token = accounts.invite(session, local.appliance, "flo", Role.CLINICAL_LEAD)
    for change in ({"kind": "site"}, {"ca": "sha256:" + "0" * 64}):
        other = Token.model_validate({**token.model_dump(), **change})
        assert send(local, "/console/join", token=other.to_text(), password=PASSWORD).status_code == 403
