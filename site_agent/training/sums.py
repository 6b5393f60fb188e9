"""The grid and the noise of one secure sum, and how far they can carry a model, from what the plan fixes. Pure."""

from __future__ import annotations

import math

from privacy.parameters import CLIP_STEPS, MODULUS, Grid, plan_grid
from protocol.exploration import ExplorationPlan
from protocol.graph import ExportedGraph, initial_values
from protocol.plan import SecureSum
from protocol.study import StudyPlan
from protocol.study_kind import AnyPlan

LARGEST_INITIAL = math.sqrt(6.0)
"""No first weight that is drawn is beyond sqrt(6 / fan in), which is at least 1."""


def sum_parameters(secure_sum: SecureSum) -> tuple[Grid, float | None]:
    """(the grid of the sum, the standard deviation of the noise that this site adds at a time, None for an exact sum).
    Raises PrivacyError."""
    if secure_sum.noise_multiplier is None:
        return Grid(secure_sum.exact_step), secure_sum.own_noise_std
    parameters = plan_grid(
        clip=secure_sum.clip,
        sites=secure_sum.sites,
        tolerated=secure_sum.tolerated,
        b_max=secure_sum.largest_batch,
        noise_multiplier=secure_sum.noise_multiplier,
    )
    return parameters.grid, parameters.site_std


def largest_parameter(plan: AnyPlan) -> float:
    """A magnitude that no parameter of an honest round's model, nor of the averaged candidate, can pass.

    A decoded sum lies within half the modulus of grid steps, and no grid of a plan has a step above clip / CLIP_STEPS.
    It is divided by the expected batch of at least the `minimum_sites` smallest sites; T steps of heavy-ball momentum m
    move a weight by at most T rate / (1 - m) times the largest quotient. Averaging stays within. In local mode the sum
    is of changes, divided by a share of the patients, and the server's rule moves by its momentum, or where it is
    adaptive by at most rate / tau times the largest quotient. The centres of an exploration are kept to [-1, 1].
    """
    if isinstance(plan, ExplorationPlan):
        return 1.0
    spec = plan.spec
    training = spec.training
    trained = sorted(max(1, site.patients - site.held_out) for site in plan.sites)
    if training.server is not None:
        server, share = training.server, sum(trained[: spec.minimum_sites]) / sum(trained)
        largest = plan.secure_sum("train", plan.names).exact_step * MODULUS / 2 / share
        gain = 1.0 / (1.0 - server.beta1) if server.rule == "fedavg" else 1.0 / server.tau
        return _largest_initial(plan) + training.rounds * server.rate * gain * largest
    largest_sum = training.clip / CLIP_STEPS * MODULUS / 2
    batch = training.sampling_rate * sum(trained[: spec.minimum_sites])
    moved = training.rounds * training.learning_rate / (1.0 - training.momentum) * largest_sum / batch
    return _largest_initial(plan) + moved


def _largest_initial(plan: StudyPlan) -> float:
    model = plan.spec.model
    brought = initial_values(model) if isinstance(model, ExportedGraph) else None
    return LARGEST_INITIAL if brought is None else max(map(abs, brought))
