"""From a spec to the plan that sites consent to: who takes part under which key, and how much noise. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privacy.accounting.calibration import noise_multiplier_for
from privacy.accounting.epsilon import FORECAST_INTERVAL, curve_points, epsilon, epsilon_per_round
from privacy.accounting.gaussian import gaussian_multiplier_for, repeated_gaussian_epsilon
from privacy.accounting.tuning import Score, TuningCost, TuningGrid, tuning_cost
from privacy.auditing.membership import audit_multiplier, worth_asking
from privacy.evaluation.histogram import check_bins
from privacy.parameters import Mechanism, site_noise_multiplier
from protocol.canonical import digest
from protocol.checks import PlannedChecks
from protocol.dataset import DatasetSchema
from protocol.errors import CloisterError
from protocol.membership import MOST_SCORED, PlannedMembership
from protocol.plan import Plan, PlannedApprover, PlannedSite
from protocol.proposal import MINIMUM_CELL, Proposal
from protocol.review import APPROVING_ROLES, Reviewer, ReviewPolicy, shortfall
from protocol.study import StudyPlan, StudySpec


class PlanRefused(CloisterError):
    """No plan can be made of the spec as it stands."""

    code = "plan-refused"


@dataclass(frozen=True)
class EnrolledSite:
    """What the coordinator knows of an active site that a study may invite."""

    name: str
    identity: str


@dataclass(frozen=True)
class RegisteredDataset:
    """A site's registered snapshot: digests and the two counts that are public."""

    site: str
    schema_digest: str
    snapshot: str
    patients: int
    held_out: int


@dataclass(frozen=True)
class Calibration:
    """The noise of a study and what it costs: sigma of the sum, and epsilon at T + A steps, global and worst site;
    likewise of the evaluation (0 and None in exact mode)."""

    noise_multiplier: float
    epsilon: float
    epsilon_worst_site: float
    evaluation_multiplier: float
    epsilon_evaluation_worst_site: float | None


def schema_digest(schema: DatasetSchema) -> str:
    """SHA-256 over the schema's canonical form."""
    return digest(schema.model_dump(mode="json"))


def mechanism(spec: StudySpec, multiplier: float) -> Mechanism:
    """`multiplier` over all T + A steps of the spec at its delta."""
    return Mechanism(multiplier, spec.training.sampling_rate, spec.steps, spec.privacy.delta)


def site_multiplier(spec: StudySpec, multiplier: float, sites: int) -> float:
    """A site's own noise over the clip, among `sites` planned ones: all of it in local mode, else its share."""
    if spec.privacy.mode == "local":
        return multiplier
    return site_noise_multiplier(multiplier, sites, spec.privacy.colluders + spec.privacy.dropouts)


def calibrate(spec: StudySpec, sites: int) -> Calibration:
    """The least noise that keeps the spec's promise, and each site's worst case among `sites` planned ones.

    The worst case assumes that all others collude: a site's own noise is then all that is left, and it is least when
    every planned site is in the cohort. In local mode each site adds all the noise itself, whatever the others do.
    Raises PrivacyError where no noise will do.
    """
    privacy = spec.privacy
    tolerated = privacy.colluders + privacy.dropouts
    sigma = noise_multiplier_for(privacy.epsilon, privacy.delta, spec.training.sampling_rate, spec.steps)
    alone = site_multiplier(spec, sigma, sites)
    evaluation, evaluation_worst = 0.0, None
    if spec.evaluation.mode == "noised":
        attempts = spec.evaluations
        # k Gaussian releases of sigma cost as much as one of sigma / sqrt(k)
        evaluation = gaussian_multiplier_for(spec.evaluation.epsilon, privacy.delta) * math.sqrt(attempts)
        evaluation_alone = site_noise_multiplier(evaluation, sites, tolerated)
        evaluation_worst = repeated_gaussian_epsilon(evaluation_alone, attempts, privacy.delta)
    return Calibration(
        noise_multiplier=sigma,
        epsilon=epsilon(mechanism(spec, sigma)),
        epsilon_worst_site=epsilon(mechanism(spec, alone)),
        evaluation_multiplier=evaluation,
        epsilon_evaluation_worst_site=evaluation_worst,
    )


def plan_checks(spec: StudySpec) -> PlannedChecks | None:
    """The noise of the checks between rounds among all invited sites and what they cost; None where there are none."""
    asked, count = spec.training.checks, spec.training.check_count
    if asked is None or count == 0:
        return None
    privacy, attempts, sites = spec.privacy, count + asked.retries, len(spec.invited)
    sigma = gaussian_multiplier_for(asked.epsilon, privacy.delta) * math.sqrt(attempts)
    alone = site_noise_multiplier(sigma, sites, privacy.colluders + privacy.dropouts)
    return PlannedChecks(
        noise_multiplier=sigma,
        epsilon=repeated_gaussian_epsilon(sigma, attempts, privacy.delta),
        epsilon_worst_site=repeated_gaussian_epsilon(alone, attempts, privacy.delta),
    )


def plan_membership(spec: StudySpec, non_members: int) -> PlannedMembership | None:
    """The noise of the membership audit among all invited sites and what it costs; None where the spec wants none, or
    leaves it to the counts and `non_members` held-out patients could say nothing."""
    asked, privacy = spec.audit.membership, spec.privacy
    if asked.mode == "off":
        return None
    sites, tolerated = len(spec.invited), privacy.colluders + privacy.dropouts
    sigma = audit_multiplier(asked.epsilon, privacy.delta, asked.attempts)
    if asked.mode == "auto" and not worth_asking(sigma, sites, tolerated, asked.bins, non_members):
        return None
    alone = site_noise_multiplier(sigma, sites, tolerated)
    return PlannedMembership(
        noise_multiplier=sigma,
        epsilon=repeated_gaussian_epsilon(sigma, asked.attempts, privacy.delta),
        epsilon_worst_site=repeated_gaussian_epsilon(alone, asked.attempts, privacy.delta),
    )


def tuning_account(spec: StudySpec, calibration: Calibration) -> TuningCost | None:
    """What the runs and scores of a tuned study cost together, and what one run would cost at the same noise; None for
    a study without tuning. The retries may all fall into one run. Which entry a run takes changes nothing of it."""
    if spec.tuning is None:
        return None
    training, delta, sigma = spec.training, spec.privacy.delta, calibration.noise_multiplier
    rounds = [training.rounds + spec.privacy.retries, *[training.rounds] * (spec.runs - 1)]
    grid = TuningGrid(
        runs=tuple(Mechanism(sigma, training.sampling_rate, count * training.local_steps, delta) for count in rounds),
        score=Score(calibration.evaluation_multiplier),
        delta=delta,
        final=Score(calibration.evaluation_multiplier, spec.evaluation.attempts),
    )
    return tuning_cost(grid, FORECAST_INTERVAL)


def forecast(spec: StudySpec, noise_multiplier: float) -> tuple[tuple[int, float], ...]:
    """((steps, epsilon after so many), ...), rising to T + A; up to 128 points, every committed round but one among
    them where the steps are few."""
    return epsilon_per_round(mechanism(spec, noise_multiplier), FORECAST_INTERVAL, curve_points(spec.steps))


def spent(curve: Sequence[tuple[int, float]], steps: int) -> float:
    """Epsilon after `steps` noisy steps, from a forecast: that of the next point at or above, never below it."""
    if steps <= 0:
        return 0.0
    return next((value for point, value in curve if point >= steps), curve[-1][1])


def planned_sites(
    spec: Proposal, enrolled: Mapping[str, EnrolledSite], datasets: Sequence[RegisteredDataset]
) -> tuple[PlannedSite, ...]:
    """The invited sites under their pinned keys with the counts of the snapshot they registered for this schema.

    Raises PlanRefused naming every site that is not enrolled, has no such dataset, or too few patients.
    """
    wanted = schema_digest(spec.dataset)
    recipients = spec.recipients if isinstance(spec, StudySpec) else ()
    absent = [name for name in {*spec.invited, *recipients} if name not in enrolled]
    if absent:
        raise PlanRefused(
            f"Not enrolled here: {', '.join(sorted(absent))}.",
            "Correct the names in legal_basis and recipients, or enrol these sites first.",
        )
    latest = {dataset.site: dataset for dataset in datasets if dataset.schema_digest == wanted}
    without = [name for name in spec.invited if name not in latest]
    if without:
        raise PlanRefused(
            f"No dataset of the schema {spec.dataset.name} is registered by {', '.join(without)}.",
            "Have each run `cloister-site datasets add` with this very dictionary, or leave the site out; the schema's "
            f"digest is {wanted}.",
        )
    small = [name for name in spec.invited if latest[name].patients <= MINIMUM_CELL]
    if small:
        raise PlanRefused(
            f"Not more than {MINIMUM_CELL} patients at {', '.join(small)}.", "Leave these sites out of the study."
        )
    evaluators = [name for name in spec.invited if latest[name].held_out > 0]
    if isinstance(spec, StudySpec) and len(evaluators) < spec.minimum_sites:
        raise PlanRefused(
            f"Only {len(evaluators)} of the invited sites hold patients out for evaluation; minimum_sites is "
            f"{spec.minimum_sites}.",
            "Invite larger sites: one holds patients out from 41 patients on.",
        )
    return tuple(
        PlannedSite(
            name=name,
            identity=enrolled[name].identity,
            jurisdiction=spec.legal_basis[name].jurisdiction,
            patients=latest[name].patients,
            held_out=latest[name].held_out,
            snapshot=latest[name].snapshot,
        )
        for name in spec.invited
    )


def require_plausible(spec: Proposal, sites: Sequence[PlannedSite]) -> None:
    """Raises PlanRefused where delta is not below one in all the patients of the plan."""
    patients = sum(site.patients for site in sites)
    if spec.privacy.delta >= 1 / patients:
        raise PlanRefused(
            f"delta {spec.privacy.delta:g} is not below 1 in {patients} patients: it would allow one patient's whole "
            "record to be given away.",
            f"Set privacy.delta to at most {0.1 / patients:.1g}.",
        )


def require_worst_case(spec: Proposal, epsilon_worst_site: float) -> None:
    """Raises PlanRefused where a site's worst case is above what the spec allows."""
    limit = spec.privacy.epsilon_worst_site
    if limit is not None and epsilon_worst_site > limit:
        raise PlanRefused(
            f"A site's worst case is epsilon {epsilon_worst_site:.3g}; the spec allows {limit:g}.",
            "Lower privacy.epsilon, tolerate fewer drop-outs, or raise privacy.epsilon_worst_site.",
        )


def able_approvers(people: Sequence[PlannedApprover], submitter: str) -> tuple[PlannedApprover, ...]:
    """Everybody whose signature can count, by name."""
    able = (person for person in people if person.role in APPROVING_ROLES and person.person != submitter)
    return tuple(sorted(able, key=lambda person: person.person))


def planned_approvers(
    people: Sequence[PlannedApprover], submitter: str, policy: ReviewPolicy
) -> tuple[PlannedApprover, ...]:
    """Everybody whose signature can count at release. Raises PlanRefused where they can't satisfy the policy."""
    approvers = able_approvers(people, submitter)
    lacking = shortfall(policy, (Reviewer(entry.person, entry.role, entry.organisation) for entry in approvers))
    if lacking is not None:
        raise PlanRefused(
            f"Of the people who could approve there is {lacking}: a release of this study could never be approved.",
            "Have an administrator add people in their roles and organisations, and have them run `cloister login`.",
        )
    return approvers


@dataclass(frozen=True)
class Papers:
    """What goes into a plan of any kind beside the spec and the noise."""

    proposal_digest: str
    submitter: str
    sites: tuple[PlannedSite, ...]
    packs: dict[str, str]
    witness_policy: dict[str, Any]
    coordinator: str
    created_at: str


def build_plan(spec: StudySpec, papers: Papers, approvers: tuple[PlannedApprover, ...]) -> StudyPlan:
    """The plan. Raises PlanRefused where the noise cannot keep every bound that the spec sets."""
    require_plausible(spec, papers.sites)
    check_bins(spec.evaluation.bins)
    calibration = calibrate(spec, len(papers.sites))
    require_worst_case(spec, calibration.epsilon_worst_site)
    return StudyPlan(
        spec=spec,
        spec_digest=digest(spec.model_dump(mode="json")),
        approvers=approvers,
        noise_multiplier=calibration.noise_multiplier,
        evaluation_multiplier=calibration.evaluation_multiplier,
        epsilon=calibration.epsilon,
        epsilon_worst_site=calibration.epsilon_worst_site,
        epsilon_evaluation_worst_site=calibration.epsilon_evaluation_worst_site,
        checks=plan_checks(spec),
        membership=plan_membership(spec, sum(min(site.held_out, MOST_SCORED) for site in papers.sites)),
        **vars(papers),
    )


def plan_digest(plan: Plan) -> str:
    """SHA-256 over the plan's canonical form: what sites consent to."""
    return digest(plan.model_dump(mode="json"))
