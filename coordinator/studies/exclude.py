"""Shutting a site out of a running study: a person's decision, for reasons that no contribution can show.

From the next attempt on the site is not invited; what it added before stays in the model, and what its patients were
charged stays charged. Its keys stay among those of the others, who sum over the cohort that each request names.
"""

from __future__ import annotations

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, person_label
from coordinator.people.states import Permission
from coordinator.people.tables import Person
from coordinator.studies.control import may_run
from coordinator.studies.repository import StudyRepository, plan_of
from coordinator.studies.states import ACTIVE, StudyConflict, StudyState, cohort
from coordinator.studies.tables import StudyExclusion
from protocol.audit_event import EventType
from protocol.errors import Malformed, Refused
from protocol.timestamp import timestamp

MAX_REASON = 2000


def exclude(
    session: Session, appliance: Appliance, person: Person, study: str, site: str, *, reason: str
) -> tuple[str, ...]:
    """The sites that are left. By the submitter, a compliance officer or an administrator, while the study runs.

    The reason is erasable: the log holds its salted hash. Raises Refused, Malformed, StudyConflict for a study that
    does not run, a site that is not in its cohort, and where fewer than the agreed minimum would be left.
    """
    studies = StudyRepository(session)
    row = studies.get(study)
    if not may_run(person, row, Permission.STOP_ANY_STUDY):
        raise Refused(
            "Only the study's submitter, a compliance officer or an administrator shuts a site out.", "Ask one of them."
        )
    if not 1 <= len(reason) <= MAX_REASON:
        raise Malformed("The reason is missing or too long.", "Give --reason in words.")
    if StudyState(row.state) not in ACTIVE:
        raise StudyConflict(f"Study {study} is {row.state}: no rounds run.", "Propose the next study without the site.")
    plan = plan_of(row)
    granted, gone = cohort(plan.names, studies.answers(study)), studies.excluded(study)
    if site not in granted or site in gone:
        raise StudyConflict(f"{site} takes no part in study {study}.", "See `cloister study status`.")
    left = tuple(name for name in granted if name != site and name not in gone)
    if len(left) < plan.spec.minimum_sites:
        raise StudyConflict(
            f"Without {site} only {len(left)} sites are left; the plan that the sites granted has at least "
            f"{plan.spec.minimum_sites} in every round.",
            "Stop the study instead, and propose it anew without the site.",
        )
    now = timestamp(appliance.clock())
    studies.add_exclusion(StudyExclusion(study=study, site=site, person=person.name, at=now))
    append(
        session,
        appliance,
        EventType.SITE_SHUT_OUT,
        actor=person_label(appliance, person.name),
        subject=study,
        digests={"plan": row.plan_digest or ""},
        groups={"excluded": [site], "cohort": left},
        payload={"reason": reason, "person": person.name},
    )
    return left
