"""What each role may do: the table, and that the routes hold to it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute

from coordinator.app import create_app
from coordinator.database import reading, transaction
from coordinator.errors import Conflict, Forbidden, NotFound
from coordinator.identity import signed_in
from coordinator.people import accounts, reviews
from coordinator.people.repository import PersonRepository
from coordinator.people.states import (
    PERMISSIONS,
    READ_ONLY,
    Permission,
    allowed,
    require_permission,
    sees,
)
from protocol.errors import Malformed, Refused
from protocol.identifiers import Role
from protocol.review import APPROVING_ROLES
from tests.coordinator.appliances import Made, Served, TestPerson

OWN_ACCOUNT = {
    "DELETE /v1/people/session", "POST /v1/people/me/password", "POST /v1/people/me/password/confirm",
    "POST /console/sign-out",
}  # fmt: skip


def test_every_permission_stands_in_the_table_and_somebody_has_it() -> None:
    assert set(PERMISSIONS) == set(Permission)
    assert all(PERMISSIONS.values())


def test_who_only_reads_changes_nothing() -> None:
    assert frozenset({Role.AUDITOR}) == READ_ONLY
    for permission in Permission:
        for role in READ_ONLY:
            assert not allowed(role.value, permission) or permission.name.startswith("READ_")


def test_duties_are_apart() -> None:
    """Who proposes approves nothing; who administers neither proposes nor approves; classification is regulatory's."""
    deciding = {Permission.APPROVE_PLAN, Permission.DECIDE_RELEASE, Permission.RECORD_EVIDENCE, Permission.CLASSIFY}
    making = {Permission.PROPOSE_STUDY, Permission.DRAFT_RELEASE}
    for role in Role:
        held = {permission for permission in Permission if allowed(role.value, permission)}
        assert not (held & deciding and held & making), role
        if role is Role.ADMINISTRATOR:
            assert not held & (deciding | making)
    assert PERMISSIONS[Permission.DECIDE_RELEASE] == APPROVING_ROLES
    assert PERMISSIONS[Permission.CLASSIFY] == {Role.REGULATORY}


def test_a_word_that_is_no_role_may_nothing() -> None:
    for permission in Permission:
        assert not allowed("root", permission)
    with pytest.raises(Forbidden, match="not for roots"):
        require_permission("root", Permission.PROPOSE_STUDY)


def test_the_people_of_a_site_see_what_concerns_it() -> None:
    assert sees("data_steward", "aachen", ("aachen", "boston"))
    assert not sees("data_steward", "aachen", ("boston",))
    assert not sees("site_it", None, ())
    assert sees("auditor", None, ())


def routes(made: Made) -> Iterator[str]:
    """Each route that a person's session opens, as "METHOD /path"."""
    included = [getattr(item, "original_router", None) for item in create_app(made.appliance).routes]
    for route in [route for router in included if router is not None for route in router.routes]:
        if isinstance(route, APIRoute) and signed_in in _calls(route.dependant):
            for method in sorted(route.methods):
                yield f"{method} {route.path}"


def _calls(dependant: object) -> set[object]:
    found = {dependant.call}  # type: ignore[attr-defined]
    for inner in dependant.dependencies:  # type: ignore[attr-defined]
        found |= _calls(inner)
    return found


@pytest.mark.processes
def test_an_auditor_changes_nothing_at_any_route(served: Served) -> None:
    """Every route that changes something, with whatever body: refused for the role before the body is looked at."""
    person = TestPerson("olga")
    person.join(served, Role.AUDITOR)
    session_token, tried = person.sign_in(served), 0
    with served.client(token=session_token) as client:
        for name in routes(served):
            if name.startswith("GET ") or name in OWN_ACCOUNT or " /v1/passkeys" in name:
                continue
            method, path = name.split(" ")
            answer = client.request(method, re.sub(r"\{[^}]+\}", "x1", path), json={})
            assert answer.status_code == 403, (name, answer.text)
            assert answer.json()["code"] == "forbidden", (name, answer.text)
            tried += 1
    assert tried >= 8, "a route's caller is judged before its body"


def _site(made: Made) -> None:
    from coordinator.sites import enrolment

    with transaction(made.appliance.engine) as session:
        enrolment.invite(session, made.appliance, "aachen")


def test_a_role_of_a_site_needs_a_site_that_was_invited_and_another_role_takes_none(local: Made) -> None:
    def invite(role: Role, site: str | None) -> None:
        with transaction(local.appliance.engine) as session:
            accounts.invite(session, local.appliance, "sven", role, site=site)

    with pytest.raises(Malformed, match="belongs to a site"):
        invite(Role.DATA_STEWARD, None)
    with pytest.raises(Malformed, match="belongs to no site"):
        invite(Role.AUDITOR, "aachen")
    with pytest.raises(NotFound, match="no site aachen"):
        invite(Role.DATA_STEWARD, "aachen")
    _site(local)
    invite(Role.DATA_STEWARD, "aachen")


@pytest.fixture
def two(served: Served) -> dict[str, str]:
    """An administrator and a compliance officer, signed in."""
    tokens = {}
    for name, role in (("anna", Role.ADMINISTRATOR), ("carl", Role.COMPLIANCE_OFFICER), ("rosa", Role.RESEARCHER)):
        person = TestPerson(name)
        person.join(served, role)
        tokens[name] = person.sign_in(served)
    return tokens


@pytest.mark.processes
def test_a_role_is_confirmed_by_another_and_overdue_shows(served: Served, two: dict[str, str]) -> None:
    served.clock.move(days=366)
    anna = TestPerson("anne")
    anna.join(served, Role.ADMINISTRATOR)
    with served.client(token=anna.sign_in(served)) as client:
        due = {row["name"]: row["overdue"] for row in client.get("/v1/people").json()}
        assert due == {"administrator": False, "anna": True, "anne": False, "carl": True, "rosa": True}
        assert client.post("/v1/people/carl/certification", json={}).status_code == 201
        assert client.post("/v1/people/anne/certification", json={}).json()["code"] == "refused"
        assert client.post("/v1/people/administrator/certification", json={}).json()["code"] == "conflict"
        assert client.post("/v1/people/nobody/certification", json={}).status_code == 404
        due = {row["name"]: row["overdue"] for row in client.get("/v1/people").json()}
        assert not due["carl"]


@pytest.mark.processes
def test_only_an_administrator_confirms_and_disables_and_not_themselves(served: Served, two: dict[str, str]) -> None:
    for name in ("carl", "rosa"):
        with served.client(token=two[name]) as client:
            assert client.post("/v1/people/rosa/certification", json={}).status_code == 403
            assert client.post("/v1/people/anna/disable").status_code == 403
    with served.client(token=two["anna"]) as client:
        assert client.post("/v1/people/anna/disable").json()["code"] == "refused"
        assert client.post("/v1/people/rosa/disable").status_code == 204
    with served.client(token=two["rosa"]) as client:
        assert client.get("/v1/people/me").status_code == 401, "a leaver's session ends at once"
    with served.client(token=two["carl"]) as client:
        assert client.get("/v1/people").status_code == 200


@pytest.mark.processes
def test_another_role_ends_the_session_of_the_earlier_one(served: Served, two: dict[str, str]) -> None:
    with transaction(served.appliance.engine) as session:
        reviews.change_role(session, served.appliance, "carl", Role.AUDITOR, site=None)
    with served.client(token=two["carl"]) as client:
        assert client.get("/v1/people/me").status_code == 401
    with pytest.raises(Conflict, match="already"), transaction(served.appliance.engine) as session:
        reviews.change_role(session, served.appliance, "carl", Role.AUDITOR, site=None)


def test_nobody_confirms_their_own_role(local: Made) -> None:
    with transaction(local.appliance.engine) as session:
        accounts.invite(session, local.appliance, "anna", Role.ADMINISTRATOR)
        people = PersonRepository(session)
        anna = people.get("anna")
        assert anna is not None
        anna.status = "active"
        people.save(anna)
    with pytest.raises(Refused, match="own role"), transaction(local.appliance.engine) as session:
        reviews.certify(session, local.appliance, "anna", by=anna, shared=False)
    local.clock.move(days=400)
    with reading(local.appliance.engine) as session:
        rows = {row["name"]: row for row in reviews.review(session, local.appliance, longest=365)}
    assert (rows["anna"]["certified_days"], rows["anna"]["overdue"]) == (400, True)
    assert rows["administrator"]["overdue"] is False, "who was only invited has no access to confirm"
