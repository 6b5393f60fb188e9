"""What the driver leaves to a kind of study: what sites are sent, and what becomes of a sum.

The driver walks any plan's stages, records attempts, judges gates and commits; a `Work` holds the study's state
between two rounds. Taking a sum decides everything and writes nothing; the driver then keeps it in the transaction
that closes the attempt, and only a commit makes it the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sqlmodel import Session

from coordinator.rounds.states import Attempt, Progress
from coordinator.studies.states import StudyState
from privacy.entropy import Float64
from protocol.round import Phase


def _nothing() -> None:
    """The study has ended: there is no state to go on from."""


@dataclass(frozen=True)
class Taken:
    """A sum as the study takes it, not yet kept.

    norm: of the noisy mean, None where there is none to tell. before, after: digests of what the sites were sent and
    of what came of the round. becomes: the study's next state, None where it stays. keep: writes, in the transaction
    that commits the round and after its record; raises AnotherDriver. adopt: called once that is committed.
    """

    norm: float | None
    before: str
    after: str
    becomes: StudyState | None
    keep: Callable[[Session], None]
    adopt: Callable[[], None] = _nothing


class Work(Protocol):
    """One study's state between two rounds, in the driver's process."""

    def resume(self, session: Session) -> None:
        """Read the state as last committed, or make and store the first. Raises AnotherDriver, Conflict."""

    @property
    def entry(self) -> int:
        """The entry of the plan's grid that the next round goes by; 0 where the study has no grid."""

    def body(self, phase: Phase) -> bytes:
        """What a request of the phase brings to the sites now: `plan.body_length(phase)` floats."""

    def take(self, closed: Attempt, total: Float64, after: Progress) -> Taken:
        """What the committed attempt's sum comes to. after: the progress with it. Raises PrivacyError and ValueError
        for a sum that can't be taken; the study fails then."""


@runtime_checkable
class Audits(Protocol):
    """The work of a study whose plan may hold a phase that it can do without."""

    def give_up(self, detail: str, progress: Progress) -> Taken:
        """What the study comes to without the phase; detail: why it could not be carried out."""
