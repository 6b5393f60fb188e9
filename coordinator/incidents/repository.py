"""The only SQL about incidents."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import and_, delete, or_, update
from sqlmodel import Session, col, select

from coordinator.database import one_row
from coordinator.errors import Conflict, NotFound
from coordinator.incidents.states import Closing, IncidentState
from coordinator.incidents.tables import IncidentClosing, IncidentRecord
from protocol.canonical import digest
from protocol.identifiers import Role
from protocol.incident import OUTCOMES, Incident, Settled


class IncidentRepository:
    """Incidents within the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, incident: str) -> IncidentRecord | None:
        """The row, or None."""
        return self._session.get(IncidentRecord, incident)

    def get(self, incident: str) -> IncidentRecord:
        """The row, or NotFound."""
        row = self.find(incident)
        if row is None:
            raise NotFound(f"There is no {incident}.", "See `cloister incident list`.")
        return row

    def add(self, row: IncidentRecord) -> None:
        """Store one."""
        self._session.add(row)
        self._session.flush()

    def all(self) -> list[IncidentRecord]:
        """Every incident, oldest first."""
        return list(
            self._session.exec(select(IncidentRecord).order_by(col(IncidentRecord.opened_at), col(IncidentRecord.id)))
        )

    def open(self) -> list[IncidentRecord]:
        """Those that freeze something now, oldest first."""
        return [row for row in self.all() if row.state == IncidentState.OPEN.value]

    def open_about(self, *, study: str, sites: Iterable[str]) -> list[IncidentRecord]:
        """The open ones that touch the study, one of the sites, or everything."""
        touching = or_(
            col(IncidentRecord.scope) == "federation",
            and_(col(IncidentRecord.scope) == "study", col(IncidentRecord.about) == study),
            and_(col(IncidentRecord.scope) == "site", col(IncidentRecord.about).in_(list(sites))),
        )
        query = select(IncidentRecord).where(col(IncidentRecord.state) == IncidentState.OPEN.value, touching)
        return list(self._session.exec(query))

    def settle(self, row: IncidentRecord, settled: Settled) -> None:
        """Write down what became of the two duties."""
        row.authority, row.individuals = settled.authority, settled.individuals
        self._session.add(row)
        self._session.flush()

    def closings(self, row: IncidentRecord) -> list[Closing]:
        """What people said of the facts as they are now."""
        query = select(IncidentClosing).where(
            col(IncidentClosing.incident) == row.id, col(IncidentClosing.facts) == facts_of(row)
        )
        return [closing_of(said) for said in self._session.exec(query.order_by(col(IncidentClosing.said_at)))]

    def void_closings(self, row: IncidentRecord) -> None:
        """What was said before an update counts no more, whatever the facts become."""
        self._session.connection().execute(delete(IncidentClosing).where(col(IncidentClosing.incident) == row.id))

    def add_closing(self, row: IncidentRecord, closing: Closing, *, at: str) -> None:
        """Store one."""
        self._session.add(
            IncidentClosing(
                incident=row.id, person=closing.person, facts=closing.facts, role=closing.role.value,
                outcome=closing.outcome, said_at=at,
            )
        )  # fmt: skip
        self._session.flush()

    def close(self, row: IncidentRecord, outcome: str, *, at: str) -> None:
        """open -> closed. Conflict when another was first."""
        statement = (
            update(IncidentRecord)
            .where(col(IncidentRecord.id) == row.id, col(IncidentRecord.state) == IncidentState.OPEN.value)
            .values(state=IncidentState.CLOSED.value, outcome=outcome, closed_at=at)
        )
        if not one_row(self._session.connection().execute(statement)):
            raise Conflict("The incident changed meanwhile.", "Look at it with `cloister incident list`.")
        self._session.refresh(row)


def incident_of(row: IncidentRecord) -> Incident:
    """What happened, as a document."""
    return Incident.model_validate(
        {"incident": row.id, "kind": row.kind, "scope": row.scope, "about": row.about, "aware_at": row.aware_at}
    )


def settled_of(row: IncidentRecord) -> Settled:
    """What became of its duties."""
    return Settled(authority=row.authority, individuals=row.individuals)


def facts_of(row: IncidentRecord) -> str:
    """The digest of what somebody who closes it has before them: an update voids what was said before."""
    return digest([incident_of(row).model_dump(mode="json"), settled_of(row).model_dump(mode="json")])


def closing_of(said: IncidentClosing) -> Closing:
    """As the states judge it."""
    outcome = next(known for known in OUTCOMES if known == said.outcome)
    return Closing(said.person, Role(said.role), outcome, said.facts)
