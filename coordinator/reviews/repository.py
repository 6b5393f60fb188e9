"""The only SQL about reviews."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import update
from sqlmodel import Session, col, select

from coordinator.database import one_row
from coordinator.errors import Conflict, NotFound
from coordinator.reviews.states import ReviewState
from coordinator.reviews.tables import ModelReview
from protocol.withdrawal import GROUNDS, Ground

JOINED = "+"


class ReviewRepository:
    """Reviews within the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, review: str) -> ModelReview | None:
        """The row, or None."""
        return self._session.get(ModelReview, review)

    def get(self, review: str) -> ModelReview:
        """The row, or NotFound."""
        row = self.find(review)
        if row is None:
            raise NotFound(f"There is no {review}.", "See `cloister review list`.")
        return row

    def add(self, row: ModelReview) -> None:
        """Store one."""
        self._session.add(row)
        self._session.flush()

    def all(self) -> list[ModelReview]:
        """Every review, oldest first."""
        return list(self._session.exec(select(ModelReview).order_by(col(ModelReview.opened_at), col(ModelReview.id))))

    def open_of(self, study: str) -> list[ModelReview]:
        """The open ones of a study's model."""
        query = select(ModelReview).where(
            col(ModelReview.study) == study, col(ModelReview.state) == ReviewState.OPEN.value
        )
        return list(self._session.exec(query))

    def close(self, row: ModelReview, grounds: Sequence[str], *, by: str, at: str) -> None:
        """open -> closed. Conflict when another was first."""
        statement = (
            update(ModelReview)
            .where(col(ModelReview.id) == row.id, col(ModelReview.state) == ReviewState.OPEN.value)
            .values(state=ReviewState.CLOSED.value, grounds=JOINED.join(grounds), closed_by=by, closed_at=at)
        )
        if not one_row(self._session.connection().execute(statement)):
            raise Conflict("The review changed meanwhile.", "Look at it with `cloister review list`.")
        self._session.refresh(row)


def causes_of(row: ModelReview) -> list[Ground]:
    """Why patients withdrew."""
    return [known for known in GROUNDS if known in row.causes.split(JOINED)]
