"""A study's life, as decisions over its plan and its sites' answers."""

from __future__ import annotations

import itertools

import pytest

from coordinator.studies.states import (
    ACTIVE,
    ENDED,
    ConsentConflict,
    Reason,
    StudyConflict,
    StudyState,
    cohort,
    decide_answers,
    decide_consent,
    may_become,
    require_startable,
    require_transition,
)

PLANNED = ("a", "b", "c", "d")


def test_ready_once_everybody_answered_and_enough_granted() -> None:
    answers: dict[str, str] = {}
    for site in PLANNED:
        assert decide_answers(PLANNED, 3, answers).state is StudyState.CONSENTING  # type: ignore[arg-type]
        answers[site] = "refuse" if site == "b" else "grant"
    assert decide_answers(PLANNED, 3, answers).state is StudyState.READY  # type: ignore[arg-type]
    assert cohort(PLANNED, answers) == ("a", "c", "d")  # type: ignore[arg-type]


def test_stopped_as_soon_as_the_minimum_is_out_of_reach() -> None:
    standing = decide_answers(PLANNED, 3, {"a": "refuse", "b": "refuse"})
    assert (standing.state, standing.reason) == (StudyState.STOPPED, Reason.TOO_FEW_CONSENTS)


@pytest.mark.parametrize("answers", list(itertools.product((None, "grant", "refuse", "withdraw"), repeat=4)))
def test_answers_never_start_a_study_that_too_few_granted(answers: tuple[str | None, ...]) -> None:
    given = {site: answer for site, answer in zip(PLANNED, answers, strict=True) if answer}
    state = decide_answers(PLANNED, 3, given).state  # type: ignore[arg-type]
    grants = answers.count("grant")
    if state is StudyState.READY:
        assert grants >= 3
        assert None not in answers
    else:
        assert state is (StudyState.STOPPED if grants + answers.count(None) < 3 else StudyState.CONSENTING)


def test_a_site_may_change_its_mind_before_the_start() -> None:
    granted = dict.fromkeys(PLANNED, "grant")
    standing = decide_consent("s", StudyState.READY, PLANNED, 3, granted, "a", "withdraw")  # type: ignore[arg-type]
    assert standing.state is StudyState.READY
    standing = decide_consent("s", StudyState.CONSENTING, PLANNED, 4, {"a": "refuse"}, "a", "grant")
    assert standing.state is StudyState.CONSENTING


@pytest.mark.parametrize("state", sorted(ACTIVE | {StudyState.CANDIDATE}))
def test_a_withdrawal_stops_what_is_running_and_what_came_of_it(state: StudyState) -> None:
    granted = dict.fromkeys(PLANNED, "grant")
    standing = decide_consent("s", state, PLANNED, 3, granted, "a", "withdraw")  # type: ignore[arg-type]
    assert (standing.state, standing.reason) == (StudyState.STOPPED, Reason.CONSENT_WITHDRAWN)
    for late in ("grant", "refuse"):
        with pytest.raises(ConsentConflict):
            decide_consent("s", state, PLANNED, 3, granted, "a", late)  # type: ignore[arg-type]


def test_answers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConsentConflict, match="not in the plan"):
        decide_consent("s", StudyState.CONSENTING, PLANNED, 3, {}, "stranger", "grant")
    with pytest.raises(ConsentConflict, match="to withdraw"):
        decide_consent("s", StudyState.CONSENTING, PLANNED, 3, {}, "a", "withdraw")
    with pytest.raises(ConsentConflict, match="no more answers"):
        decide_consent("s", StudyState.FAILED, PLANNED, 3, {}, "a", "grant")


def test_what_has_ended_stays_ended() -> None:
    for state, following in itertools.product(ENDED, StudyState):
        assert may_become(state, following) is ((state, following) == (StudyState.CANDIDATE, StudyState.STOPPED))
    with pytest.raises(StudyConflict, match="failed and cannot become running"):
        require_transition("s", StudyState.FAILED, StudyState.RUNNING)


def test_only_a_ready_study_starts_and_the_silent_sites_are_named() -> None:
    require_startable("s", StudyState.READY, PLANNED, {})
    with pytest.raises(StudyConflict, match="waits for the answer of b, d"):
        require_startable("s", StudyState.CONSENTING, PLANNED, {"a": "grant", "c": "refuse"})
    for state in StudyState:
        if state is not StudyState.READY:
            with pytest.raises(StudyConflict):
                require_startable("s", state, PLANNED, {})
