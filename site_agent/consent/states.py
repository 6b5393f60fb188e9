"""What an answer to a plan may become. Pure."""

from __future__ import annotations

from enum import StrEnum

from protocol.errors import Refused


class Answer(StrEnum):
    """granted: the plan may run. refused, withdrawn, superseded (by another plan of the study): it may not, ever."""

    GRANTED = "granted"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    SUPERSEDED = "superseded"


class ConsentConflict(Refused):
    """The answer does not follow from the one that stands."""

    code = "consent-conflict"


_NEXT: dict[tuple[Answer | None, str], Answer] = {
    (None, "grant"): Answer.GRANTED,
    (None, "refuse"): Answer.REFUSED,
    (Answer.GRANTED, "withdraw"): Answer.WITHDRAWN,
    (Answer.GRANTED, "supersede"): Answer.SUPERSEDED,
}


def answer_after(current: Answer | None, decision: str) -> Answer:
    """The answer that stands after "grant", "refuse", "withdraw" or "supersede". Raises ConsentConflict."""
    after = _NEXT.get((current, decision))
    if after is None:
        standing = "has not been answered" if current is None else f"was {current.value}"
        remedy = (
            "Grant or refuse it first."
            if current is None
            else "A plan is answered once; ask the researcher to propose anew, which makes another plan."
        )
        raise ConsentConflict(f"The plan {standing}; it can't be answered with {decision}.", remedy)
    return after
