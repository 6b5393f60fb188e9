"""The only SQL about studies and consents."""

from __future__ import annotations

import json
from collections.abc import Iterable

from sqlalchemy import update
from sqlmodel import Session, col, select

from coordinator.database import one_row
from coordinator.errors import Conflict, NotFound
from coordinator.studies.states import ACTIVE, Answer, StudyState, cohort, require_transition
from coordinator.studies.tables import DeniedProposal, PlanApprovalRecord, Study, StudyConsent, StudyExclusion
from protocol.canonical import parse
from protocol.envelope import Envelope
from protocol.study import StudyPlan
from protocol.study_kind import AnyPlan, plan_from

PLAN_LIMIT = 4 << 20
"""Bytes of a plan: a schema of thousands of columns stands in it whole."""


class StudyRepository:
    """Studies within the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, study: str) -> Study:
        """The study, or NotFound."""
        row = self._session.get(Study, study)
        if row is None:
            raise NotFound(f"There is no study {study}.", "See `cloister study list`.")
        return row

    def exists(self, study: str) -> bool:
        """Whether the name is taken."""
        return self._session.get(Study, study) is not None

    def all(self) -> list[Study]:
        """Every study, oldest first."""
        return list(self._session.exec(select(Study).order_by(col(Study.proposed_at), col(Study.id))))

    def denied(self) -> list[DeniedProposal]:
        """Every proposal that policy denied, oldest first."""
        return list(self._session.exec(select(DeniedProposal).order_by(col(DeniedProposal.id))))

    def in_states(self, states: Iterable[StudyState]) -> list[Study]:
        """The studies in one of `states`, oldest first."""
        wanted = [state.value for state in states]
        query = select(Study).where(col(Study.state).in_(wanted)).order_by(col(Study.started_at), col(Study.id))
        return list(self._session.exec(query))

    def active(self) -> list[Study]:
        """The studies that need a driver, in the order in which they were started."""
        return self.in_states(ACTIVE)

    def add(self, row: Study) -> None:
        """Store a proposal that policy let through."""
        self._session.add(row)
        self._session.flush()

    def add_denied(self, row: DeniedProposal) -> None:
        """Store a proposal that policy denied; its name stays free."""
        self._session.add(row)

    def set_state(
        self,
        row: Study,
        state: StudyState,
        *,
        reason: str | None = None,
        detail: str | None = None,
        started_at: str | None = None,
        ended_at: str | None = None,
    ) -> None:
        """Compare-and-swap. StudyConflict for a transition that does not exist, Conflict when another was first."""
        current = StudyState(row.state)
        if current is state:
            return
        require_transition(row.id, current, state)
        values: dict[str, str | None] = {"state": state.value, "reason": reason, "detail": detail}
        if started_at is not None:
            values["started_at"] = started_at
        if ended_at is not None:
            values["ended_at"] = ended_at
        statement = update(Study).where(col(Study.id) == row.id, col(Study.state) == current.value).values(**values)
        if not one_row(self._session.connection().execute(statement)):
            raise Conflict(f"Study {row.id} changed meanwhile.", "Look at it with `cloister study status`.")
        self._session.refresh(row)

    def consents(self, study: str) -> dict[str, StudyConsent]:
        """The latest answer of each site that has answered."""
        query = select(StudyConsent).where(col(StudyConsent.study) == study).order_by(col(StudyConsent.site))
        return {row.site: row for row in self._session.exec(query)}

    def answers(self, study: str) -> dict[str, Answer]:
        """Each site's latest decision."""
        return {site: _answer(row.decision) for site, row in self.consents(study).items()}

    def put_consent(self, row: StudyConsent) -> None:
        """Store a site's answer in place of its earlier one."""
        self._session.merge(row)
        self._session.flush()

    def approvals(self, study: str) -> list[PlanApprovalRecord]:
        """The signed decisions on a held plan, by person."""
        query = select(PlanApprovalRecord).where(col(PlanApprovalRecord.study) == study)
        return list(self._session.exec(query.order_by(col(PlanApprovalRecord.person))))

    def add_approval(self, row: PlanApprovalRecord) -> None:
        """Store one. Conflict for a second one by the same person."""
        if self._session.get(PlanApprovalRecord, (row.study, row.person)) is not None:
            raise Conflict(f"{row.person} has decided on study {row.study} already.", "Nothing has to be done again.")
        self._session.add(row)
        self._session.flush()

    def excluded(self, study: str) -> frozenset[str]:
        """The sites that two people have shut out of the study."""
        return frozenset(row.site for row in self.exclusions(study) if row.confirmed_by is not None)

    def exclusions(self, study: str) -> list[StudyExclusion]:
        """What was asked for, confirmed or not, by site."""
        query = select(StudyExclusion).where(col(StudyExclusion.study) == study)
        return list(self._session.exec(query.order_by(col(StudyExclusion.site))))

    def participants(self, study: str, planned: tuple[str, ...]) -> tuple[str, ...]:
        """The planned sites whose grant stands and which were not shut out, in plan order."""
        gone = self.excluded(study)
        return tuple(site for site in cohort(planned, self.answers(study)) if site not in gone)

    def save_exclusion(self, row: StudyExclusion) -> None:
        """Store one, or what became of it."""
        self._session.add(row)
        self._session.flush()

    def planned_for(self, site: str) -> list[Study]:
        """The studies whose plan names `site`, oldest first; without those that ended before they were planned."""
        return [row for row in self.all() if row.plan is not None and site in plan_of(row).names]


def plan_of(row: Study) -> AnyPlan:
    """The plan in the study's own signed envelope. NotFound where there is none."""
    if row.plan is None:
        raise NotFound(f"Study {row.id} has no plan.", "Look at its decision with `cloister study status`.")
    payload = Envelope.from_bytes(row.plan, limit=2 * PLAN_LIMIT).payload
    return plan_from(parse(payload, limit=PLAN_LIMIT))


def training_plan_of(row: Study) -> StudyPlan:
    """Its plan, of a study that trains. NotFound where there is none, Conflict for an exploration."""
    plan = plan_of(row)
    if not isinstance(plan, StudyPlan):
        raise Conflict(
            f"{row.id} is an exploration: it trains no model that could be released.",
            "Read what it found with `cloister study results`.",
        )
    return plan


def forecast_of(row: Study) -> list[tuple[int, float]]:
    """(steps, epsilon), rising."""
    return [(int(steps), float(epsilon)) for steps, epsilon in json.loads(row.forecast)]


def _answer(text: str) -> Answer:
    match text:
        case "grant" | "refuse" | "withdraw":
            return text
    raise Conflict("A stored answer is none of the known ones.", "Restore the database from a backup.")
