"""The removal of a release's dossier once its ten years are over: two people, two roles, the gate, and the log.

What stays is the log's leaves, and that there was such a release, so that its name is never given again.
"""

from __future__ import annotations

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, person_label
from coordinator.errors import Conflict, NotFound
from coordinator.people.tables import Person
from coordinator.policy.decisions import index, record
from coordinator.releases.repository import ReleaseRepository
from coordinator.retention.erasure import ErasureDenied, require_second
from coordinator.retention.gate import decide
from coordinator.retention.inventory import holdings
from coordinator.retention.repository import RetentionRepository
from coordinator.retention.tables import DossierRemoval
from policies.decided import Decided
from policies.packs import Policy
from policies.retention import Holding, RecordClass
from protocol.audit_event import EventType
from protocol.timestamp import timestamp


def ask(session: Session, appliance: Appliance, policy: Policy, person: Person, release: str) -> DossierRemoval:
    """Ask that a dossier go. Raises NotFound, Conflict where somebody asked before, ErasureDenied while it is kept."""
    row = ReleaseRepository(session).get(release)
    retention = RetentionRepository(session)
    if retention.dossier_removal(release) is not None:
        raise Conflict(f"The removal of {release}'s dossier was asked for already.", "Have a second person confirm it.")
    decided = decide(appliance, policy, _holding(session, appliance, release), purge=True)
    if not decided.decision.allowed:
        raise ErasureDenied(decided.decision)
    removal = DossierRemoval(
        release=release,
        study=row.study,
        subject_digest=row.subject_digest,
        asked_by=person.name,
        asked_role=person.role,
        asked_at=timestamp(appliance.clock()),
    )
    retention.save_dossier_removal(removal)
    _log(session, appliance, EventType.DOSSIER_REMOVAL_ASKED, person, removal)
    return removal


def confirm(session: Session, appliance: Appliance, policy: Policy, person: Person, release: str) -> Decided:
    """Remove the dossier, as a second person in another role. A denial is logged and nothing is removed: the caller
    raises ErasureDenied after the commit.

    Raises NotFound where nobody asked, Conflict where it is gone, Refused for the person or the role that asked.
    """
    retention = RetentionRepository(session)
    row = retention.dossier_removal(release)
    if row is None:
        raise NotFound(
            f"Nobody asked for the removal of {release}'s dossier.",
            "Run `cloister release remove-dossier` without --confirm.",
        )
    if row.removed_at is not None:
        raise Conflict(f"The dossier of {release} is gone already.", "Nothing has to be done.")
    require_second(row.asked_by, row.asked_role, person)
    asked_by = [{"person": row.asked_by, "role": row.asked_role}, {"person": person.name, "role": person.role}]
    decided = decide(appliance, policy, _holding(session, appliance, release), purge=True, asked_by=asked_by)
    if not decided.decision.allowed:
        actor = person_label(appliance, person.name)
        record(session, appliance, decided, actor=actor, subject=f"release:{release}")
        return decided
    retention.remove_dossier(release)
    row.confirmed_by, row.confirmed_role = person.name, person.role
    row.removed_at = timestamp(appliance.clock())
    retention.save_dossier_removal(row)
    entry = _log(session, appliance, EventType.DOSSIER_REMOVED, person, row, decided)
    index(session, decided, entry=entry, subject=f"release:{release}")
    return decided


def _holding(session: Session, appliance: Appliance, release: str) -> Holding:
    wanted = (RecordClass.DOSSIER, release)
    for holding in holdings(session, appliance):
        if (holding.record_class, holding.about) == wanted:
            return holding
    raise NotFound(f"There is no dossier of {release}.", "See cloister-coordinator retention plan.")


def _log(
    session: Session,
    appliance: Appliance,
    event: EventType,
    person: Person,
    row: DossierRemoval,
    decided: Decided | None = None,
) -> int:
    return append(
        session,
        appliance,
        event,
        actor=person_label(appliance, person.name),
        subject=f"release:{row.release}",
        digests={"subject": row.subject_digest, **({} if decided is None else decided.digests)},
        payload=None if decided is None else decided.payload(),
    )
