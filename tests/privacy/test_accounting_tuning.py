"""A grid pays for all its runs and all its scores, whoever picks the order."""

import math

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from privacy.accounting.epsilon import epsilon
from privacy.accounting.events import ADJACENCY
from privacy.accounting.gaussian import gaussian_epsilon
from privacy.accounting.tuning import (
    Score,
    TuningGrid,
    score_noise_multiplier,
    tuned_noise_multiplier,
    tuning_cost,
    tuning_forecast,
)
from privacy.errors import ParameterError
from privacy.parameters import Mechanism

DELTA = 1e-5
SMALL = Mechanism(9.0, 0.1, 20, DELTA)
LARGE = Mechanism(6.0, 0.2, 30, DELTA)
SCORE = Score(8.0, 2)


def test_all_runs_are_composed_as_the_accountant_would_compose_their_steps() -> None:
    cost = tuning_cost(TuningGrid((SMALL, LARGE, SMALL), SCORE, DELTA), 1e-3)
    accountant = PLDAccountant(ADJACENCY, value_discretization_interval=1e-3)
    for run in (SMALL, LARGE, SMALL):
        step = dp_accounting.PoissonSampledDpEvent(
            run.sampling_rate, dp_accounting.GaussianDpEvent(run.noise_multiplier)
        )
        for _ in range(run.steps):
            accountant.compose(step)
    assert cost.training == pytest.approx(accountant.get_epsilon(DELTA), rel=2e-3)
    assert cost.steps == 70
    assert cost.dearest_run == epsilon(LARGE, 1e-3) < cost.training
    assert cost.price == cost.training / cost.dearest_run


def test_a_grid_of_one_costs_what_the_run_costs() -> None:
    for order in ("declared", "searched"):
        cost = tuning_cost(TuningGrid((LARGE,), SCORE, DELTA, order=order), 1e-3)
        assert cost.training == epsilon(LARGE, 1e-3)
        assert cost.price == 1.0


def test_a_search_pays_for_the_costliest_run_each_time() -> None:
    runs = (Mechanism(4.0, 0.05, 10, DELTA), Mechanism(8.0, 0.2, 10, DELTA), Mechanism(8.0, 0.05, 25, DELTA))
    searched = TuningGrid(runs, SCORE, DELTA, order="searched")
    assert searched.charged == (Mechanism(4.0, 0.2, 25, DELTA),) * 3
    dearest = tuning_cost(searched, 1e-3)
    assert dearest.training == epsilon(Mechanism(4.0, 0.2, 75, DELTA), 1e-3)
    assert dearest.training > tuning_cost(TuningGrid(runs, SCORE, DELTA), 1e-3).training


def test_equal_runs_cost_the_same_in_any_order() -> None:
    declared, searched = (TuningGrid((SMALL,) * 4, SCORE, DELTA, order=order) for order in ("declared", "searched"))
    assert tuning_cost(declared, 1e-3) == tuning_cost(searched, 1e-3)


def test_every_attempt_at_every_score_is_charged_to_held_out_patients() -> None:
    cost = tuning_cost(TuningGrid((SMALL,) * 6, SCORE, DELTA))
    assert cost.held_out == pytest.approx(gaussian_epsilon(8.0 / math.sqrt(12), DELTA), rel=1e-3)
    final = tuning_cost(TuningGrid((SMALL,) * 6, SCORE, DELTA, final=Score(2.0)))
    together = gaussian_epsilon(1 / math.sqrt(12 / 64 + 1 / 4), DELTA)
    assert final.held_out == pytest.approx(together, rel=1e-3)
    assert final.training == cost.training
    assert final.epsilon == max(final.training, final.held_out)


def test_the_worst_site_has_its_share_of_noise_only() -> None:
    grid = TuningGrid((SMALL, LARGE), SCORE, DELTA, final=Score(4.0)).worst_site(sites=6, tolerated=2)
    assert [run.noise_multiplier for run in grid.runs] == [4.5, 3.0]
    assert (grid.score.noise_multiplier, grid.score.attempts) == (4.0, 2)
    assert grid.final is not None
    assert grid.final.noise_multiplier == 2.0
    assert [run.steps for run in grid.runs] == [20, 30]


def test_noise_calibrated_for_a_grid_keeps_the_promise_and_wastes_little() -> None:
    sigma = tuned_noise_multiplier(2.0, DELTA, 0.1, 20, 5)
    cost = tuning_cost(TuningGrid((Mechanism(sigma, 0.1, 20, DELTA),) * 5, SCORE, DELTA))
    assert 1.99 < cost.training <= 2.0
    score = score_noise_multiplier(1.0, DELTA, 7)
    held_out = tuning_cost(TuningGrid((SMALL,) * 7, Score(score), DELTA)).held_out
    assert held_out == pytest.approx(1.0, abs=2e-3)


def test_the_forecast_shows_both_ways_to_pay() -> None:
    rows = tuning_forecast(2.0, DELTA, 0.1, 20, (1, 4))
    assert [row.runs for row in rows] == [1, 4]
    assert rows[0].noise_factor == 1.0
    assert rows[0].epsilon == pytest.approx(2.0, rel=1e-3)
    assert rows[1].epsilon > 2.5
    assert rows[1].noise_factor > 1.2
    assert epsilon(Mechanism(rows[1].noise_multiplier, 0.1, 80, DELTA)) <= 2.0


@pytest.mark.parametrize(
    "bad",
    [
        {"runs": ()},
        {"runs": (SMALL,) * 1001},
        {"runs": (SMALL, Mechanism(9.0, 0.1, 20, 1e-6))},
        {"delta": 1.0},
        {"order": "whatever"},
    ],
)
def test_what_is_no_grid_is_refused(bad: dict) -> None:
    with pytest.raises(ParameterError):
        TuningGrid(**{"runs": (SMALL,), "score": SCORE, "delta": DELTA, **bad})


def test_what_is_no_score_or_size_is_refused() -> None:
    for values in ((0.0, 1), (float("inf"), 1), (1.0, 0)):
        with pytest.raises(ParameterError):
            Score(*values)
    for call in (
        lambda: tuned_noise_multiplier(1.0, DELTA, 0.1, 20, 0),
        lambda: score_noise_multiplier(1.0, DELTA, 0),
        lambda: tuning_forecast(1.0, DELTA, 0.1, 20, (0,)),
    ):
        with pytest.raises(ParameterError):
            call()
