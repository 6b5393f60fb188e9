"""What open incidents leave of a study: it goes on without a frozen site, and waits where too few are left."""

from __future__ import annotations

from sqlmodel import Session

from coordinator.incidents.facts import frozen_sites, is_frozen
from coordinator.studies.repository import StudyRepository
from protocol.errors import CloisterError
from protocol.study_kind import AnyPlan


class StudyFrozen(CloisterError):
    """An incident about the study, about everything or about too many of its sites is open."""

    code = "study-frozen"


def require_thawed(session: Session, study: str) -> None:
    """Raises StudyFrozen while an incident about the study or about everything is open."""
    if is_frozen(session, study):
        raise StudyFrozen(f"An incident freezes study {study}.", "See `cloister incident list`.")


def free_participants(session: Session, study: str, plan: AnyPlan) -> tuple[str, ...]:
    """The participants that no incident freezes, in plan order. Raises StudyFrozen where they are fewer than agreed
    and would not be without the incidents."""
    require_thawed(session, study)
    admitted, frozen = StudyRepository(session).participants(study, plan.names), frozen_sites(session)
    free = tuple(site for site in admitted if site not in frozen)
    if len(free) < plan.spec.minimum_sites <= len(admitted):
        raise StudyFrozen(f"Incidents leave study {study} too few sites.", "See `cloister incident list`.")
    return free
