"""What past decisions would come to under other packs: each is taken again on its own facts, at its own time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from policies.evaluation import evaluate
from policies.findings import Decision
from policies.packs import Gate, Pack, Policy, Rule
from policies.waivers import waive

_KNOWN = ("plan.", "study.", "coordinator.", "audit.", "incident.", "round.number", "round.participants")

_OF_SITE = (
    "site.name", "site.jurisdiction", "site.hipaa_role", "site.attestation.", "site.security_official_named",
    "site.privacy_official_named", "site.records", "site.clock_skew_seconds", "site.key_age_days",
    "round.consented_digest", "round.plan_digest",
)  # fmt: skip
_OF_STUDY = ("plan.", "study.", "coordinator.")


@dataclass(frozen=True)
class Past:
    """A decision that was taken. facts: None where they have been erased, or were refused then. waived: (pack, rule) of
    the findings that approvers had answered for."""

    entry: int
    gate: Gate
    subject: str
    at: datetime
    policy: str
    outcome: str
    facts: dict[str, Any] | None
    waived: frozenset[tuple[str, str]] = frozenset()


def replay(
    past: Sequence[Past], policy: Policy, judging: Callable[[Past, Policy], Sequence[Pack]] | None = None
) -> dict[str, Any]:
    """judging: the packs, or parts of packs, that judge a decision's gate; those of the coordinator if left out.

    `{"policy", "replayed", "not_replayable", "changed", "decisions"}`.

    `decisions`: one for each decision whose outcome or findings differ: `{"entry", "gate", "subject", "at", "was",
    "becomes", "findings"}`, findings as `policies.findings.Finding.to_dict` gives them. `not_replayable`: entries
    without facts.
    """
    changed, replayed, lost = [], 0, []
    for item in past:
        if item.facts is None:
            lost.append(item.entry)
            continue
        replayed += 1
        decision = take_again(item, policy, judging)
        if decision.outcome.value != item.outcome:
            changed.append(
                {
                    "entry": item.entry,
                    "gate": item.gate,
                    "subject": item.subject,
                    "at": decision.to_dict()["evaluated_at"],
                    "was": item.outcome,
                    "becomes": decision.outcome.value,
                    "findings": [finding.to_dict() for finding in decision.findings],
                }
            )
    return {
        "policy": policy.digest,
        "replayed": replayed,
        "not_replayable": lost,
        "changed": len(changed),
        "decisions": changed,
    }


def in_words(report: dict[str, Any]) -> str:
    """What `replay` found, for a person."""
    lines = [f"{report['replayed']} decisions were taken again; {report['changed']} would come out differently."]
    if report["not_replayable"]:
        lines.append(f"{len(report['not_replayable'])} have no facts any more and could not be taken again.")
    for item in report["decisions"]:
        lines += ["", f"{item['at']} {item['gate']} {item['subject']}: was {item['was']}, becomes {item['becomes']}"]
        lines += [f"  {found['rule']} ({found['citation']}): {found['message']}" for found in item["findings"][:5]]
    return "\n".join(lines)


def take_again(
    past: Past, policy: Policy, judging: Callable[[Past, Policy], Sequence[Pack]] | None = None
) -> Decision:
    """The decision at its own time, by those packs, or parts of packs, that judge its gate."""
    facts, packs = past.facts or {}, (judging or _at_coordinator)(past, policy)
    decision = evaluate(past.gate, facts, packs, policy.parameters, now=past.at)
    return waive(decision, packs, past.waived)


def _at_coordinator(past: Past, policy: Policy) -> Sequence[Pack]:
    part = sites_part if "site" in (past.facts or {}) else coordinators_part
    return policy.packs if past.gate != "round" else tuple(map(part, policy.packs))


def coordinators_part(pack: Pack) -> Pack:
    """The rules of the round gate that need nothing but the plan, the spec and the log; those about one site are for
    that site. The pack then applies where its proposal scope does: where a planned site is under that law."""
    scopes = dict(pack.scopes)
    if "round" in scopes and "proposal" in scopes:
        scopes["round"] = scopes["proposal"]
    return replace(pack, rules=tuple(rule for rule in pack.rules if _judged_there(rule)), scopes=scopes)


def _judged_there(rule: Rule) -> bool:
    guard = rule.text.applies_when.facts if rule.text.applies_when else ()
    return all(path.startswith(_KNOWN) for path in (*rule.text.facts, *guard))


def sites_part(pack: Pack) -> Pack:
    """The rules of the round gate that are about one site, and that the coordinator knows enough of it to judge: not
    those about its data and its ledger."""
    return replace(pack, rules=tuple(rule for rule in pack.rules if _judged_there_of_site(rule)))


def _judged_there_of_site(rule: Rule) -> bool:
    guard = rule.text.applies_when.facts if rule.text.applies_when else ()
    asked = (*rule.text.facts, *guard)
    of_site = any(path.startswith(_OF_SITE) for path in asked)
    return of_site and all(path.startswith(_OF_SITE + _OF_STUDY) for path in asked)
