"""A plan judged by the site's own arithmetic: nothing in it is taken on the coordinator's word. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from privacy.accounting.epsilon import epsilon
from privacy.accounting.gaussian import repeated_gaussian_epsilon
from privacy.auditing.membership import worth_asking
from privacy.errors import PrivacyError
from privacy.parameters import Mechanism, site_noise_multiplier
from protocol.canonical import digest
from protocol.errors import Malformed
from protocol.exploration import ExplorationPlan
from protocol.plan import Plan
from protocol.proposal import MINIMUM_CELL
from protocol.review import Reviewer, shortfall
from protocol.study import StudyPlan
from protocol.study_kind import AnyPlan
from protocol.witness_policy import WitnessPolicy
from site_agent.consent.facts import Epsilons, LocalData
from site_agent.training.states import Charge
from site_agent.training.sums import sum_parameters

TOLERANCE = 1e-6
"""Relative: two machines' floating point may differ by so much, and no more is forgiven."""


@dataclass(frozen=True)
class Objection:
    """Why this site must not grant the plan. `code` is closed."""

    code: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Identity:
    """Who this site is: what the plan must have right about it. `witness`: its raw public witness key."""

    site: str
    key: str
    coordinator: str
    log: str
    witness: bytes
    jurisdiction: str


@dataclass(frozen=True)
class Difference:
    """One field that is not as in the plan granted before; None: absent there."""

    field: str
    before: str | None
    after: str | None


def own_epsilons(plan: AnyPlan) -> Epsilons:
    """The epsilons of the model and of the evaluation, and of either for this site should all others collude, from the
    noise itself. Raises PrivacyError for noise that no mechanism can have."""
    if isinstance(plan, ExplorationPlan):
        return _of_exploration(plan)
    spec = plan.spec
    tolerated = spec.privacy.colluders + spec.privacy.dropouts
    alone = plan.noise_multiplier  # in local mode a site adds all the noise itself
    if spec.privacy.mode != "local":
        alone = site_noise_multiplier(plan.noise_multiplier, len(plan.sites), tolerated)
    evaluation, evaluation_worst = 0.0, None
    if spec.evaluation.mode == "noised":
        attempts, delta = spec.evaluations, spec.privacy.delta
        evaluation = repeated_gaussian_epsilon(plan.evaluation_multiplier, attempts, delta)
        evaluation_alone = site_noise_multiplier(plan.evaluation_multiplier, len(plan.sites), tolerated)
        evaluation_worst = repeated_gaussian_epsilon(evaluation_alone, attempts, delta)
    membership, membership_worst = None, None
    if plan.membership is not None:
        asked, sigma, delta = spec.audit.membership.attempts, plan.membership.noise_multiplier, spec.privacy.delta
        membership = repeated_gaussian_epsilon(sigma, asked, delta)
        membership_alone = site_noise_multiplier(sigma, len(plan.sites), tolerated)
        membership_worst = repeated_gaussian_epsilon(membership_alone, asked, delta)
    checks, checks_worst = None, None
    if plan.checks is not None:
        delta, noise, asked = spec.privacy.delta, plan.checks.noise_multiplier, plan.attempts["check"]
        checks = repeated_gaussian_epsilon(noise, asked, delta)
        checks_alone = site_noise_multiplier(noise, len(plan.sites), tolerated)
        checks_worst = repeated_gaussian_epsilon(checks_alone, asked, delta)
    return Epsilons(
        checks=checks,
        checks_worst_site=checks_worst,
        membership=membership,
        membership_worst_site=membership_worst,
        training=epsilon(_mechanism(plan, plan.noise_multiplier)),
        worst_site=epsilon(_mechanism(plan, alone)),
        evaluation=evaluation,
        evaluation_worst_site=evaluation_worst,
    )


def _of_exploration(plan: ExplorationPlan) -> Epsilons:
    """Every patient is in every sum: no sampling is relied on, and there is no evaluation."""
    privacy, steps = plan.spec.privacy, plan.spec.steps
    alone = site_noise_multiplier(plan.noise_multiplier, len(plan.sites), privacy.colluders + privacy.dropouts)
    return Epsilons(
        training=repeated_gaussian_epsilon(plan.noise_multiplier, steps, privacy.delta),
        worst_site=repeated_gaussian_epsilon(alone, steps, privacy.delta),
        evaluation=0.0,
        evaluation_worst_site=None,
    )


def _mechanism(plan: StudyPlan, multiplier: float) -> Mechanism:
    spec = plan.spec
    return Mechanism(multiplier, spec.training.sampling_rate, spec.steps, spec.privacy.delta)


def charges(plan: AnyPlan, epsilons: Epsilons) -> tuple[Charge, ...]:
    """What the ledger is to set aside: of the training patients for all steps of T + A attempts, of the held-out ones
    for the evaluation, of both for the membership audit. An exact evaluation happens once and costs no epsilon: it is
    outside the guarantee. An exploration asks of the training patients alone, once for all its sums."""
    delta = plan.spec.privacy.delta
    if isinstance(plan, ExplorationPlan):
        first, *others = plan.attempts
        steps = plan.spec.steps
        return (Charge(first, held_out=False, epsilon=epsilons.training, delta=delta, steps=steps, also=tuple(others)),)
    steps = plan.attempts["train"] * plan.steps_of("train")
    training = Charge("train", held_out=False, epsilon=epsilons.training, delta=delta, steps=steps)
    attempts = plan.attempts["evaluate"]
    evaluation = Charge("evaluate", held_out=True, epsilon=epsilons.evaluation, delta=delta, steps=attempts)
    if plan.spec.evaluation.mode == "exact":
        evaluation = Charge("evaluate", held_out=True, epsilon=0.0, delta=0.0, steps=1, exact=True)
    further: list[Charge] = []
    if epsilons.checks is not None:
        steps = plan.attempts["check"]
        further.append(Charge("check", held_out=True, epsilon=epsilons.checks, delta=delta, steps=steps))
    if epsilons.membership is not None:
        steps, asked = plan.attempts["membership"], epsilons.membership
        further += [
            Charge("membership", held_out, epsilon=asked, delta=delta, steps=steps) for held_out in (False, True)
        ]
    return training, evaluation, *further


def objections(
    plan: AnyPlan, *, identity: Identity, data: LocalData | None, epsilons: Epsilons, log_sound: bool
) -> tuple[Objection, ...]:
    """Everything that this site's own checks hold against the plan; empty when nothing does. log_sound: no alarm about
    the coordinator's log stands here."""
    return (
        *_about_papers(plan, identity),
        *_about_this_site(plan, identity, data),
        *_about_noise(plan, epsilons),
        *((*_about_the_audit(plan, epsilons), *_about_checks(plan, epsilons)) if isinstance(plan, StudyPlan) else ()),
        *_about_the_log(plan, identity, log_sound),
    )


def _about_papers(plan: AnyPlan, identity: Identity) -> Iterator[Objection]:
    again = "Ask the coordinator's administrator; do not grant this plan."
    if plan.spec_digest != digest(plan.spec.model_dump(mode="json")):
        yield Objection("spec-digest", "The plan's digest of the spec is not the digest of the spec in it.", again)
    if plan.coordinator != identity.coordinator:
        yield Objection("coordinator-key", "The plan names another coordinator key than the one pinned here.", again)
    if strangers := [name for name in plan.names if name not in plan.spec.legal_basis]:
        yield Objection(
            "uninvited-site", f"The plan holds sites that the study did not invite: {', '.join(strangers)}.", again
        )
    if len(plan.sites) < plan.spec.minimum_sites:
        yield Objection(
            "too-few-sites",
            f"The plan holds {len(plan.sites)} sites and needs {plan.spec.minimum_sites} in every round.",
            "Ask the researcher to invite more sites.",
        )
    signers = [approver for approver in plan.approvers if approver.person != plan.submitter]
    known = [Reviewer(approver.person, approver.role, approver.organisation) for approver in signers]
    if isinstance(plan, StudyPlan) and (lacking := shortfall(plan.spec.review, known)) is not None:
        yield Objection(
            "approvers",
            f"Besides the submitter, the plan does not name the approvers that it asks for: {lacking}.",
            "Ask for a plan that names them, so that nobody can be added after your consent.",
        )


def _about_this_site(plan: Plan, identity: Identity, data: LocalData | None) -> Iterator[Objection]:
    if identity.site not in plan.names:
        yield Objection("not-planned", "The plan does not hold this site.", "There is nothing to grant.")
        return
    mine = plan.site(identity.site)
    if mine.identity != identity.key:
        yield Objection(
            "identity-key",
            "The plan pins another key for this site than its own: somebody could answer in its name.",
            "Treat the coordinator as compromised and report it.",
        )
    if mine.jurisdiction != identity.jurisdiction:
        yield Objection(
            "jurisdiction",
            f"The plan places this site under {mine.jurisdiction} law; it is under {identity.jurisdiction}.",
            "Ask the researcher to correct legal_basis, or correct cloister-site governance.",
        )
    if data is None:
        yield Objection(
            "no-snapshot",
            f"No snapshot here has the schema {plan.spec.dataset.name} of the plan.",
            "Run cloister-site datasets add with the study's own dictionary.",
        )
    elif (mine.snapshot, mine.patients, mine.held_out) != (
        data.snapshot,
        data.registered_patients,
        data.registered_held_out,
    ):
        yield Objection(
            "snapshot",
            "The plan rests on another snapshot or other counts than this site's newest for the schema.",
            "Ask the researcher to propose again: the new plan takes the registered snapshot.",
        )


def _about_noise(plan: AnyPlan, epsilons: Epsilons) -> Iterator[Objection]:
    privacy = plan.spec.privacy
    again = "Ask for a plan whose noise keeps its promise; do not grant this one."
    if epsilons.training > privacy.epsilon * (1 + TOLERANCE):
        yield Objection(
            "noise",
            f"The plan promises epsilon {privacy.epsilon:.4g}; its noise gives {epsilons.training:.4g} over "
            f"{plan.spec.steps} steps.",
            again,
        )
    if epsilons.training > plan.epsilon * (1 + TOLERANCE):
        yield Objection(
            "epsilon", f"The plan states epsilon {plan.epsilon:.4g}; this site computes {epsilons.training:.4g}.", again
        )
    if epsilons.worst_site > plan.epsilon_worst_site * (1 + TOLERANCE):
        yield Objection(
            "worst-case",
            f"The plan states a worst case of epsilon {plan.epsilon_worst_site:.4g} for a site; this site computes "
            f"{epsilons.worst_site:.4g}.",
            again,
        )
    if privacy.epsilon_worst_site is not None and epsilons.worst_site > privacy.epsilon_worst_site * (1 + TOLERANCE):
        yield Objection(
            "worst-case-bound",
            f"A site's worst case is epsilon {epsilons.worst_site:.4g}; the study allows "
            f"{privacy.epsilon_worst_site:.4g}.",
            again,
        )
    if isinstance(plan, StudyPlan):
        yield from _about_the_evaluation(plan, epsilons)
    for phase in plan.attempts:
        try:
            sum_parameters(plan.secure_sum(phase, plan.names))
        except PrivacyError as error:
            yield Objection("secure-sum", error.message, error.remedy)


def _about_the_evaluation(plan: StudyPlan, epsilons: Epsilons) -> Iterator[Objection]:
    again = "Ask for a plan whose noise keeps its promise; do not grant this one."
    if epsilons.evaluation > plan.spec.evaluation.epsilon * (1 + TOLERANCE):
        yield Objection(
            "evaluation-noise",
            f"The evaluation promises epsilon {plan.spec.evaluation.epsilon:.4g}; its noise gives "
            f"{epsilons.evaluation:.4g} over {plan.spec.evaluations} attempts.",
            again,
        )
    worst, stated = epsilons.evaluation_worst_site, plan.epsilon_evaluation_worst_site
    if worst is not None and (stated is None or worst > stated * (1 + TOLERANCE)):
        yield Objection(
            "evaluation-worst-case",
            f"The plan states a worst case of epsilon {stated or 0.0:.4g} for a site's held-out patients; this site "
            f"computes {worst:.4g}.",
            again,
        )
    if plan.spec.evaluation.mode == "exact":
        shown = sum(site.held_out for site in plan.sites)
        if shown <= MINIMUM_CELL:
            yield Objection(
                "exact-evaluation",
                f"An exact evaluation over {shown} held-out patients would show single patients.",
                "Ask for a noised evaluation.",
            )


def _about_checks(plan: StudyPlan, epsilons: Epsilons) -> Iterator[Objection]:
    asked, planned = plan.spec.training.checks, plan.checks
    if asked is None or planned is None or epsilons.checks is None or epsilons.checks_worst_site is None:
        return
    again = "Ask for a plan whose noise keeps its promise; do not grant this one."
    if epsilons.checks > min(asked.epsilon, planned.epsilon) * (1 + TOLERANCE):
        yield Objection(
            "checks-noise",
            f"The checks promise epsilon {min(asked.epsilon, planned.epsilon):.4g}; their noise gives "
            f"{epsilons.checks:.4g} over {plan.attempts['check']} attempts.",
            again,
        )
    if epsilons.checks_worst_site > planned.epsilon_worst_site * (1 + TOLERANCE):
        yield Objection(
            "checks-worst-case",
            f"The plan states a worst case of epsilon {planned.epsilon_worst_site:.4g} for the checks; this site "
            f"computes {epsilons.checks_worst_site:.4g}.",
            again,
        )


def _about_the_audit(plan: StudyPlan, epsilons: Epsilons) -> Iterator[Objection]:
    asked, privacy = plan.spec.audit.membership, plan.spec.privacy
    again = "Ask for a plan whose noise keeps its promise; do not grant this one."
    planned, computed, worst = plan.membership, epsilons.membership, epsilons.membership_worst_site
    if planned is None or computed is None or worst is None:
        if asked.mode == "on":
            yield Objection("no-audit", "The study asks for a membership audit, and the plan has none.", again)
        return
    tolerated = privacy.colluders + privacy.dropouts
    _, non_members = plan.scored(plan.names)
    useful = worth_asking(planned.noise_multiplier, len(plan.sites), tolerated, asked.bins, non_members)
    if asked.mode == "off" or (asked.mode == "auto" and not useful):
        yield Objection(
            "unasked-audit",
            "The plan charges patients for a membership audit that the study does not ask for.",
            "Ask for a plan without it.",
        )
    if computed > min(asked.epsilon, planned.epsilon) * (1 + TOLERANCE):
        yield Objection(
            "audit-noise",
            f"The membership audit promises epsilon {min(asked.epsilon, planned.epsilon):.4g}; its noise gives "
            f"{computed:.4g} over {asked.attempts} attempts.",
            again,
        )
    if worst > planned.epsilon_worst_site * (1 + TOLERANCE):
        yield Objection(
            "audit-worst-case",
            f"The plan states a worst case of epsilon {planned.epsilon_worst_site:.4g} for the membership audit; this "
            f"site computes {worst:.4g}.",
            again,
        )


def _about_the_log(plan: Plan, identity: Identity, log_sound: bool) -> Iterator[Objection]:
    if not log_sound:
        yield Objection(
            "log-alarm",
            "The coordinator's log has contradicted itself before this site, and the alarm stands.",
            "See cloister-site log check, and ask the federation's auditor.",
        )
    try:
        policy = WitnessPolicy.from_document(plan.witness_policy)
    except Malformed as error:
        yield Objection("witness-policy", error.message, error.remedy)
        return
    if policy.log.text != identity.log:
        yield Objection(
            "log-key",
            "The plan's releases would be proved in another log than the one pinned here.",
            "Treat the coordinator as compromised and report it.",
        )
    if identity.witness not in {witness.public for witness in policy.witnesses}:
        yield Objection(
            "witness-key",
            "This site's witness is not among those that watch the log for this study.",
            "Ask the coordinator's administrator; propose again once the site's witness is in the policy.",
        )


def differences(before: Plan | None, after: Plan) -> tuple[Difference, ...]:
    """Field by field, by dotted path; nothing where there is no plan before. Unchanged fields are left out."""
    if before is None:
        return ()
    old, new = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    paths = [*new, *(path for path in old if path not in new)]
    return tuple(Difference(path, old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path))


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        parts = ((f"{path}.{key}" if path else str(key), item) for key, item in value.items())
    elif isinstance(value, list) and value:
        # Lists of named things (sites, features, approvers) are compared by name, not by place.
        parts = ((f"{path}[{_name_of(item, index)}]", item) for index, item in enumerate(value))
    else:
        return {path: value if isinstance(value, str) else repr(value)}
    return {inner: text for place, item in parts for inner, text in _flat(item, place).items()}


def _name_of(item: Any, index: int) -> str:
    name = item.get("name") or item.get("person") if isinstance(item, dict) else None
    return str(name) if name is not None else str(index)
