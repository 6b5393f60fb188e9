"""Whether the ledger is the newest there was: a count kept outside the database, so that a restored backup is noticed.

Whatever a backup must not forget (a reservation, a charge, a withdrawal) adds one to the count in the database. The
same count, and all that was ever reserved, is flushed to a file beside it after the commit and before the caller goes
on, so before anything is computed or sent. A crash in between leaves the database ahead, and nothing has left the
site; a database behind its file, or without one, was put back, and what it says was spent is too little.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError
from sqlalchemy import Engine, event
from sqlmodel import Session, col, func, select

from protocol.errors import CloisterError
from protocol.identifiers import Frozen
from site_agent.database import DatabaseUnusable, mark_of, transaction
from site_agent.durable_files import write_durably
from site_agent.training.states import Budget
from site_agent.training.tables import CohortCharge, ForgottenCharge, LedgerGeneration

REMEDY = (
    "Withdraw from the running studies with cloister-site studies withdraw STUDY, then run "
    "cloister-site budget acknowledge-restore."
)


class LedgerBehind(CloisterError):
    """The ledger was put back to an earlier state, so what it says was spent is too little."""

    code = "ledger-behind"


class Reserved(Frozen):
    """All that was ever reserved of one group, given back or not: it never falls."""

    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    delta: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Mark(Frozen):
    """The content of the file: as strict JSON."""

    generation: Annotated[int, Field(ge=0, strict=True)]
    training: Reserved
    held_out: Reserved


@dataclass(frozen=True)
class Standing:
    """The count in the database, and the mark beside it; None where that is missing or unreadable."""

    generation: int
    mark: Mark | None

    @property
    def behind(self) -> bool:
        """Whether the database may have forgotten something."""
        return self.mark is None or self.generation < self.mark.generation


def standing(session: Session) -> Standing:
    """How the ledger stands to its mark. Raises DatabaseUnusable where the mark can't be read for the system's sake."""
    return Standing(session.get_one(LedgerGeneration, 1).generation, _read(_path(session)))


def require_newest(session: Session) -> None:
    """Raises LedgerBehind."""
    if standing(session).behind:
        raise LedgerBehind(
            "The site's ledger is behind what this site has answered: its database was put back from a backup, so it "
            "has forgotten charges and used masks (acknowledge-restore is needed).",
            REMEDY,
        )


def advance(session: Session) -> None:
    """Count one change, in the caller's transaction; the mark is on disk before that transaction's block is left.

    Raises LedgerBehind, and at the commit DatabaseUnusable where the mark can't be written.
    """
    require_newest(session)
    _advance(session, 1)


def acknowledge(engine: Engine, *, at: str, lost: Budget | None) -> tuple[Budget, tuple[str, ...]]:
    """Take a ledger that is behind as it is: every open reservation counts as spent to its last step, what was reserved
    after the backup is charged to every patient, and the count goes on from the newest. Returns (charged to every
    patient, the studies whose reservations were spent).

    lost: what was reserved after the backup; needed where the mark is gone, and at least what the mark tells counts.
    Raises LedgerBehind where nothing was put back, or the mark is gone and nobody says what was lost.
    """
    with transaction(engine) as session:
        found = standing(session)
        if not found.behind:
            raise LedgerBehind("The ledger is not behind: there is nothing to acknowledge.", "Nothing has to be done.")
        if found.mark is None and lost is None:
            raise LedgerBehind(
                f"{_path(session).name} is missing or damaged, so nothing tells what was granted after the backup.",
                "Add up what those studies cost (the coordinator lists them) and give it as --lost-epsilon and "
                "--lost-delta; 0 where there were none.",
            )
        forgotten = {held_out: _forgotten(session, found.mark, lost, held_out) for held_out in (False, True)}
        for held_out, missing in forgotten.items():
            session.add(
                ForgottenCharge(held_out=held_out, epsilon=missing.epsilon, delta=missing.delta, acknowledged_at=at)
            )
        spent_out = select(CohortCharge).where(
            col(CohortCharge.released).is_(False), CohortCharge.steps_charged < CohortCharge.steps_allowed
        )
        studies = []
        for charge in session.exec(spent_out).all():
            charge.steps_charged = charge.steps_allowed
            session.add(charge)
            studies.append(charge.study)
        session.flush()
        ahead = 0 if found.mark is None else found.mark.generation - found.generation
        _advance(session, max(0, ahead) + 1)
    charged = Budget(
        max(missing.epsilon for missing in forgotten.values()), max(missing.delta for missing in forgotten.values())
    )
    return charged, tuple(dict.fromkeys(studies))


def _forgotten(session: Session, mark: Mark | None, said: Budget | None, held_out: bool) -> Budget:
    known = _reserved(session, held_out)
    was = known if mark is None else (mark.held_out if held_out else mark.training)
    at_least = said or Budget(0.0, 0.0)
    return Budget(max(was.epsilon - known.epsilon, at_least.epsilon), max(was.delta - known.delta, at_least.delta))


def _reserved(session: Session, held_out: bool) -> Reserved:
    """Over all reservations that the database knows, and what it was told it had forgotten."""
    epsilon = delta = 0.0
    for table in (CohortCharge, ForgottenCharge):
        sums = select(func.coalesce(func.sum(table.epsilon), 0.0), func.coalesce(func.sum(table.delta), 0.0)).where(
            col(table.held_out).is_(held_out)
        )
        row = session.exec(sums).one()
        epsilon, delta = epsilon + float(row[0]), delta + float(row[1])
    return Reserved(epsilon=epsilon, delta=delta)


def _advance(session: Session, by: int) -> None:
    row = session.get_one(LedgerGeneration, 1)
    row.generation += by
    session.add(row)
    session.flush()
    mark = Mark(generation=row.generation, training=_reserved(session, False), held_out=_reserved(session, True))
    path = _path(session)
    event.listen(session, "after_commit", lambda _: _write(path, mark), once=True)


def _path(session: Session) -> Path:
    engine = session.get_bind()
    assert isinstance(engine, Engine)
    return mark_of(engine)


def _read(path: Path) -> Mark | None:
    try:
        return Mark.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    except OSError as error:
        raise DatabaseUnusable(f"{path} can't be read ({error.strerror}).", "Check who owns the file.") from None


def _write(path: Path, mark: Mark) -> None:
    """Put the mark in place, unless a newer one is there: another process may have committed meanwhile."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            there = _read(path)
            if there is None or there.generation < mark.generation:
                write_durably(path, json.dumps(mark.model_dump(), sort_keys=True).encode())
        finally:
            os.close(folder)
    except OSError as error:
        raise DatabaseUnusable(
            f"{path} can't be written ({error.strerror}); what was asked for is charged and nothing was sent.",
            "Free space on the disk of the site's home, or correct who owns the file.",
        ) from None
