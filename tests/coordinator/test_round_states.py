"""What the driver does next, decided from records alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rounds.states import (
    EVALUATE,
    TRAIN,
    Absence,
    Attempt,
    AttemptStatus,
    Await,
    Begin,
    Design,
    EstablishKeys,
    Fail,
    FailureCode,
    Finish,
    Progress,
    Resend,
    Suspend,
    due,
    next_action,
    replay,
)
from protocol.plan import Stage

SITES = ("a", "b", "c", "d")
EVERYBODY = frozenset(SITES)
DESIGN = Design(
    stages=(Stage("train", 1, 3), Stage("evaluate", 1, 1, held_out=True)),
    attempts={"train": 5, "evaluate": 2},
    minimum_sites=3,
    evaluators=SITES,
)


def committed(phase: str, number: int, attempt: int = 1, cohort: tuple[str, ...] = SITES) -> Attempt:
    return Attempt(phase, number, attempt, cohort, AttemptStatus.COMMITTED, cohort)  # type: ignore[arg-type]


def abandoned(
    number: int, attempt: int, cohort: tuple[str, ...], missing: dict[str, str], phase: str = TRAIN
) -> Attempt:
    there = tuple(site for site in cohort if site not in missing)
    return Attempt(phase, number, attempt, cohort, AttemptStatus.ABANDONED, there, missing)  # type: ignore[arg-type]


def decide(progress: Progress, *, present: frozenset[str] = EVERYBODY, patient: bool = True, design: Design = DESIGN):  # type: ignore[no-untyped-def]
    return next_action(design, SITES, progress, present, patient=patient)


def test_keys_come_first_and_wait_for_everybody() -> None:
    assert decide(Progress()) == EstablishKeys(SITES)
    assert decide(Progress(), present=frozenset("abc")) == Await(SITES, 4)
    assert decide(Progress(), present=frozenset("abc"), patient=False) == EstablishKeys(("a", "b", "c"))
    action = decide(Progress(), present=frozenset("ab"), patient=False)
    assert isinstance(action, Suspend)
    assert action.sites == ("c", "d")


def test_rounds_follow_each_other_then_the_evaluation_then_the_end() -> None:
    history: list[Attempt] = []
    for number in (1, 2, 3):
        assert decide(replay(SITES, history)) == Begin(TRAIN, number, 1, SITES)
        history.append(committed(TRAIN, number))
    assert decide(replay(SITES, history)) == Begin(EVALUATE, 1, 1, SITES)
    history.append(committed(EVALUATE, 1))
    assert decide(replay(SITES, history)) == Finish()


def test_an_open_attempt_is_sent_again_before_anything_else() -> None:
    open_ = Attempt(TRAIN, 2, 1, SITES)
    assert decide(replay(SITES, [committed(TRAIN, 1), open_])) == Resend(open_)


def test_a_driver_that_starts_anew_waits_for_the_sites_that_its_end_cut_off() -> None:
    here = frozenset("abc")
    between = replay(SITES, [committed(TRAIN, 1)])
    assert next_action(DESIGN, SITES, between, here, patient=True, rejoining=True) == Await(SITES, 4)
    assert next_action(DESIGN, SITES, between, here, patient=True) == Begin(TRAIN, 2, 1, ("a", "b", "c"))
    assert next_action(DESIGN, SITES, between, EVERYBODY, patient=True, rejoining=True) == Begin(TRAIN, 2, 1, SITES)
    open_ = Attempt(TRAIN, 2, 1, SITES)
    amid = replay(SITES, [committed(TRAIN, 1), open_])
    assert next_action(DESIGN, SITES, amid, here, patient=True, rejoining=True) == Await(SITES, 4)
    assert next_action(DESIGN, SITES, amid, here, patient=True) == Resend(open_)
    # Neither for a site that was away before, nor for one whose consent was withdrawn.
    missed = replay(SITES, [abandoned(1, 1, SITES, {"d": "no-answer"}), committed(TRAIN, 1, 2, ("a", "b", "c"))])
    assert isinstance(next_action(DESIGN, SITES, missed, here, patient=True, rejoining=True), Begin)
    assert next_action(DESIGN, ("a", "b", "c"), amid, here, patient=True, rejoining=True) == Resend(open_)


def test_a_retry_takes_those_who_contributed() -> None:
    history = [abandoned(1, 1, SITES, {"b": "no-answer"})]
    assert decide(replay(SITES, history)) == Begin(TRAIN, 1, 2, ("a", "c", "d"))
    spoiled = [*history, abandoned(1, 2, ("a", "c", "d"), {"a": "malformed"})]
    # Two are too few, and b may be back; who sent something wrong would again.
    assert decide(replay(SITES, spoiled)) == Begin(TRAIN, 1, 3, ("b", "c", "d"))
    twice = [abandoned(1, 1, SITES, {"a": "malformed", "b": "bad-signature"})]
    action = decide(replay(SITES, twice))
    assert isinstance(action, Fail)
    assert action.code is FailureCode.TOO_FEW_SITES


def test_a_killed_site_and_a_slow_one_in_one_attempt_do_not_end_the_study() -> None:
    """A site that was killed between charge and answer refuses that attempt for good, and another is still starting:
    the next attempt has another number, so both are invited once more, within the retries."""
    both = [abandoned(1, 1, SITES, {"a": "refused:consumed", "d": "no-answer"})]
    assert decide(replay(SITES, both)) == Begin(TRAIN, 1, 2, SITES)
    assert decide(replay(SITES, both), present=frozenset("bcd")) == Begin(TRAIN, 1, 2, ("b", "c", "d"))
    assert decide(replay(SITES, both), present=frozenset("bc")) == Await(SITES, 3)
    waits = decide(replay(SITES, both), present=frozenset("bc"), patient=False)
    assert isinstance(waits, Suspend)
    assert waits.sites == ("a", "d")
    again = [abandoned(1, number, SITES, {"a": "refused:consumed", "d": "no-answer"}) for number in (1, 2, 3)]
    action = decide(replay(SITES, again))
    assert isinstance(action, Fail)
    assert action.code is FailureCode.RETRIES_EXHAUSTED


def test_a_site_that_announces_and_never_sends_costs_two_attempts_of_the_study() -> None:
    design = replace(DESIGN, stages=(Stage("train", 1, 9),), attempts={"train": 12})
    history: list[Attempt] = []
    for number in (1, 2):
        history += [
            abandoned(number, 1, SITES, {"b": "upload-incomplete"}),
            committed(TRAIN, number, 2, ("a", "c", "d")),
        ]
        invited = decide(replay(SITES, history), design=design)
        assert invited == Begin(TRAIN, number + 1, 1, SITES if number == 1 else ("a", "c", "d"))
    # A contribution in between, with the others away, does not wash it clean; the minimum still brings it in.
    assert decide(replay(SITES, history), design=design, present=frozenset("abc")) == Begin(
        TRAIN, 3, 1, ("a", "b", "c")
    )
    history.append(committed(TRAIN, 3, 1, ("a", "b", "c")))
    assert decide(replay(SITES, history), design=design) == Begin(TRAIN, 4, 1, ("a", "c", "d"))


def test_a_site_that_found_the_request_expired_is_asked_again() -> None:
    history = [abandoned(1, 1, SITES, {"b": "refused:expired", "c": "refused:expired"})]
    assert decide(replay(SITES, history)) == Begin(TRAIN, 1, 2, SITES)


def test_abandoned_attempts_beyond_the_retries_end_the_study() -> None:
    history = []
    for number in (1, 2):
        history += [
            abandoned(number, 1, SITES, {"abcd"[number]: "no-answer"}),
            committed(TRAIN, number, 2, ("a", "b", "c")),
        ]
    assert isinstance(decide(replay(SITES, history)), Begin)
    history.append(abandoned(3, 1, SITES, {"d": "no-answer"}))
    action = decide(replay(SITES, history))
    assert isinstance(action, Fail)
    assert action.code is FailureCode.RETRIES_EXHAUSTED
    assert replay(SITES, history).steps(TRAIN) == DESIGN.attempts[TRAIN]


def test_a_site_that_is_not_connected_is_not_invited() -> None:
    assert decide(replay(SITES, []), present=frozenset("abd")) == Begin(TRAIN, 1, 1, ("a", "b", "d"))
    assert decide(replay(SITES, []), present=frozenset("ab")) == Await(SITES, 3)
    assert isinstance(decide(replay(SITES, []), present=frozenset("ab"), patient=False), Suspend)


def test_only_sites_that_hold_patients_out_are_asked_to_evaluate() -> None:
    history = [committed(TRAIN, number) for number in (1, 2, 3)]
    design = replace(DESIGN, evaluators=("a", "b", "d"))
    assert decide(replay(SITES, history), design=design) == Begin(EVALUATE, 1, 1, ("a", "b", "d"))


def test_evaluations_beyond_the_planned_ones_end_the_study() -> None:
    history = [committed(TRAIN, number) for number in (1, 2, 3)]
    history.append(abandoned(1, 1, SITES, {"a": "no-answer"}, EVALUATE))
    assert decide(replay(SITES, history)) == Begin(EVALUATE, 1, 2, ("b", "c", "d"))
    history.append(abandoned(1, 2, ("b", "c", "d"), {"b": "refused:expired"}, EVALUATE))
    action = decide(replay(SITES, history))
    assert isinstance(action, Fail)
    assert action.code is FailureCode.EVALUATION_EXHAUSTED


@pytest.mark.parametrize(("misses", "back"), [(1, 11), (2, 12), (3, 14), (4, 18), (40, 10 + 2**20)])
def test_a_site_sits_out_longer_the_more_it_misses(misses: int, back: int) -> None:
    progress = replace(Progress(established=SITES), absences={"d": Absence(misses, 10)})
    assert "d" in due(DESIGN, SITES, progress, back)
    if misses > 1:
        assert "d" not in due(DESIGN, SITES, progress, back - 1)


def test_sitting_out_never_goes_below_the_minimum() -> None:
    absences = {site: Absence(5, 10) for site in ("c", "d")}
    progress = replace(Progress(established=SITES), absences=absences)
    assert due(DESIGN, SITES, progress, 11) == SITES


def test_withdrawn_consents_are_counted_out() -> None:
    action = next_action(DESIGN, ("a", "b"), Progress(), EVERYBODY, patient=True)
    assert isinstance(action, Fail)


@given(st.lists(st.sets(st.sampled_from(SITES), max_size=3), max_size=12))
def test_no_more_steps_are_asked_than_the_noise_is_calibrated_for(misses: list[set[str]]) -> None:
    """Whatever sites miss, attempts stay within T + A, cohorts at or above the minimum, and the end is reached."""
    progress, asked = Progress(established=SITES), 0
    for turn in range(50):
        action = decide(progress)
        if isinstance(action, Fail | Finish):
            break
        assert isinstance(action, Begin)
        assert len(action.cohort) >= DESIGN.minimum_sites
        asked += action.phase == TRAIN
        missed = {site: "no-answer" for site in action.cohort if turn < len(misses) and site in misses[turn]}
        open_ = Attempt(action.phase, action.round, action.attempt, action.cohort)
        progress = progress.after(open_)
        assert decide(progress) == Resend(open_)
        there = tuple(site for site in action.cohort if site not in missed)
        status = AttemptStatus.ABANDONED if missed else AttemptStatus.COMMITTED
        progress = progress.after(replace(open_, status=status, contributed=there, excluded=missed))
    else:
        pytest.fail("no end was reached")
    assert asked <= DESIGN.attempts[TRAIN]
    assert asked == progress.steps(TRAIN)


def test_stages_of_one_phase_can_take_turns() -> None:
    """Train two rounds, evaluate, train one, evaluate again: rounds are numbered on within their phase."""
    evaluate = Stage("evaluate", 1, 1, held_out=True)
    stages = (Stage("train", 1, 2), evaluate, Stage("train", 3, 1), replace(evaluate, first=2))
    design = replace(DESIGN, stages=stages, attempts={"train": 3, "evaluate": 2})
    history, asked = [], []
    while not isinstance(action := decide(replay(SITES, history), design=design), Finish):
        asked.append((action.phase, action.round, replay(SITES, history).position))
        history.append(committed(action.phase, action.round))
    assert asked == [("train", 1, 1), ("train", 2, 2), ("evaluate", 1, 3), ("train", 3, 4), ("evaluate", 2, 5)]


def test_each_phase_has_its_own_attempts() -> None:
    design = replace(DESIGN, attempts={"train": 3, "evaluate": 2})
    history = [committed(TRAIN, number) for number in (1, 2, 3)]
    history.append(abandoned(1, 1, SITES, {"a": "no-answer"}, EVALUATE))
    assert decide(replay(SITES, history), design=design) == Begin(EVALUATE, 1, 2, ("b", "c", "d"))
    lost = [abandoned(1, 1, SITES, {"a": "no-answer"})]
    action = decide(replay(SITES, lost), design=design)
    assert isinstance(action, Fail)
    assert action.code is FailureCode.RETRIES_EXHAUSTED
