"""The review of who holds which role: confirm, change, and what is due."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import LOCAL_ADMINISTRATOR, append, person_label
from coordinator.errors import Conflict, NotFound
from coordinator.people.repository import PersonRepository
from coordinator.people.states import (
    certified_days,
    decide_certification,
    overdue,
    require_site,
)
from coordinator.people.tables import Person
from coordinator.sites.repository import SiteRepository
from protocol.audit_event import EventType
from protocol.identifiers import Role
from protocol.timestamp import timestamp


def certify(session: Session, appliance: Appliance, name: str, *, by: Person | None, shared: bool) -> Person:
    """Record that a person still needs their role, and whether somebody else uses their account: that shuts the gates
    until they have an account of their own. by: None for the operator at the machine.

    Raises NotFound, Refused for oneself, Conflict unless the account is active.
    """
    people = PersonRepository(session)
    person = known_person(people, name)
    decide_certification(name, person.status, by=by.name if by else None)
    person.certified_at, person.shared = timestamp(appliance.clock()), shared
    person.certified_by = by.name if by else LOCAL_ADMINISTRATOR
    people.save(person)
    append(
        session, appliance, EventType.PERSON_CERTIFIED, actor=actor_label(appliance, by),
        subject=person_label(appliance, name), labels={"role": person.role, "shared": "yes" if shared else "no"},
    )  # fmt: skip
    return person


def change_role(session: Session, appliance: Appliance, name: str, role: Role, *, site: str | None) -> Person:
    """Give a person another role, which counts as confirmed today; their sessions end.

    What they signed before stays theirs in the role that they had; a plan that names them in it takes no further
    approval of theirs. Raises NotFound, Conflict for the role that they have, Malformed for a site where none belongs.
    """
    people = PersonRepository(session)
    person = known_person(people, name)
    require_site(role, site)
    require_known_site(session, site)
    if (person.role, person.site) == (role.value, site):
        raise Conflict(f"{name} has this role already.", "Nothing has to be changed.")
    before, person.role, person.site = person.role, role.value, site
    person.certified_at, person.certified_by = timestamp(appliance.clock()), LOCAL_ADMINISTRATOR
    people.save(person)
    people.end_sessions(name)
    append(
        session, appliance, EventType.PERSON_ROLE_CHANGED, actor=LOCAL_ADMINISTRATOR,
        subject=person_label(appliance, name), labels={"from": before, "role": role.value},
    )  # fmt: skip
    return person


def review(session: Session, appliance: Appliance, *, longest: int) -> list[dict[str, Any]]:
    """Everybody with their role, when it was confirmed, and whether that is over `longest` days ago."""
    rows, now = [], appliance.clock()
    for person in PersonRepository(session).all():
        days = certified_days(person.certified_at, now=now)
        rows.append(
            {
                "name": person.name,
                "role": person.role,
                "site": person.site,
                "status": person.status,
                "registered_at": person.registered_at,
                "certified_at": person.certified_at,
                "certified_by": person.certified_by,
                "certified_days": days,
                "shared": person.shared,
                "overdue": person.status == "active" and overdue(days, longest),
            }
        )
    return rows


def known_person(people: PersonRepository, name: str) -> Person:
    """The person. Raises NotFound."""
    person = people.get(name)
    if person is None:
        raise NotFound(f"There is no person named {name}.", "See `cloister-coordinator people list`.")
    return person


def require_known_site(session: Session, site: str | None) -> None:
    """Raise NotFound for a site that was never invited."""
    if site is not None and SiteRepository(session).get(site) is None:
        raise NotFound(f"There is no site {site}.", "See `cloister-coordinator sites list`; invite the site first.")


def actor_label(appliance: Appliance, by: Person | None) -> str:
    """Who acts, as the log names them."""
    return person_label(appliance, by.name) if by else LOCAL_ADMINISTRATOR
