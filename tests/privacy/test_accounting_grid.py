"""Our accountant against every row of a grid from other accountants: Renyi, PLD, and Opacus' PRV with its bounds."""

from __future__ import annotations

import csv
import math
import pathlib

import pytest
from scipy import stats

from privacy.accounting.epsilon import epsilon
from privacy.accounting.gaussian import gaussian_epsilon
from privacy.parameters import Mechanism

GRID = pathlib.Path(__file__).parents[2].parent / "shared" / "vectors" / "dp" / "computed_reference_grid.csv"
pytestmark = pytest.mark.skipif(not GRID.exists(), reason="the shared DP vectors are not beside the repository")


def grid_rows() -> list[dict[str, str]]:
    with GRID.open(newline="") as file:
        return list(csv.DictReader(file))


def closed_form_delta(sigma: float, steps: int, eps: float) -> float:
    mu = math.sqrt(steps) / sigma
    return float(stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu))


def check_closed_form(row: dict[str, str]) -> None:
    sigma, steps, target = float(row["noise_multiplier"]), int(row["steps"]), float(row["delta"])
    exact = gaussian_epsilon(sigma / math.sqrt(steps), target)
    assert exact == pytest.approx(float(row["eps_exact_gaussian_closed_form"]), rel=1e-6)
    if exact > 0 and exact < 200:
        assert closed_form_delta(sigma, steps, exact) == pytest.approx(target, rel=1e-5)


@pytest.mark.parametrize("row", grid_rows() if GRID.exists() else [], ids=lambda row: "-".join(list(row.values())[:4]))
def test_grid_row(row: dict[str, str]) -> None:
    mechanism = Mechanism(
        float(row["noise_multiplier"]), float(row["sampling_prob"]), int(row["steps"]), float(row["delta"])
    )
    ours = epsilon(mechanism, 1e-3)
    # The grid's PLD column was made at another interval; an upper bound may be above it by the discretisation.
    assert ours == pytest.approx(float(row["eps_pld_dp_accounting"]), rel=2e-3, abs=2e-3)
    assert ours <= float(row["eps_rdp_dp_accounting"]) + 1e-9
    if row["eps_prv_lower"]:
        assert float(row["eps_prv_lower"]) <= ours <= float(row["eps_prv_upper"])
    if row["eps_exact_gaussian_closed_form"]:
        assert ours >= float(row["eps_exact_gaussian_closed_form"]) - 1e-6
