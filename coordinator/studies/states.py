"""The life of a study, as pure transitions.

A proposal is denied, or held while an approval is owed; then consenting -> ready -> keys -> running -> evaluating ->
candidate, or failed (the rounds could not go on) or stopped (a person, a refusal or a withdrawn consent ended it). An
exploration goes from running to completed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from coordinator.errors import Conflict

Answer = Literal["grant", "refuse", "withdraw"]


class StudyState(StrEnum):
    """Where a study stands."""

    DENIED = "denied"
    HELD = "held"
    CONSENTING = "consenting"
    READY = "ready"
    KEYS = "keys"
    RUNNING = "running"
    EVALUATING = "evaluating"
    CANDIDATE = "candidate"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


ACTIVE = frozenset({StudyState.KEYS, StudyState.RUNNING, StudyState.EVALUATING})
"""A driver is at work."""
ENDED = frozenset(
    {StudyState.DENIED, StudyState.CANDIDATE, StudyState.COMPLETED, StudyState.FAILED, StudyState.STOPPED}
)
_ONWARD: Mapping[StudyState, frozenset[StudyState]] = {
    StudyState.HELD: frozenset({StudyState.CONSENTING, StudyState.STOPPED}),
    StudyState.READY: frozenset({StudyState.CONSENTING, StudyState.KEYS, StudyState.STOPPED}),
    StudyState.CONSENTING: frozenset({StudyState.READY, StudyState.STOPPED}),
    StudyState.KEYS: frozenset({StudyState.RUNNING, StudyState.FAILED, StudyState.STOPPED}),
    StudyState.RUNNING: frozenset({StudyState.EVALUATING, StudyState.COMPLETED, StudyState.FAILED, StudyState.STOPPED}),
    StudyState.EVALUATING: frozenset({StudyState.CANDIDATE, StudyState.FAILED, StudyState.STOPPED}),
    StudyState.CANDIDATE: frozenset({StudyState.STOPPED}),
}


class Reason(StrEnum):
    """Why a study ended, beside the failures of its rounds."""

    TOO_FEW_CONSENTS = "too-few-consents"
    CONSENT_WITHDRAWN = "consent-withdrawn"
    STOPPED_BY_PERSON = "stopped-by-person"
    PLAN_REJECTED = "plan-rejected"


class StudyConflict(Conflict):
    """The study is in another state than the request needs."""

    code = "study-state"


class ConsentConflict(Conflict):
    """A consent that does not fit: another plan, another key's site, or too late."""

    code = "consent-conflict"


def may_become(current: StudyState, following: StudyState) -> bool:
    """Whether the transition exists."""
    return following in _ONWARD.get(current, frozenset())


def require_transition(study: str, current: StudyState, following: StudyState) -> None:
    """Raises StudyConflict, naming both states, unless the transition exists."""
    if not may_become(current, following):
        raise StudyConflict(
            f"Study {study} is {current.value} and cannot become {following.value}.",
            "Look at it with `cloister study status`.",
        )


@dataclass(frozen=True)
class Standing:
    """What the answers so far come to."""

    state: StudyState
    reason: Reason | None = None


def decide_answers(planned: tuple[str, ...], minimum: int, answers: Mapping[str, Answer]) -> Standing:
    """Before the start: ready once every planned site has answered and enough have granted; stopped once they can't.

    A refusal while others may still grant changes nothing.
    """
    granted = sum(answers.get(site) == "grant" for site in planned)
    open_ = sum(site not in answers for site in planned)
    if granted + open_ < minimum:
        return Standing(StudyState.STOPPED, Reason.TOO_FEW_CONSENTS)
    if open_:
        return Standing(StudyState.CONSENTING)
    return Standing(StudyState.READY)


def decide_consent(
    study: str,
    state: StudyState,
    planned: tuple[str, ...],
    minimum: int,
    answers: Mapping[str, Answer],
    site: str,
    answer: Answer,
) -> Standing:
    """Where the study stands once `site` has answered. Raises ConsentConflict for an answer that comes too late.

    Before the start a site may change its mind. Afterwards only a withdrawal is taken: it stops the study, and a
    candidate that holds the site's contributions with it.
    """
    if site not in planned:
        raise ConsentConflict(f"{site} is not in the plan of study {study}.", "Answer only plans that name this site.")
    previous = answers.get(site)
    if answer == "withdraw" and previous != "grant":
        raise ConsentConflict(
            f"{site} has no consent to study {study} to withdraw.", "Refuse the plan instead, while it is open."
        )
    if state in (StudyState.CONSENTING, StudyState.READY):
        return decide_answers(planned, minimum, {**answers, site: answer})
    if state in ACTIVE or state is StudyState.CANDIDATE:
        if answer == "withdraw":
            return Standing(StudyState.STOPPED, Reason.CONSENT_WITHDRAWN)
        raise ConsentConflict(
            f"Study {study} has started; its cohort no longer changes.",
            "Only a withdrawal is possible, and it stops the study.",
        )
    if answer == "withdraw":
        return Standing(state)
    raise ConsentConflict(f"Study {study} is {state.value}: it takes no more answers.", "Ask for a new proposal.")


def cohort(planned: tuple[str, ...], answers: Mapping[str, Answer]) -> tuple[str, ...]:
    """The sites whose grant stands, in plan order."""
    return tuple(site for site in planned if answers.get(site) == "grant")


def require_startable(study: str, state: StudyState, planned: tuple[str, ...], answers: Mapping[str, Answer]) -> None:
    """Raises StudyConflict unless the study is ready, naming the sites that have not answered."""
    if state is StudyState.READY:
        return
    if state is StudyState.CONSENTING:
        silent = ", ".join(site for site in planned if site not in answers)
        raise StudyConflict(
            f"Study {study} waits for the answer of {silent}.",
            "Ask them to run `cloister-site studies review` and to grant or refuse.",
        )
    if state is StudyState.HELD:
        raise StudyConflict(
            f"Study {study} is held until a compliance officer approves its plan.",
            "Have one run `cloister study approve`.",
        )
    if state in ACTIVE:
        raise StudyConflict(f"Study {study} has already started.", "Follow it with `cloister study status`.")
    raise StudyConflict(f"Study {study} is {state.value} and cannot start.", "Propose a new study.")
