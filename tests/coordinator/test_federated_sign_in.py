"""Signing in through an OpenID provider that really runs: who gets in, at which level, and what an attacker gets."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from coordinator.database import reading, transaction
from coordinator.errors import Conflict
from coordinator.people import accounts, federated_sign_in
from coordinator.people.identity_provider import load_identity_provider, save_identity_provider
from coordinator.people.openid import ProviderRefused, read_id_token
from coordinator.people.repository import PersonRepository
from coordinator.settings import SettingsError
from protocol.identifiers import Role
from tests.coordinator.appliances import Served, TestPerson, trusting
from tests.coordinator.openid_provider import CLIENT, SECRET, Provider, serving

pytestmark = pytest.mark.processes
START, BACK = "/v1/people/federated/start", "/v1/people/federated/callback"


@pytest.fixture
def provider(served: Served, tmp_path: Path) -> Iterator[Provider]:
    with serving(tmp_path, f"https://{served.address}{BACK}") as running:
        save_identity_provider(
            served.appliance.home, issuer=running.issuer, client_id=CLIENT, secret=SECRET, ca=running.ca,
            multi_factor=(),
        )  # fmt: skip
        yield running


def invite(served: Served, name: str, subject: str, role: Role = Role.AUDITOR) -> None:
    with transaction(served.appliance.engine) as session:
        accounts.invite(session, served.appliance, name, role)
        federated_sign_in.bind(session, served.appliance, name, subject)


def begin(browser: httpx.Client, provider: Provider) -> str:
    """Where the provider sends the browser back to."""
    there = browser.get(START)
    assert there.status_code == 303, there.text
    with httpx.Client(verify=trusting(provider.ca), trust_env=False) as elsewhere:
        back = elsewhere.get(there.headers["location"])
    assert back.status_code == 302, back.text
    address = urlsplit(back.headers["location"])
    return f"{address.path}?{address.query}"


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


REFUSED = (403, "identity-provider-refused")


def test_an_invited_subject_signs_in_and_is_that_person_with_two_factors(served: Served, provider: Provider) -> None:
    invite(served, "ada", provider.user)
    with served.client() as browser:
        back = browser.get(begin(browser, provider))
        assert back.status_code == 200, back.text
        assert browser.get("/v1/people/me").json()["level"] == "federated-multi-factor"
        assert browser.get("/v1/people/me").json()["name"] == "ada"
        cookies = back.headers.get_list("set-cookie")
    session = next(line for line in cookies if line.startswith("__Host-cloister-session="))
    assert {"httponly", "samesite=strict", "secure"} <= {part.strip().lower() for part in session.split(";")}


def test_the_console_leads_to_the_provider_and_knows_who_comes_back(served: Served, provider: Provider) -> None:
    invite(served, "bo", provider.user, Role.COMPLIANCE_OFFICER)
    with served.client() as browser:
        page = browser.get("/console/sign-in").text
        assert f'href="{START}"' in page
        assert browser.get(begin(browser, provider)).status_code == 200
        releases = browser.get("/console")
        assert releases.status_code == 200
        assert "bo" in releases.text
        (served.appliance.home / "identity_provider.toml").unlink()
        assert START not in browser.get("/console/sign-in").text


def test_one_factor_at_the_provider_is_told_as_one(served: Served, provider: Provider) -> None:
    invite(served, "ada", provider.user)
    provider.methods = ["pwd"]
    with served.client() as browser:
        browser.get(begin(browser, provider))
        assert browser.get("/v1/people/me").json()["level"] == "federated"


def test_one_factor_makes_itself_no_second(served: Served, provider: Provider) -> None:
    invite(served, "bo", provider.user, Role.COMPLIANCE_OFFICER)
    provider.methods = ["pwd"]
    with served.client() as browser:
        browser.get(begin(browser, provider))
        csrf = csrf_of(browser)
        headers = {"x-cloister-csrf": csrf, "origin": f"https://{served.address}"}
        for path, body in (
            ("/v1/people/me/password", {"password": "twelve plums and a kite"}),
            ("/v1/people/me/password/confirm", {"code": "123456"}),
            ("/v1/passkeys/options", {}),
            ("/v1/passkeys/revoke", {"credential": "AAAA"}),
        ):
            refused = browser.post(path, json=body, headers=headers)
            assert refused.status_code == 403, (path, refused.text)
            assert "one factor" in refused.json()["detail"], path


def test_the_token_of_somebody_who_came_by_the_provider_is_worth_nothing(served: Served, provider: Provider) -> None:
    with transaction(served.appliance.engine) as session:
        token = accounts.invite(session, served.appliance, "bo", Role.COMPLIANCE_OFFICER)
        federated_sign_in.bind(session, served.appliance, "bo", provider.user)
    with served.client() as browser:
        assert browser.get(begin(browser, provider)).status_code == 200
    with served.client() as client:
        answer = client.post("/v1/people/register", json=TestPerson("bo").registration(token))
    assert answer.status_code == 403
    with reading(served.appliance.engine) as session:
        held = PersonRepository(session).get("bo")
        assert held is not None
        assert (held.status, held.key) == ("active", None)


def csrf_of(browser: httpx.Client) -> str:
    """The page's own token, as its script reads it."""
    return browser.get("/console").text.split('name="csrf" content="')[1].split('"')[0]


def test_nobody_gets_an_account_by_having_one_at_the_provider(served: Served, provider: Provider) -> None:
    invite(served, "ada", "another-subject")
    with served.client() as browser:
        assert code_of(browser.get(begin(browser, provider))) == REFUSED
        assert browser.get("/v1/people/me").status_code == 401
    with reading(served.appliance.engine) as session:
        assert {person.name for person in PersonRepository(session).all()} == {"administrator", "ada"}


def test_a_leaver_and_a_late_comer_do_not_get_in(served: Served, provider: Provider) -> None:
    invite(served, "ada", provider.user)
    served.clock.move(hours=25)
    provider.claims = {"auth_time": int(served.clock().timestamp()), "exp": int(served.clock().timestamp()) + 60,
                       "iat": int(served.clock().timestamp())}  # fmt: skip
    with served.client() as browser:
        assert code_of(browser.get(begin(browser, provider))) == REFUSED, "the invitation is over"
    invite(served, "ada", provider.user)
    with served.client() as browser:
        assert browser.get(begin(browser, provider)).status_code == 200
        with transaction(served.appliance.engine) as session:
            accounts.disable(session, served.appliance, "ada")
        assert browser.get("/v1/people/me").status_code == 401
        assert code_of(browser.get(begin(browser, provider))) == REFUSED


def test_an_invitation_under_an_old_name_does_not_let_the_earlier_holder_in(served: Served, provider: Provider) -> None:
    invite(served, "ada", provider.user)
    with transaction(served.appliance.engine) as session:
        accounts.disable(session, served.appliance, "ada")
        accounts.invite(session, served.appliance, "ada", Role.AUDITOR)
    with served.client() as browser:
        assert code_of(browser.get(begin(browser, provider))) == REFUSED


def test_one_subject_is_one_person(served: Served, provider: Provider) -> None:
    """One person, two accounts of one role: the second can't have the same subject."""
    invite(served, "ada", provider.user)
    with pytest.raises(Conflict, match="belongs to somebody"):
        invite(served, "ada-again", provider.user)


def test_an_answer_is_for_the_browser_that_asked_and_once(served: Served, provider: Provider) -> None:
    invite(served, "ada", provider.user)
    with served.client() as browser, served.client() as victim:
        back = begin(browser, provider)
        assert code_of(victim.get(back)) == REFUSED, "another browser is not signed in as the attacker"
        begin(victim, provider)
        assert code_of(victim.get(back)) == REFUSED, "nor one that has begun its own attempt"
        assert browser.get(back).status_code == 200
        browser.cookies.delete("__Host-cloister-session")
        assert code_of(browser.get(back)) == REFUSED


def test_a_code_that_was_caught_is_worth_nothing_without_the_verifier(served: Served, provider: Provider) -> None:
    """The thief puts the caught code into an attempt of their own: the provider finds another verifier."""
    invite(served, "ada", provider.user)
    with served.client() as browser, served.client() as thief:
        caught = parse_qs(urlsplit(begin(browser, provider)).query)["code"][0]
        own = parse_qs(urlsplit(begin(thief, provider)).query)
        assert code_of(thief.get(BACK, params={"code": caught, "state": own["state"][0]})) == REFUSED


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"},
        {"aud": ["another-client"]},
        {"aud": [CLIENT, "another-client"], "azp": "another-client"},
        {"exp": int(time.time()) - 3600},
        {"auth_time": int(time.time()) - 3600},
        {"sub": ""},
    ],
)
def test_a_token_that_does_not_hold_signs_nobody_in(
    served: Served, provider: Provider, claims: dict[str, object]
) -> None:
    invite(served, "ada", provider.user)
    provider.claims = claims
    with served.client() as browser:
        assert code_of(browser.get(begin(browser, provider))) == REFUSED
        assert browser.get("/v1/people/me").status_code == 401


def test_a_token_signed_by_another_key_signs_nobody_in(served: Served, provider: Provider) -> None:
    invite(served, "ada", provider.user)
    provider.published = ECKey.generate_key("P-256", {"kid": "first", "use": "sig"})
    with served.client() as browser:
        assert code_of(browser.get(begin(browser, provider))) == REFUSED


def test_a_provider_under_another_authority_or_name_is_not_talked_to(served: Served, provider: Provider) -> None:
    provider.configuration = {"issuer": "https://evil.example"}
    with served.client() as browser:
        assert code_of(browser.get(START)) == REFUSED
    provider.configuration = {"authorization_endpoint": "http://127.0.0.1/authorize"}
    provider.ca.write_text(served.ca_path.read_text())
    with served.client() as browser:
        assert code_of(browser.get(START)) == (503, "identity-provider-unreachable")


def test_neither_no_signature_nor_a_mac_under_the_clients_secret_counts(served: Served, provider: Provider) -> None:
    said = load_identity_provider(served.appliance.home)
    assert said is not None
    now = int(time.time())
    claims = {"iss": said.issuer, "aud": CLIENT, "sub": "x", "exp": now + 60, "iat": now, "auth_time": now}
    claims["nonce"] = "n"
    keys = provider.documents()["/keys"]
    signed = jwt.encode({"alg": "ES256", "kid": "first"}, claims, provider.key)
    assert read_id_token(said, signed, keys, nonce="n", now=now).subject == "x"
    with pytest.raises(ProviderRefused):
        read_id_token(said, signed, keys, nonce="another", now=now)
    for forged in (
        f"{_base64url({'alg': 'none'})}.{_base64url(claims)}.",
        jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET * 2), algorithms=["HS256"]),
        signed[:-4] + "AAAA",
    ):
        with pytest.raises(ProviderRefused):
            read_id_token(said, forged, keys, nonce="n", now=now)


def test_without_a_provider_there_is_none(served: Served) -> None:
    with served.client() as browser:
        assert browser.get(START).status_code == 404
    TestPerson("ada").join(served, Role.AUDITOR)
    with pytest.raises(SettingsError, match="issuer"):
        save_identity_provider(
            served.appliance.home, issuer="http://plain.example", client_id="x", secret="s", ca=None, multi_factor=()
        )
    assert load_identity_provider(served.appliance.home) is None


def _base64url(document: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")
