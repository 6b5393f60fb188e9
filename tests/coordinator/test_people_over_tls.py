"""People over HTTP: registering, signing in, sessions; and what an attacker tries."""

from __future__ import annotations

import base64

import httpx
import pytest

from coordinator.database import reading, transaction
from coordinator.people import accounts
from coordinator.people.repository import PersonRepository
from protocol.enrolment import Token
from protocol.identifiers import Role
from tests.coordinator.appliances import Served, TestPerson

pytestmark = pytest.mark.processes


def invite(served: Served, name: str, role: Role = Role.RESEARCHER) -> Token:
    with transaction(served.appliance.engine) as session:
        return accounts.invite(session, served.appliance, name, role)


def register(served: Served, person: TestPerson, token: Token) -> httpx.Response:
    with served.client() as client:
        return client.post("/v1/people/register", json=person.registration(token))


def challenge(served: Served, name: str) -> str:
    with served.client() as client:
        return str(client.post("/v1/people/challenge", json={"name": name}).json()["challenge"])


def answer(served: Served, body: dict[str, str]) -> httpx.Response:
    with served.client() as client:
        return client.post("/v1/people/session", json=body)


def me(served: Served, token: str | None) -> httpx.Response:
    with served.client(token=token) as client:
        return client.get("/v1/people/me")


def test_a_person_registers_signs_in_and_out(served: Served) -> None:
    ada = TestPerson("ada")
    assert register(served, ada, invite(served, "ada")).json() == {"name": "ada", "role": "researcher"}
    token = ada.sign_in(served)
    assert me(served, token).json()["role"] == "researcher"
    with served.client(token=token) as client:
        assert client.delete("/v1/people/session").status_code == 204
    assert me(served, token).status_code == 401


def test_a_token_is_used_once(served: Served) -> None:
    token = invite(served, "ada")
    assert register(served, TestPerson("ada"), token).status_code == 201
    again = register(served, TestPerson("ada"), token)
    assert (again.status_code, again.json()["code"]) == (403, "token-refused")
    assert "used already" in again.json()["detail"]


def test_a_token_expires_after_a_day(served: Served) -> None:
    token = invite(served, "ada")
    served.clock.move(hours=24)
    refused = register(served, TestPerson("ada"), token)
    assert (refused.status_code, "expired" in refused.json()["detail"]) == (403, True)
    served.clock.move(seconds=-5)
    assert register(served, TestPerson("ada"), token).status_code == 201


def test_a_token_is_its_holders_alone_and_a_newer_one_replaces_it(served: Served) -> None:
    token = invite(served, "ada")
    invite(served, "bob")
    assert register(served, TestPerson("bob"), token).status_code == 403
    newer = invite(served, "ada")
    assert register(served, TestPerson("ada"), token).status_code == 403
    assert register(served, TestPerson("ada"), newer).status_code == 201


def test_a_registration_needs_proof_of_the_key_and_an_own_key(served: Served) -> None:
    token, ada = invite(served, "ada"), TestPerson("ada")
    stolen = ada.registration(token) | {"key": TestPerson("eve").key.public.text}
    with served.client() as client:
        assert client.post("/v1/people/register", json=stolen).json()["code"] == "bad-signature"
    assert register(served, ada, token).status_code == 201
    twin = TestPerson("bob", ada.key)
    assert register(served, twin, invite(served, "bob")).json()["code"] == "conflict"


def test_an_answered_challenge_cannot_be_replayed(served: Served) -> None:
    ada = TestPerson("ada")
    register(served, ada, invite(served, "ada"))
    body = ada.answer(served.appliance.keys.authority.fingerprint, challenge(served, "ada"))
    assert answer(served, body).status_code == 201
    assert answer(served, body).json()["code"] == "challenge-refused"
    loosely = body | {"challenge": _same_bytes(body["challenge"])}
    assert answer(served, loosely).status_code in (400, 403)


def test_a_challenge_is_for_one_person_two_minutes_and_this_coordinator(served: Served) -> None:
    ada, bob = TestPerson("ada"), TestPerson("bob")
    for person in (ada, bob):
        register(served, person, invite(served, person.name))
    ca, asked = served.appliance.keys.authority.fingerprint, challenge(served, "ada")
    assert answer(served, bob.answer(ca, asked)).json()["code"] == "challenge-refused"
    assert answer(served, ada.answer("sha256:" + "0" * 64, asked)).json()["code"] == "bad-signature"
    assert answer(served, TestPerson("ada").answer(ca, asked)).json()["code"] == "bad-signature"
    forged = base64.urlsafe_b64encode(bytes(56)).decode()
    assert answer(served, ada.answer(ca, forged)).json()["code"] == "challenge-refused"
    served.clock.move(minutes=2)
    assert answer(served, ada.answer(ca, asked)).json()["code"] == "challenge-refused"


def test_nobody_learns_from_a_challenge_who_exists(served: Served) -> None:
    ada, nobody = TestPerson("ada"), TestPerson("nobody")
    register(served, ada, invite(served, "ada"))
    assert len(challenge(served, "ada")) == len(challenge(served, "nobody"))
    body = nobody.answer(served.appliance.keys.authority.fingerprint, challenge(served, "nobody"))
    assert answer(served, body).status_code == 403


def test_a_disabled_person_is_refused_at_once(served: Served) -> None:
    ada = TestPerson("ada")
    ada.join(served, Role.AUDITOR)
    token = ada.sign_in(served)
    body = ada.answer(served.appliance.keys.authority.fingerprint, challenge(served, "ada"))
    with transaction(served.appliance.engine) as session:
        accounts.disable(session, served.appliance, "ada")
    assert me(served, token).status_code == 401
    assert answer(served, body).json()["code"] == "forbidden"
    again = TestPerson("ada")
    again.join(served, Role.AUDITOR)
    assert me(served, token).status_code == 401, "a session from before must not come back to life"
    assert me(served, again.sign_in(served)).status_code == 200


def test_a_session_ends_when_idle_and_at_its_full_age(served: Served) -> None:
    ada = TestPerson("ada")
    ada.join(served, Role.AUDITOR)
    token = ada.sign_in(served)
    served.clock.move(minutes=14)
    assert me(served, token).status_code == 200
    served.clock.move(minutes=14)
    assert me(served, token).status_code == 200
    served.clock.move(minutes=16)
    assert me(served, token).status_code == 401
    token = ada.sign_in(served)
    for _ in range(34):
        served.clock.move(minutes=14)
        assert me(served, token).status_code == 200
    served.clock.move(minutes=14)
    assert me(served, token).status_code == 401, "eight hours are over"


def test_a_role_is_asked_for(served: Served) -> None:
    ada = TestPerson("ada")
    ada.join(served, Role.RESEARCHER)
    with served.client(token=ada.sign_in(served)) as client:
        refused = client.get("/v1/audit/export")
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("header", ["", "Bearer x", "Basic abc", "bearer"])
def test_without_a_session_nothing_is_shown(served: Served, header: str) -> None:
    with served.client() as client:
        refused = client.get("/v1/sites", headers={"authorization": header})
    assert refused.status_code == 401
    assert refused.headers["content-type"] == "application/problem+json"


def test_no_secret_is_stored(served: Served) -> None:
    token, ada = invite(served, "ada"), TestPerson("ada")
    register(served, ada, token)
    session_token = ada.sign_in(served)
    database = served.appliance.home / "coordinator.db"
    stored = b"".join(path.read_bytes() for path in database.parent.glob("coordinator.db*"))
    assert token.secret.encode() not in stored
    assert session_token.encode() not in stored
    with reading(served.appliance.engine) as session:
        assert PersonRepository(session).session(accounts.token_hash(session_token)) is not None


def _same_bytes(text: str) -> str:
    """Another base64 text that lax decoders read as the same bytes."""
    return text + "===="


def test_a_token_does_not_bring_a_disabled_account_back(served: Served) -> None:
    token = invite(served, "ada")
    with transaction(served.appliance.engine) as session:
        accounts.disable(session, served.appliance, "ada")
    assert register(served, TestPerson("ada"), token).status_code == 403
    assert register(served, TestPerson("ada"), invite(served, "ada")).status_code == 201
