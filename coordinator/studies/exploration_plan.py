"""From an exploration's spec to the plan that sites consent to. Pure.

All its sums are of the same patients, each in full: so many Gaussian releases of one noise multiplier cost what one of
multiplier / sqrt(releases) costs, exactly, and no sampling is relied on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coordinator.studies.plan import Papers, require_plausible, require_worst_case
from privacy.accounting.epsilon import curve_points
from privacy.accounting.gaussian import gaussian_multiplier_for, repeated_gaussian_epsilon
from privacy.parameters import site_noise_multiplier
from protocol.canonical import digest
from protocol.exploration import ExplorationPlan, ExplorationSpec
from protocol.plan import PlannedApprover


@dataclass(frozen=True)
class ExplorationNoise:
    """The noise of every sum over its L2 bound, and what all sums cost: in all, and at a site whose peers collude."""

    noise_multiplier: float
    epsilon: float
    epsilon_worst_site: float


def calibrate_exploration(spec: ExplorationSpec, sites: int) -> ExplorationNoise:
    """The least noise that keeps the spec's promise over all attempts. Raises PrivacyError where none will do."""
    privacy = spec.privacy
    sigma = gaussian_multiplier_for(privacy.epsilon, privacy.delta) * math.sqrt(spec.steps)
    alone = site_noise_multiplier(sigma, sites, privacy.colluders + privacy.dropouts)
    return ExplorationNoise(
        noise_multiplier=sigma,
        epsilon=repeated_gaussian_epsilon(sigma, spec.steps, privacy.delta),
        epsilon_worst_site=repeated_gaussian_epsilon(alone, spec.steps, privacy.delta),
    )


def exploration_forecast(spec: ExplorationSpec, noise_multiplier: float) -> tuple[tuple[int, float], ...]:
    """((sums, epsilon after so many), ...), rising to all attempts."""
    delta = spec.privacy.delta
    return tuple(
        (steps, repeated_gaussian_epsilon(noise_multiplier, steps, delta)) for steps in curve_points(spec.steps)
    )


def build_exploration_plan(
    spec: ExplorationSpec, papers: Papers, approvers: tuple[PlannedApprover, ...]
) -> ExplorationPlan:
    """The plan. approvers: who may approve it where policy holds it; nothing of it is released. Raises PlanRefused."""
    require_plausible(spec, papers.sites)
    noise = calibrate_exploration(spec, len(papers.sites))
    require_worst_case(spec, noise.epsilon_worst_site)
    return ExplorationPlan(
        spec=spec,
        spec_digest=digest(spec.model_dump(mode="json")),
        approvers=approvers,
        noise_multiplier=noise.noise_multiplier,
        epsilon=noise.epsilon,
        epsilon_worst_site=noise.epsilon_worst_site,
        **vars(papers),
    )
