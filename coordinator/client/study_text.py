"""What `cloister study …` says of a study to a person. Pure."""

from __future__ import annotations

from typing import Any

from coordinator.terminal import table


def findings_text(findings: list[dict[str, Any]]) -> str:
    """Each finding with rule, citation, facts and remedy."""
    lines = []
    for finding in findings:
        facts = [
            fact["path"] if fact.get("value") is None else f"{fact['path']} = {fact['value']}"
            for fact in finding.get("facts", [])
        ]
        lines += [
            f"{finding['effect']}: {finding['rule']} ({finding['citation']}): {finding['message']}",
            *([f"  facts: {'; '.join(facts)}"] if facts else []),
            f"  remedy: {finding['remedy']}",
        ]
    return "\n".join(lines)


def status_text(document: dict[str, Any]) -> str:
    """A study for a person."""
    import json

    from coordinator.client.progress import run_lines
    from protocol.evaluation import figures, read_report

    done, privacy = document["rounds"], document["privacy"]
    why = f" ({document['reason']}: {document['detail'] or 'no more is known'})" if document["reason"] else ""
    sites = [
        (
            site["name"],
            site["jurisdiction"],
            site["patients"],
            site["answer"],
            _joined(site),
        )
        for site in document["sites"]
    ]
    lines = [
        f"{document['study']}: {document['state']}{why}",
        *_waits(document.get("waiting")),
        *(["frozen: an incident is open, see `cloister incident list`"] if document.get("frozen") else []),
        f"round {done['committed']} of {done['planned']}; {done['abandoned_attempts']} of {done['retries_planned']} "
        "retries used",
        f"epsilon {privacy['epsilon_spent']:.4f} spent of {document['epsilon']:.4f} at delta {privacy['delta']:g}; "
        f"a site's worst case {privacy['epsilon_worst_site']:.4f}{in_the_evaluation(document, privacy)}",
        f"plan {document['plan_digest']}",
        table(("site", "law", "patients", "answer", "joined"), sites),
        *run_lines(document),
    ]
    if document["result_digest"]:
        lines.append(f"result {document['result_digest']}; read it with `cloister study results {document['study']}`")
    if document["candidate"]:
        lines.append(f"candidate {document['candidate']['weights_digest']}")
        report = read_report(json.dumps(document["candidate"]["evaluation"]))
        lines += [f"  {name}: {figure.told}" for name, figure in figures(report)]
        lines += audit_lines(document["candidate"].get("membership"))
    return "\n".join(lines)


def _waits(waiting: dict[str, Any] | None) -> list[str]:
    if waiting is None:
        return []
    ends = f", fails after {waiting['until']}" if waiting["until"] else ""
    return [
        f"waits since {waiting['since']}{ends} ({waiting['reason']}: {waiting['detail']}); nobody is charged meanwhile",
        f"  to do: {waiting['remedy']}",
    ]


def _joined(site: dict[str, Any]) -> str | None:
    if site.get("shut_out"):
        return "shut out"
    if site.get("shut_out_asked"):
        return "to be shut out, once another person confirms it"
    if site.get("frozen"):
        return "frozen by an incident"
    return "yes" if site["joined"] else None


def audit_lines(membership: dict[str, Any] | None) -> list[str]:
    """What the membership audit of a candidate came to, for a person."""
    from protocol.membership import MembershipReport, audit_figures

    if membership is None:
        return []
    report = MembershipReport.model_validate(membership)
    if not report.ran:
        return [f"  membership audit did not run: {report.reason}"]
    return [f"  {name}: {figure.told}" for name, figure in audit_figures(report)]


def audit_cost(planned: dict[str, Any] | None) -> str:
    """What a membership audit costs each patient, for a person."""
    if planned is None:
        return "none (too few held-out patients for it to say anything, or switched off)"
    return (
        f"epsilon {planned['epsilon']:.4f} more for every patient, {planned['epsilon_worst_site']:.4f} if all others "
        "collude"
    )


def in_the_evaluation(document: dict[str, Any], stated: dict[str, Any]) -> str:
    """What a site's worst case is in the evaluation of a study that trains; an exploration evaluates nothing."""
    if document["kind"] == "exploration":
        return ""
    return f", in the evaluation {worst_evaluation(stated['epsilon_evaluation_worst_site'])}"


def worst_evaluation(epsilon: float | None) -> str:
    """What an evaluation costs a site's held-out patients if all others collude, for a person."""
    return "its exact counts" if epsilon is None else f"{epsilon:.4f}"


def plan_text(plan: Any, digest: str) -> str:
    """What an approver signs over."""
    spec = plan.spec
    return "\n".join(
        [
            f"study       {spec.study}: {spec.title}",
            f"purpose     {spec.purpose.code}: {spec.purpose.description}",
            f"sites       {', '.join(plan.names)}; at least {spec.minimum_sites} in every round",
            f"privacy     epsilon {plan.epsilon:.4f} at delta {spec.privacy.delta:g} per patient; worst case of a site "
            f"{plan.epsilon_worst_site:.4f}",
            *_further(plan),
            f"digest      {digest}",
        ]
    )


def _further(plan: Any) -> list[str]:
    spec = plan.spec
    if spec.kind == "exploration":
        clusters = "" if spec.clustering is None else f" and {spec.clustering.clusters} clusters"
        return [f"explores    {len(spec.statistics)} statistics{clusters}; nothing is trained or released"]
    worst = worst_evaluation(plan.epsilon_evaluation_worst_site)
    audit = audit_cost(None if plan.membership is None else plan.membership.model_dump())
    return [f"evaluation  {spec.evaluation.mode}; worst case of a site {worst}", f"audit       {audit}"]
