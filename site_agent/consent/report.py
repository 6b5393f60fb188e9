"""A review as people and machines read it. Pure."""

from __future__ import annotations

from typing import Any

from protocol.dataset import DatasetSchema
from protocol.enrolment import witness_name
from protocol.errors import Malformed
from protocol.exploration import ExplorationPlan
from protocol.plan import Plan
from protocol.signing import VerifyingKey
from protocol.study import StudyPlan
from protocol.subgroups import group_names, sensitivity
from protocol.witness_policy import WitnessPolicy
from site_agent.consent.review import Cost, Review


def review_document(review: Review, site: str) -> dict[str, Any]:
    """JSON: everything that `review_text` says, and the decision in full."""
    plan = review.signed.plan
    spec = plan.spec
    return {
        "study": spec.study,
        "plan_digest": review.signed.digest,
        "spec_digest": plan.spec_digest,
        "answer": "open" if review.answer is None else review.answer.value,
        "grantable": review.grantable({}),
        "needs_evidence": [finding.rule for finding in review.held],
        "objections": [
            {"code": item.code, "message": item.message, "remedy": item.remedy} for item in review.objections
        ],
        "decision": review.decision.to_dict(),
        "plan": plan.model_dump(mode="json"),
        "epsilon": {
            "computed_here": review.epsilons.training,
            "worst_case_computed_here": review.epsilons.worst_site,
            "evaluation_computed_here": review.epsilons.evaluation,
            "evaluation_worst_case_computed_here": review.epsilons.evaluation_worst_site,
            "checks_computed_here": review.epsilons.checks,
            "checks_worst_case_computed_here": review.epsilons.checks_worst_site,
            "membership_computed_here": review.epsilons.membership,
            "membership_worst_case_computed_here": review.epsilons.membership_worst_site,
            "promised": spec.privacy.epsilon,
        },
        "costs": [_cost_document(cost) for cost in review.costs],
        "compared_with": review.compared_with,
        "differences": [
            {"field": item.field, "before": item.before, "after": item.after} for item in review.differences
        ],
        "packs_differ": list(review.packs_differ),
        "sites": [
            {
                "name": planned.name,
                "fingerprint": VerifyingKey.from_text(planned.identity).key_id,
                "patients": planned.patients,
                "this_site": planned.name == site,
            }
            for planned in plan.sites
        ],
        "approvers": [
            {
                "person": approver.person,
                "role": approver.role.value,
                "organisation": approver.organisation,
                "fingerprints": list(approver.key_ids),
            }
            for approver in plan.approvers
        ],
        "witnesses": _witnesses(plan),
    }


def _witnesses(plan: Plan) -> dict[str, Any]:
    """Who must vouch for the log of this study's release, and which of them are no sites of the study."""
    try:
        policy = WitnessPolicy.from_document(plan.witness_policy)
    except Malformed:  # the review's objections say so
        return {"quorum": 0, "names": [], "strangers": []}
    names = [witness.name for witness in policy.witnesses]
    known = {witness_name(site) for site in plan.names}
    return {"quorum": policy.quorum, "names": names, "strangers": [name for name in names if name not in known]}


def _inputs(schema: DatasetSchema) -> str:
    if schema.media is None:
        return f"{len(schema.columns)} columns"
    what = "images" if schema.image is not None else "sequences"
    return f"{what} ({' x '.join(str(size) for size in schema.shape)})"


def review_text(review: Review, site: str) -> str:
    """The review in lines for a terminal."""
    document = review_document(review, site)
    plan = review.signed.plan
    spec = plan.spec
    what = "all that is asked" if isinstance(plan, ExplorationPlan) else "released model"
    lines = [
        f"Study {spec.study}: {spec.title}",
        f"  purpose       {spec.purpose.code}: {spec.purpose.description}",
        f"  proposed by   {plan.submitter}, planned {plan.created_at}",
        f"  plan digest   {review.signed.digest}",
        *(_exploration_lines(plan) if isinstance(plan, ExplorationPlan) else _training_lines(plan)),
        "",
        "What it costs, computed here:",
        f"  {what:19} epsilon {review.epsilons.training:.4g} at delta {spec.privacy.delta:g} (promised: "
        f"{spec.privacy.epsilon:g})",
        f"  should all others collude  epsilon {review.epsilons.worst_site:.4g} for this site's patients",
        *(_lines_of_training(review) if isinstance(plan, StudyPlan) else ()),
        *(_cost_line(cost) for cost in review.costs),
        "",
        f"Sites ({spec.minimum_sites} at least in every round), compare the fingerprints by telephone:",
    ]
    for planned in document["sites"]:
        mark = " (this site)" if planned["this_site"] else ""
        lines.append(f"  {planned['name']:20} {planned['fingerprint']}  {planned['patients']} patients{mark}")
    if document["approvers"]:
        lines += ["", f"Approvers of the {'release' if isinstance(plan, StudyPlan) else 'plan'}, compare these too:"]
    for approver in document["approvers"]:
        whose = f" of {approver['organisation']}" if approver["organisation"] else ""
        for fingerprint in approver["fingerprints"]:
            lines.append(f"  {approver['person']:20} {fingerprint}  {approver['role']}{whose}")
    watched = document["witnesses"]
    lines += ["", f"The log is vouched for by {watched['quorum']} of: {', '.join(watched['names'])}"]
    if watched["strangers"]:
        lines.append(f"  of them no sites of this study: {', '.join(watched['strangers'])}")
    lines += ["", *_changes(review), "", f"This site's own decision: {review.decision.outcome.value}"]
    lines += [
        f"  {finding.effect}: {finding.message} [{finding.pack} {finding.rule}, {finding.citation}] {finding.remedy}"
        for finding in review.decision.findings
    ]
    lines += [f"  objection ({item.code}): {item.message} {item.remedy}" for item in review.objections]
    if review.packs_differ:
        lines.append(f"  packs that differ from the coordinator's: {', '.join(review.packs_differ)}")
    lines.append(f"Your answer so far: {document['answer']}")
    return "\n".join(one_line(line) for line in lines)


def _training_lines(plan: StudyPlan) -> list[str]:
    spec, training = plan.spec, plan.spec.training
    return [
        f"  model         {spec.model.architecture}, {plan.parameters} parameters, from {_inputs(spec.dataset)} "
        f"of {spec.dataset.name}",
        f"  training      {training.rounds} rounds (+ {spec.privacy.retries} retries), sampling rate "
        f"{training.sampling_rate:g}, clip {training.clip:g}",
        *_mode_lines(plan),
        *_subgroup_lines(plan),
        *_tuning_lines(plan),
        f"  released to   {', '.join(spec.recipients)}",
    ]


def _exploration_lines(plan: ExplorationPlan) -> list[str]:
    """What is asked, each statistic by its column: nothing is trained."""
    spec, clustering = plan.spec, plan.spec.clustering
    asked = ", ".join(f"{statistic.kind} of {statistic.column}" for statistic in spec.statistics)
    lines = [
        f"  explores      {spec.dataset.name}; trains and releases nothing. Everything is summed over all sites' "
        "training patients and noised",
        f"  statistics    {asked}",
    ]
    if clustering is not None:
        lines.append(
            f"  clusters      {clustering.clusters}, by {', '.join(clustering.columns)}, in {clustering.rounds} rounds"
        )
    return [*lines, f"  sums          {spec.steps} at most, {spec.privacy.retries} retries in each phase among them"]


def _tuning_lines(plan: StudyPlan) -> list[str]:
    """What a tuned study asks for: every run and every score is charged."""
    tuning, spec = plan.spec.tuning, plan.spec
    if tuning is None:
        return []
    return [
        f"  tuning        {tuning.count} runs of a grid of {len(tuning.grid)}: this site charges the steps of all of "
        f"them, {spec.steps} in all, and {spec.evaluations} noised scores of held-out patients; the best run is kept"
    ]


def _mode_lines(plan: StudyPlan) -> list[str]:
    """How the noise comes about where it is not shared among the sites."""
    if plan.spec.privacy.mode != "local":
        return []
    steps = plan.spec.training.local_steps
    return [
        f"  noise         local: this site adds all of it itself to each of {steps} private steps a round; it charges "
        f"{plan.spec.steps} steps, and the model's epsilon rests on no other site"
    ]


def _subgroup_lines(plan: StudyPlan) -> list[str]:
    """By which columns held-out patients are told apart in the evaluation."""
    declared, dataset = plan.spec.evaluation.subgroups, plan.spec.dataset
    if not declared:
        return []
    names = ", ".join(name for one in declared for name in group_names(one, dataset))
    return [
        f"  subgroups     {one_line(names)}: each held-out patient is counted in these too, within the same epsilon "
        f"and with {sensitivity(declared):.2f} times the noise"
    ]


def one_line(text: str) -> str:
    """Text that others wrote, fit for a terminal: it can't move the cursor, hide what stands beside it or begin a line
    of its own that looks like ours."""
    return "".join(character if character.isprintable() else " " for character in text)


def _changes(review: Review) -> list[str]:
    if review.compared_with is None:
        return ["This is the first plan at this site: there is nothing to compare it with."]
    if not review.differences:
        return [f"Nothing changed since the plan granted last ({review.compared_with})."]
    shown = [f"  {item.field}: {_short(item.before)} -> {_short(item.after)}" for item in review.differences]
    return [f"Changed since the plan granted last ({review.compared_with}):", *shown]


def _short(text: str | None) -> str:
    if text is None:
        return "(absent)"
    return text if len(text) <= 80 else text[:77] + "..."


def _cost_document(cost: Cost) -> dict[str, Any]:
    return {
        "patients": "held-out" if cost.charge.held_out else "training",
        "phase": cost.charge.phase,
        "epsilon": cost.charge.epsilon,
        "delta": cost.charge.delta,
        "steps": cost.charge.steps,
        "exact": cost.charge.exact,
        "ledger_before": {"epsilon": cost.before.epsilon, "delta": cost.before.delta},
        "ledger_after": {"epsilon": cost.after.epsilon, "delta": cost.after.delta},
        "limit": {"epsilon": cost.limit.epsilon, "delta": cost.limit.delta},
    }


def _evaluation_worst_line(review: Review) -> list[str]:
    worst = review.epsilons.evaluation_worst_site
    if worst is None:
        return ["  should all others collude  they see this site's exact counts of held-out patients: no epsilon"]
    return [f"  should all others collude  epsilon {worst:.4g} for this site's held-out patients"]


def _lines_of_training(review: Review) -> list[str]:
    return [*_evaluation_worst_line(review), *_checks_line(review), *_membership_line(review)]


def _checks_line(review: Review) -> list[str]:
    epsilons = review.epsilons
    if epsilons.checks is None:
        return []
    return [
        f"  checks of the model epsilon {epsilons.checks:.4g} for held-out patients; should all others collude "
        f"{epsilons.checks_worst_site:.4g}"
    ]


def _membership_line(review: Review) -> list[str]:
    epsilons = review.epsilons
    if epsilons.membership is None:
        return ["  membership audit    none: nobody will have tried to tell who trained the model"]
    return [
        f"  membership audit    epsilon {epsilons.membership:.4g} for training and held-out patients alike; should all "
        f"others collude {epsilons.membership_worst_site:.4g}"
    ]


def _cost_line(cost: Cost) -> str:
    whose = "held-out patients" if cost.charge.held_out else "training patients"
    if cost.charge.exact:
        return f"  {whose:19} one exact histogram: outside the guarantee, no epsilon"
    return (
        f"  {whose:19} ledger epsilon {cost.before.epsilon:.4g} -> {cost.after.epsilon:.4g} of "
        f"{cost.limit.epsilon:g}, delta {cost.before.delta:.2g} -> {cost.after.delta:.2g} of {cost.limit.delta:g}"
    )
