"""A study over a declared grid, from proposal to candidate: every run and every score is charged, the best run kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from coordinator.client.forecast import make_forecast
from coordinator.client.simulation import seeded_entropy, simulate, simulated_plan
from coordinator.client.spec_file import load_spec
from coordinator.releases.model_card import _selection
from coordinator.rounds.attempts import grid_of, request_of
from coordinator.rounds.optimiser import ModelPoint
from coordinator.rounds.runs import Run, best_of, point_after, searched_entry, selection_of
from coordinator.studies.plan import calibrate, tuning_account
from coordinator.studies.states import StudyState
from privacy.accounting.epsilon import epsilon
from privacy.accounting.gaussian import repeated_gaussian_epsilon
from privacy.parameters import Mechanism
from protocol.envelope import Envelope, seal
from protocol.evaluation import figures, read_report
from protocol.release import EpsilonStatement
from protocol.round import ROUND_REQUEST_TYPE, Packet, RoundRequest
from protocol.study import StudyPlan, StudySpec
from site_agent.consent.judgement import charges, own_epsilons
from site_agent.consent.report import _tuning_lines
from site_agent.releases.trusted_release import _chose_as_planned
from tests.simulator import invariants
from tests.simulator.federation import NAMES, PASS, Delivery, Federation, study_spec
from tests.simulator.test_simulation_agrees import COHORTS, HELD_OUT, PATIENTS

Begin = Callable[..., str]
GRID = [
    {"learning_rate": 0.5}, {"learning_rate": 2.0, "clip": 0.5}, {"learning_rate": 4.0, "momentum": 0.0},
]  # fmt: skip
TUNED: dict[str, Any] = {
    "tuning": {"grid": GRID},
    "privacy": {"epsilon": 1.0, "delta": 1e-4, "retries": 2},
    "training": {"rounds": 3, "sampling_rate": 0.25, "clip": 0.25, "learning_rate": 1.0},
    "evaluation": {"epsilon": 2.0, "attempts": 2, "bins": 4},
}


class Crash(BaseException):
    """The coordinator's process ends here."""


def _statement(federation: Federation, study: str) -> EpsilonStatement:
    candidate = federation.candidate(study)
    assert candidate is not None
    return EpsilonStatement.model_validate_json(candidate.epsilon)


def _asked(federation: Federation, study: str) -> list[tuple[str, int, int]]:
    """(phase, round, entry) of every attempt, in order."""
    requests = [request_of(recorded) for recorded in federation.attempts(study)]
    return [(request.phase, request.round, request.entry) for request in requests]


def test_every_run_is_trained_scored_and_charged_and_the_best_is_evaluated_once_more(
    federation: Federation, begin: Begin
) -> None:
    study = begin(**TUNED)
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    said = _statement(federation, study)
    assert said.selection is not None
    assert said.selection.runs == (1, 2, 3)
    best = max(range(3), key=lambda run: (said.selection.scores[run], -run))  # type: ignore[union-attr]
    assert said.selection.chosen == best + 1
    trained = [("train", run * 3 + number, run + 1) for run in range(3) for number in (1, 2, 3)]
    expected = [*trained[:3], ("evaluate", 1, 1), *trained[3:6], ("evaluate", 2, 2), *trained[6:], ("evaluate", 3, 3)]
    assert _asked(federation, study) == [*expected, ("evaluate", 4, said.selection.chosen)]
    assert (said.steps_charged, said.rounds_executed, said.attempts) == (11, 9, 9)
    for name, site in federation.sites.items():
        assert federation.charged(study, name) == {False: 9, True: 4}
        assert site.worker.noisy_steps == 13
    # The released model was asked about twice, with fresh noise: what it was chosen by is not what is reported.
    candidate = federation.candidate(study)
    assert candidate is not None
    reported = figures(read_report(candidate.evaluation))[0][1].value
    assert reported != said.selection.scores[best]
    committed = [event for event in federation.events(study) if event.event == "round.committed"]
    assert [event.numbers["epsilon"] for event in committed] == sorted(event.numbers["epsilon"] for event in committed)
    attempted = [event for event in federation.events(study) if event.event == "round.attempted"]
    assert [event.numbers["entry"] for event in attempted] == [entry for _, _, entry in _asked(federation, study)]


def test_the_noise_keeps_the_promise_over_all_runs_by_both_sides(federation: Federation, begin: Begin) -> None:
    plan = federation.plan(begin(**TUNED))
    together = epsilon(Mechanism(plan.noise_multiplier, 0.25, 3 * 3 + 2, 1e-4))
    assert 0.99 < together <= 1.0
    here = own_epsilons(plan)
    assert here.training == pytest.approx(together)
    assert here.evaluation == pytest.approx(repeated_gaussian_epsilon(plan.evaluation_multiplier, 5, 1e-4))
    assert 1.99 < here.evaluation <= 2.0 + 1e-9
    training, evaluation = charges(plan, here)
    assert (training.steps, evaluation.steps) == (11, 5)
    cost = tuning_account(plan.spec, calibrate(plan.spec, 4))
    assert cost is not None
    assert (cost.runs, cost.steps) == (3, 11)
    assert cost.training == pytest.approx(here.training, rel=1e-2)
    assert cost.held_out == pytest.approx(here.evaluation, rel=1e-2)
    assert cost.dearest_run < 0.8 * cost.training
    alone = study_spec(**{**TUNED, "tuning": None})
    assert calibrate(alone, 4).noise_multiplier < plan.noise_multiplier


def test_a_plan_that_counts_one_run_alone_is_refused_by_the_site(federation: Federation, begin: Begin) -> None:
    from site_agent.consent.judgement import _about_noise

    plan = federation.plan(begin(**TUNED))
    assert not list(_about_noise(plan, own_epsilons(plan)))
    one = calibrate(study_spec(**{**TUNED, "tuning": None}), 4)
    forged = plan.model_copy(
        update={"noise_multiplier": one.noise_multiplier, "evaluation_multiplier": one.evaluation_multiplier}
    )
    found = {objection.code for objection in _about_noise(forged, own_epsilons(forged))}
    assert {"noise", "epsilon", "worst-case", "evaluation-noise"} <= found


@pytest.mark.parametrize("group", ["train-5-1", "evaluate-2-1", "train-7-1", "evaluate-4-1"])
@pytest.mark.parametrize("moment", ["before_request", "after_request"])
def test_a_driver_that_dies_in_a_later_run_goes_on_there(
    federation: Federation, begin: Begin, group: str, moment: str
) -> None:
    study, died = begin(**TUNED), list[str]()
    order = ["keys-advertise", "keys-encapsulate", "keys-establish"]
    for run in range(3):
        order += [f"train-{run * 3 + number}-1" for number in (1, 2, 3)] + [f"evaluate-{run + 1}-1"]
    order.append("evaluate-4-1")

    def die() -> None:
        if order[len(federation.exchange.requests) - (moment == "after_request")] == group and not died:
            died.append(group)
            raise Crash

    setattr(federation.exchange, moment, die)
    with pytest.raises(Crash):
        federation.driver(study).run()
    federation.exchange.after_request = federation.exchange.before_request = lambda: None
    assert federation.driver(study).run() is StudyState.CANDIDATE
    assert died
    invariants.check(federation, study)
    assert all(len(envelopes) == 1 for envelopes in invariants.requests_sent(federation).values())
    assert all(federation.charged(study, name) == {False: 9, True: 4} for name in NAMES)


def test_drop_outs_share_the_retries_of_all_runs_and_no_more(federation: Federation, begin: Begin) -> None:
    study = begin(**TUNED)
    lost = {("berlin", "train-5-1"), ("cologne", "train-7-1"), ("dresden", "evaluate-2-1")}
    federation.exchange.faults.append(lambda d: None if (d.site.name, d.group) in lost else PASS)
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert federation.charged(study, "aachen") == {False: 11, True: 5}
    beyond = begin(**TUNED)
    more = {("berlin", f"train-{number}-1") for number in (2, 4)} | {("cologne", "train-8-1")}
    federation.exchange.faults[:] = [lambda d: None if (d.site.name, d.group) in more else PASS]
    assert federation.driver(beyond).run() is StudyState.FAILED
    assert federation.row(beyond).reason == "retries-exhausted"
    assert federation.charged(beyond, "aachen")[False] <= 11


def _with_entry(delivery: Delivery, entry: int, federation: Federation) -> bytes:
    """The request as a lying coordinator would sign it for this one site."""
    packet = Packet.from_bytes(delivery.packet)
    request = RoundRequest.model_validate_json(packet.envelope.payload)
    forged = request.model_copy(update={"entry": entry}).model_dump(mode="json")
    envelope: Envelope = seal(ROUND_REQUEST_TYPE, forged, federation.appliance.keys.coordinator)
    return delivery.site.participant.answer(delivery.kind, Packet(envelope, packet.body).to_bytes())


def test_sites_that_are_told_different_entries_share_no_masks(federation: Federation, begin: Begin) -> None:
    """The noise follows the entry's clip: a site that clips at 0.5 among sites that noise for 0.25 would be told apart.
    Their masks do not cancel, and what the coordinator gets is noise over the whole modulus."""
    study = begin(**{**TUNED, "tuning": {"grid": GRID, "order": "searched"}})
    taken: list[bytes] = []

    def lie(delivery: Delivery) -> bytes:
        if delivery.group == "train-1-1" and delivery.site.name == "berlin":
            request = RoundRequest.model_validate_json(Packet.from_bytes(delivery.packet).envelope.payload)
            taken.append(_with_entry(delivery, request.entry % 3 + 1, federation))
            return taken[0]
        return PASS  # type: ignore[return-value]

    federation.exchange.faults.append(lie)
    federation.driver(study).run()
    assert taken
    honest = [a for a in federation.attempts(study) if (a.attempt.phase, a.attempt.round) == ("train", 1)]
    bodies = {
        site: Packet.from_bytes(said).body
        for site, packet, said in federation.exchange.answers
        if _subject(packet) == ("train", 1, 1) and said not in taken
    }
    bodies["berlin"] = Packet.from_bytes(taken[0]).body
    assert set(bodies) == set(NAMES)
    total = sum(np.frombuffer(body, dtype="<u4").astype(np.uint64) for body in bodies.values()) % 2**32
    centred = np.where(total >= 2**31, total.astype(np.int64) - 2**32, total.astype(np.int64))
    plan = federation.plan(study).of_entry(request_of(honest[0]).entry)
    honest_size = 100 * plan.noise_multiplier * 0.5 / grid_of(plan.secure_sum("train", NAMES)).step
    assert np.abs(centred).max() > honest_size


def _subject(packet: bytes) -> tuple[str, int, int] | None:
    envelope = Packet.from_bytes(packet).envelope
    if envelope.payload_type != ROUND_REQUEST_TYPE:
        return None
    request = RoundRequest.model_validate_json(envelope.payload)
    return request.phase, request.round, request.attempt


@pytest.mark.parametrize("entry", [0, 2, 4])
def test_an_entry_that_is_not_the_round_s_is_refused_before_any_charge(
    federation: Federation, begin: Begin, entry: int
) -> None:
    study = begin(**TUNED)
    federation.exchange.faults.append(
        lambda d: _with_entry(d, entry, federation) if d.group == "train-1-1" and d.site.name == "berlin" else PASS
    )
    federation.driver(study).run()
    assert federation.records(study)[0]["excluded"] == {"berlin": "refused:entry-unknown"}
    assert federation.charged(study, "berlin")[False] == 8


def _plan(**changes: object) -> StudyPlan:
    return simulated_plan(study_spec(**{**TUNED, **changes}), dict.fromkeys(NAMES, (PATIENTS, HELD_OUT)))


def _run(number: int, entry: int, score: float | None) -> Run:
    return Run(number, entry, np.array([float(entry)]), score)


def test_a_search_takes_each_entry_once_and_follows_from_the_scores_alone() -> None:
    grid = [{"learning_rate": float(rate), "clip": clip} for rate in (0.5, 1, 2, 4) for clip in (0.1, 0.25, 0.5)]
    plan = _plan(tuning={"grid": grid, "order": "searched", "runs": 8})
    runs: list[Run] = []
    for number in range(1, 9):
        entry = searched_entry(plan, "sha256:" + "a" * 64, runs)
        assert entry == searched_entry(plan, "sha256:" + "a" * 64, list(runs))
        runs.append(_run(number, entry, 0.5 + 0.01 * entry if entry % 5 else None))
    assert len({run.entry for run in runs}) == 8
    other = [searched_entry(plan, f"sha256:{seed:064d}", []) for seed in range(8)]
    assert len(set(other)) > 1


def test_the_best_score_wins_the_earliest_of_equals_and_an_undefined_one_last() -> None:
    plan = _plan()
    runs = [_run(1, 1, None), _run(2, 2, 0.7), _run(3, 3, 0.7)]
    assert best_of(plan, runs).entry == 2
    assert best_of(plan, [_run(1, 1, None), _run(2, 2, None)]).entry == 1
    point = point_after(plan, "sha256:" + "a" * 64, runs)
    assert (point.run, point.entry, point.averaged) == (4, 2, 1)
    assert isinstance(point, ModelPoint)
    np.testing.assert_array_equal(point.average, [2.0])


def test_a_release_must_tell_of_the_runs_that_were_planned_and_choose_the_best() -> None:
    plan = _plan()
    runs = [_run(1, 1, 0.6), _run(2, 2, 0.8), _run(3, 3, None)]
    said = selection_of(plan, runs)
    assert said is not None
    assert said.chosen == 2
    assert _chose_as_planned(plan, said)
    assert not _chose_as_planned(plan, None)
    for wrong in (
        {"runs": (1, 2), "scores": (0.6, 0.8)},
        {"chosen": 1, "changes": plan.spec.tuning.grid[0]},  # type: ignore[union-attr]
        {"changes": plan.spec.tuning.grid[0]},  # type: ignore[union-attr]
        {"runs": (2, 1, 3)},
        {"entries": 4},
        {"order": "searched"},
    ):
        assert not _chose_as_planned(plan, said.model_copy(update=wrong)), wrong
    card = "\n".join(_selection(said))
    assert "best of 3 runs over a declared grid of 3 entries (entry 2)" in card
    assert "undefined" in card
    assert "lean upwards" in card


def test_what_tuning_costs_is_shown_before_anybody_consents(tmp_path: Path) -> None:
    spec = study_spec(**TUNED)
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(spec.model_dump(mode="json")))
    made, problems, _ = make_forecast(load_spec(file), spec, None)
    assert made is not None
    assert not problems
    assert "tuning: 3 runs of a grid of 3, in the order listed, 11 steps, all charged" in made.text()
    told = made.to_dict()
    assert told["tuning"]["dearest_run"] < told["epsilon"]["global"] <= 1.0
    assert (told["steps"], told["mode"]) == (11, "distributed")
    lines = "\n".join(_tuning_lines(_plan()))
    assert "3 runs of a grid of 3: this site charges the steps of all of them, 11 in all, and 5 noised scores" in lines


def test_a_searched_study_runs_part_of_its_grid(federation: Federation, begin: Begin) -> None:
    study = begin(**{**TUNED, "tuning": {"grid": GRID, "order": "searched", "runs": 2}})
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    said = _statement(federation, study)
    assert said.selection is not None
    assert len(said.selection.runs) == 2
    assert said.selection.entries == 3
    assert said.selection.chosen in said.selection.runs
    assert all(federation.charged(study, name) == {False: 6, True: 3} for name in NAMES)


def test_a_tuned_study_trains_locally_too(federation: Federation, begin: Begin) -> None:
    local = {**TUNED["training"], "local_steps": 4, "largest_delta": 2.0, "server": {"rule": "fedavg"}}
    grid = [{"learning_rate": 0.5}, {"server": {"rule": "fedyogi", "rate": 0.1}}]
    privacy = {**TUNED["privacy"], "mode": "local"}
    study = begin(**{**TUNED, "training": local, "privacy": privacy, "tuning": {"grid": grid}})
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert federation.plan(study).spec.steps == 4 * (2 * 3 + 2)
    for name, site in federation.sites.items():
        assert federation.charged(study, name) == {False: 24, True: 3}
        assert site.worker.noisy_steps == 27


def test_a_simulation_walks_the_same_grid_and_finds_the_entry_that_learns() -> None:
    training = {"rounds": 12, "sampling_rate": 0.5, "clip": 0.25, "learning_rate": 2.0}
    privacy = {"epsilon": 8.0, "delta": 1e-4, "retries": 2}
    grid = [{"learning_rate": 1e-6, "momentum": 0.0}, {"learning_rate": 2.0}]
    plan = _plan(
        training=training, privacy=privacy, tuning={"grid": grid}, evaluation={"epsilon": 8.0, "attempts": 1, "bins": 8}
    )
    simulated = simulate(plan, COHORTS, seeded_entropy(5))
    assert simulated.failure is None
    assert simulated.selection is not None
    assert simulated.selection.chosen == 2
    assert (simulated.rounds, simulated.attempts) == (24, 24)
    assert simulated.measured is not None
    assert simulated.measured > 0.8
    lost = iter([True, True, False, *[True] * 10_000])
    again = simulate(plan, COHORTS, seeded_entropy(6), answers=lambda: next(lost))
    assert (again.failure, again.attempts) == (None, 25)


@pytest.mark.parametrize(
    ("tuning", "says"),
    [
        ({"grid": []}, "at least 2 items"),
        ({"grid": [{"learning_rate": 1.0 + number} for number in range(65)]}, "at most 64 items"),
        ({"grid": [{"clip": 0.0}, {"clip": 1.0}]}, "greater than 0"),
        ({"grid": [{"clip": -1.0}, {"clip": 1.0}]}, "greater than 0"),
        ({"grid": [{}, {"clip": 1.0}]}, "changes nothing"),
        ({"grid": [{"clip": 1.0}, {"clip": 1.0}]}, "are the same"),
        ({"grid": GRID, "runs": 2}, "runs every entry"),
        ({"grid": GRID, "runs": 4, "order": "searched"}, "4 runs of a grid of 3"),
        ({"grid": [*GRID, {"largest_delta": 1.0}]}, "entry 4 of tuning.grid: .* belong to privacy.mode local"),
        ({"grid": [{"sampling_rate": 0.5}, *GRID]}, "Extra inputs"),
        ({"grid": GRID, "order": "pruned"}, "Input should be"),
    ],
)
def test_a_grid_that_makes_no_sense_is_not_even_a_proposal(tuning: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        study_spec(**{**TUNED, "tuning": tuning})


def test_a_tuned_study_is_not_evaluated_exactly_nor_for_ever() -> None:
    with pytest.raises(ValidationError, match="needs a noised one"):
        study_spec(**{**TUNED, "evaluation": {"mode": "exact"}})
    grid = [{"learning_rate": 1.0 + number} for number in range(64)]
    with pytest.raises(ValidationError, match="over 100000 rounds"):
        study_spec(**{**TUNED, "tuning": {"grid": grid}, "training": {**TUNED["training"], "rounds": 5000}})
    whole: StudySpec = study_spec(**{**TUNED, "tuning": {"grid": grid}})
    assert whole.steps == 64 * 3 + 2
