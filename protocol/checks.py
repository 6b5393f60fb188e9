"""Checks of the model between rounds: what a researcher asks and what the plan fixes.

A check scores the model of that moment on held-out patients, as the evaluation does, with its own noise and charge.
Where the score has fallen beyond the tolerance, the coordinator goes back to the last model that passed. Rounds go on
with their own numbers: none is ever repeated, so training stays within its T + A attempts.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from protocol.identifiers import Frozen


class Checks(Frozen):
    """every: rounds from one check to the next; the last round is followed by the evaluation instead. epsilon: of all
    checks and retries together, charged to held-out patients beside the evaluation. tolerance: how far the headline
    score (AUC, skill, Dice) may be sure to have fallen. retries: checks that may miss a site."""

    every: Annotated[int, Field(ge=1, le=10_000)]
    epsilon: Annotated[float, Field(gt=0, le=100)] = 1.0
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.1
    retries: Annotated[int, Field(ge=0, le=20)] = 2


class PlannedChecks(Frozen):
    """noise_multiplier: sigma of each count. epsilon: of a held-out patient over all checks; epsilon_worst_site: if all
    others collude."""

    noise_multiplier: Annotated[float, Field(gt=0)]
    epsilon: Annotated[float, Field(gt=0)]
    epsilon_worst_site: Annotated[float, Field(gt=0)]
