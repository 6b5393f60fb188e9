"""Local DP-SGD, from proposal to candidate: each site noises every local step in full and charges all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pydantic import ValidationError

from coordinator.client.simulated_sites import network_of, site_vector
from coordinator.client.simulation import seeded_entropy, simulate, simulated_plan
from coordinator.rounds.attempts import grid_of
from coordinator.rounds.exchange import Unreached
from coordinator.studies.states import StudyState
from privacy.accounting.epsilon import epsilon
from privacy.entropy import KeyStream
from privacy.federated.local_training import LocalTraining, local_delta
from privacy.federated.server_optimiser import ServerOptimiser, mean_delta
from privacy.parameters import Mechanism
from protocol.release import EpsilonStatement
from protocol.study import StudyPlan
from site_agent.consent.judgement import charges, own_epsilons
from site_agent.training.sums import largest_parameter
from tests.simulator import invariants
from tests.simulator.federation import NAMES, PASS, Federation, study_spec
from tests.simulator.test_simulation_agrees import COHORTS, HELD_OUT, PATIENTS

Begin = Callable[..., str]
LOCAL = {
    "training": {
        "rounds": 3, "sampling_rate": 0.25, "clip": 0.25, "learning_rate": 2.0, "momentum": 0.5, "local_steps": 5,
        "largest_delta": 3.0, "server": {"rule": "fedadam", "rate": 0.3, "beta1": 0.9},
    },
    "privacy": {"epsilon": 1.0, "delta": 1e-4, "retries": 2, "mode": "local"},
}  # fmt: skip


def test_a_site_charges_every_local_step_and_an_abandoned_attempt_s_too(federation: Federation, begin: Begin) -> None:
    study = begin(**LOCAL)
    federation.exchange.faults.append(
        lambda d: None if (d.site.name, d.group) == ("berlin", "train-2-1") and d.answer() else PASS
    )
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    plan = federation.plan(study)
    assert plan.spec.steps == 25
    for name, site in federation.sites.items():
        rounds = 3 if name == "berlin" else 4
        assert federation.charged(study, name) == {False: 5 * rounds, True: 1}
        assert site.worker.noisy_steps == 5 * rounds + 1
    candidate = federation.candidate(study)
    assert candidate is not None
    said = EpsilonStatement.model_validate_json(candidate.epsilon)
    assert (said.steps_charged, said.attempts, said.rounds_executed) == (25, 4, 3)
    assert said.epsilon_worst_site == said.epsilon
    assert "each site adds all the noise itself, in each of its 5 private steps" in said.trust
    committed = [event for event in federation.events(study) if event.event == "round.committed"]
    assert committed[0].numbers["epsilon"] < committed[-1].numbers["epsilon"] <= 1.0


def test_the_noise_is_calibrated_for_all_local_steps_by_both_sides(federation: Federation, begin: Begin) -> None:
    plan = federation.plan(begin(**LOCAL))
    exact = epsilon(Mechanism(plan.noise_multiplier, 0.25, (3 + 2) * 5, 1e-4))
    assert 0.99 < exact <= 1.0
    here = own_epsilons(plan)
    assert here.training == here.worst_site == pytest.approx(exact)
    training, _ = charges(plan, here)
    assert (training.steps, training.epsilon) == (25, here.training)
    # The others' collusion changes nothing; it does where the noise is shared.
    shared = federation.plan(begin())
    assert own_epsilons(shared).worst_site > own_epsilons(shared).training


def test_steps_beyond_the_calibrated_ones_are_refused_before_they_are_charged(
    federation: Federation, begin: Begin
) -> None:
    study = begin(**{**LOCAL, "privacy": {**LOCAL["privacy"], "retries": 0}})
    federation.exchange.faults.append(
        lambda d: Unreached("lost") if (d.site.name, d.group) == ("aachen", "train-3-1") else PASS
    )
    assert federation.driver(study).run() is StudyState.FAILED
    assert federation.row(study).reason == "retries-exhausted"
    assert federation.charged(study, "berlin")[False] == 15
    invariants.the_ledger_never_undercounts(federation, study)


def test_the_coordinator_dies_and_a_server_rule_goes_on_where_it_was(federation: Federation, begin: Begin) -> None:
    class Crash(BaseException):
        pass

    study, died = begin(**LOCAL), list[str]()

    def die() -> None:
        if federation.exchange.requests[-1][1] == "train-2-1" and not died:
            died.append("train-2-1")
            raise Crash

    federation.exchange.after_request = die
    with pytest.raises(Crash):
        federation.driver(study).run()
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert all(federation.charged(study, name)[False] == 15 for name in NAMES)


def _plan(**training: object) -> StudyPlan:
    document = {**LOCAL["training"], **training}
    return simulated_plan(
        study_spec(training=document, privacy=LOCAL["privacy"]), dict.fromkeys(NAMES, (PATIENTS, HELD_OUT))
    )


def _training(plan: StudyPlan) -> LocalTraining:
    training = plan.spec.training
    return LocalTraining(
        training.local_steps, training.learning_rate, training.clip, training.sampling_rate, plan.noise_multiplier,
        training.sampling_rate * (PATIENTS - HELD_OUT), training.momentum, training.largest_delta,
    )  # fmt: skip


@pytest.mark.parametrize("rule", ["fedavg", "fedadam", "fedyogi"])
def test_the_wired_mode_is_the_library_s_local_dp_sgd(rule: str) -> None:
    """The same draws through the study's own path and through the loop by which docs/UTILITY.md was measured."""
    server = {"rule": rule, "rate": 0.3, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
    plan = _plan(server=server, rounds=4, average_last=0.5)
    simulated = simulate(plan, COHORTS, seeded_entropy(3))
    entropy, network = seeded_entropy(3), network_of(plan.spec.model, plan.spec.dataset.width)
    optimiser = ServerOptimiser(rule, learning_rate=0.3, beta1=0.9, beta2=0.99, tau=1e-3)  # type: ignore[arg-type]
    state, averaged = optimiser.start(np.zeros(network.parameters)), []
    for _ in range(4):
        deltas = {}
        for name in NAMES:
            deltas[name] = local_delta(COHORTS[name].training, network, state.weights, _training(plan), entropy=entropy)
            KeyStream.fresh(entropy)  # the study rounds onto its grid here
        state = optimiser.step(state, mean_delta(deltas, dict.fromkeys(NAMES, PATIENTS - HELD_OUT)))
        averaged.append(state.weights)
    assert simulated.weights is not None
    np.testing.assert_allclose(simulated.weights, np.mean(averaged[2:], axis=0), atol=1e-5)
    assert np.linalg.norm(simulated.weights) > 0.1


def test_no_change_of_a_site_can_wrap_the_sum_around_or_be_taken_for_a_runaway_model() -> None:
    plan = _plan(largest_delta=0.7, server={"rule": "fedavg"})
    planned = plan.secure_sum("train", NAMES)
    grid = grid_of(planned)
    assert grid.half_range >= 2 * 0.7
    assert 0.7 / grid.step > 2**28
    for name in NAMES:
        vector = site_vector(
            plan, "train", NAMES, COHORTS[name], np.zeros(plan.parameters), seeded_entropy(5), site=name
        )
        assert np.linalg.norm(vector) <= 0.7 / 4 * (1 + 1e-9)
    # three rounds, each of at most half the modulus over the share of the fewest sites that may take part
    assert largest_parameter(plan) > 3 * grid.half_range


def test_a_simulation_without_noise_takes_the_same_steps() -> None:
    plan = _plan(server={"rule": "fedavg"}, sampling_rate=1.0)
    bare = simulate(plan, COHORTS, seeded_entropy(1), noise=False)
    again = simulate(plan, COHORTS, seeded_entropy(2), noise=False)
    assert bare.weights is not None
    assert again.weights is not None
    np.testing.assert_allclose(bare.weights, again.weights, atol=1e-6)
    assert bare.measured is not None
    assert bare.measured > 0.8


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training": {**LOCAL["training"], "local_steps": 0}}, "greater than or equal to 1"),
        ({"training": {**LOCAL["training"], "sampling_rate": 0}}, "greater than 0"),
        ({"training": {**LOCAL["training"], "sampling_rate": 1.5}}, "less than or equal to 1"),
        ({"training": {**LOCAL["training"], "largest_delta": None}}, "needs training.largest_delta"),
        ({"training": {**LOCAL["training"], "server": None}}, "needs training.largest_delta and training.server"),
        ({"privacy": {**LOCAL["privacy"], "epsilon": 0}}, "greater than 0"),
        ({"privacy": {**LOCAL["privacy"], "mode": "distributed"}}, "belong to privacy.mode local"),
        ({"privacy": {**LOCAL["privacy"], "mode": "none"}}, "Input should be"),
    ],
)
def test_a_study_that_makes_no_sense_is_not_even_a_proposal(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        study_spec(**{**LOCAL, **changes})


def test_a_plan_whose_stated_noise_is_too_small_is_refused_by_the_site(federation: Federation, begin: Begin) -> None:
    from site_agent.consent.judgement import _about_noise

    plan = federation.plan(begin(**LOCAL))
    assert not list(_about_noise(plan, own_epsilons(plan)))
    # calibrated for one step a round, as a coordinator would that forgets the local steps
    lazy = plan.model_copy(update={"noise_multiplier": plan.noise_multiplier / 2})
    found = {objection.code for objection in _about_noise(lazy, own_epsilons(lazy))}
    assert {"noise", "epsilon", "worst-case"} <= found
