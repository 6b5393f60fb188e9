"""Shutting a site out of a running study: a decision of two people in two roles, for reasons that no contribution can
show. One person who must stop a site at once opens an incident about it, which freezes it.

From the next attempt on the site is not invited; what it added before stays in the model, and what its patients were
charged stays charged. Its keys stay among those of the others, who sum over the cohort that each request names.
"""

from __future__ import annotations

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, person_label
from coordinator.errors import Conflict, NotFound
from coordinator.people.states import Permission
from coordinator.people.tables import Person
from coordinator.studies.control import may_run
from coordinator.studies.repository import StudyRepository, plan_of
from coordinator.studies.states import ACTIVE, StudyConflict, StudyState, cohort
from coordinator.studies.tables import Study, StudyExclusion
from protocol.audit_event import EventType
from protocol.errors import Malformed, Refused
from protocol.timestamp import timestamp

MAX_REASON = 2000


def ask(
    session: Session, appliance: Appliance, person: Person, study: str, site: str, *, reason: str
) -> StudyExclusion:
    """Ask to have a site shut out; nothing changes until somebody else confirms it. By the submitter, a compliance
    officer or an administrator, while the study runs.

    The reason is erasable: the log holds its salted hash. Raises Refused, Malformed, Conflict where it was asked for,
    StudyConflict for a study that does not run, a site that is not in its cohort, and where fewer than the agreed
    minimum would be left.
    """
    row = _judged(session, person, study)
    if not 1 <= len(reason) <= MAX_REASON:
        raise Malformed("The reason is missing or too long.", "Give --reason in words.")
    left = _without(session, row, site)
    studies = StudyRepository(session)
    if any(asked.site == site for asked in studies.exclusions(study)):
        raise Conflict(
            f"Somebody has asked to shut {site} out of {study} already.",
            "Have another person in another role run the same with --confirm.",
        )
    asked = StudyExclusion(
        study=study,
        site=site,
        asked_by=person.name,
        asked_role=person.role,
        asked_at=timestamp(appliance.clock()),
    )
    studies.save_exclusion(asked)
    words = {"reason": reason, "person": person.name}
    _log(session, appliance, EventType.SHUT_OUT_ASKED, person, row, site, left, words)
    return asked


def confirm(session: Session, appliance: Appliance, person: Person, study: str, site: str) -> tuple[str, ...]:
    """Shut the site out, as a second person in another role; the sites that are left.

    Raises NotFound where nobody asked, Refused for who asked and for anybody in the same role, StudyConflict as `ask`.
    """
    row, studies = _judged(session, person, study), StudyRepository(session)
    asked = next((found for found in studies.exclusions(study) if found.site == site), None)
    if asked is None:
        raise NotFound(
            f"Nobody asked to shut {site} out of {study}.", "Run `cloister study exclude` with --reason first."
        )
    left = _without(session, row, site)
    if person.name == asked.asked_by or person.role == asked.asked_role:
        raise Refused(
            "Who confirms that a site is shut out is another person in another role.",
            "Ask somebody else to confirm it.",
        )
    asked.confirmed_by, asked.confirmed_role = person.name, person.role
    asked.confirmed_at = timestamp(appliance.clock())
    studies.save_exclusion(asked)
    _log(session, appliance, EventType.SITE_SHUT_OUT, person, row, site, left, {"person": person.name})
    return left


def _judged(session: Session, person: Person, study: str) -> Study:
    row = StudyRepository(session).get(study)
    if not may_run(person, row, Permission.STOP_ANY_STUDY):
        raise Refused(
            "Only the study's submitter, a compliance officer or an administrator shuts a site out.", "Ask one of them."
        )
    if StudyState(row.state) not in ACTIVE:
        raise StudyConflict(f"Study {study} is {row.state}: no rounds run.", "Propose the next study without the site.")
    return row


def _without(session: Session, row: Study, site: str) -> tuple[str, ...]:
    """Who is left without the site."""
    plan, studies = plan_of(row), StudyRepository(session)
    granted, gone = cohort(plan.names, studies.answers(row.id)), studies.excluded(row.id)
    if site not in granted or site in gone:
        raise StudyConflict(f"{site} takes no part in study {row.id}.", "See `cloister study status`.")
    left = tuple(name for name in granted if name != site and name not in gone)
    if len(left) < plan.spec.minimum_sites:
        raise StudyConflict(
            f"Without {site} only {len(left)} sites are left; the plan that the sites granted has at least "
            f"{plan.spec.minimum_sites} in every round.",
            "Stop the study instead, and propose it anew without the site.",
        )
    return left


def _log(
    session: Session,
    appliance: Appliance,
    event: EventType,
    person: Person,
    row: Study,
    site: str,
    left: tuple[str, ...],
    words: dict[str, str],
) -> None:
    append(
        session,
        appliance,
        event,
        actor=person_label(appliance, person.name),
        subject=row.id,
        digests={"plan": row.plan_digest or ""},
        groups={"excluded": [site], "cohort": left},
        payload=words,
    )
