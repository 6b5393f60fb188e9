"""What approvers may answer for: papers that a pack lets them, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from policies.evaluation import evaluate
from policies.findings import Decision, Finding, Kind, Outcome, outcome_of
from policies.packs import RuleText, builtin_policy
from policies.waivers import require_waivable, waivable, waive
from protocol.errors import Refused

PACKS = builtin_policy().packs


def decision(*findings: Finding) -> Decision:
    from datetime import UTC, datetime

    empty = evaluate("release", {}, PACKS, builtin_policy().parameters, now=datetime(2026, 11, 23, tzinfo=UTC))
    return dataclasses.replace(empty, findings=findings, outcome=outcome_of(findings))


def finding(rule: str, pack: str = "eu-ai-act", kind: Kind = Kind.VIOLATED, effect: str = "evidence") -> Finding:
    return Finding(rule, pack, "c", effect, kind, "m", "r")


PACK = next(pack.id for pack in PACKS if any(rule.text.id == "A03" for rule in pack.rules))


def test_a_waived_finding_is_set_apart_and_the_rest_decides() -> None:
    risk, quality = finding("A03", PACK), finding("A04", PACK)
    waived = waive(decision(risk, quality), PACKS, {(PACK, "A03"), (PACK, "A04")})
    assert waived.waived == (risk,)
    assert waived.findings == (quality,)
    assert waived.outcome is Outcome.HOLD
    assert waive(decision(risk), PACKS, {(PACK, "A03")}).outcome is Outcome.ALLOW


@pytest.mark.parametrize("kind", [Kind.MISSING_FACT, Kind.ERROR])
def test_what_nobody_looked_up_is_not_waived(kind: Kind) -> None:
    found = finding("A03", PACK, kind, "deny")
    assert waive(decision(found), PACKS, {(PACK, "A03")}).outcome is Outcome.DENY


def test_only_papers_are_waivable_in_the_packs_that_ship() -> None:
    by_name = {(pack.id, rule.text.id): rule.text for pack in PACKS for rule in pack.rules}
    assert waivable(PACKS)
    assert all(by_name[name].effect == "evidence" for name in waivable(PACKS))
    for pack, rule in by_name.keys() - waivable(PACKS):
        with pytest.raises(Refused, match="can't be waived"):
            require_waivable(PACKS, pack, rule)


@pytest.mark.parametrize(
    "change",
    [
        {"facts": ("audit.append_ok",)},
        {"facts": ("approvals",)},
        {"facts": ("site.records",)},
        {"facts": ("plan.sites",)},
        {"effect": "deny"},
        {"gates": ("consent",)},
        {"gates": ("release", "serving")},
    ],
)
def test_no_pack_makes_consent_agreements_audit_or_approvals_waivable(change: dict[str, object]) -> None:
    text = next(rule.text for pack in PACKS for rule in pack.rules if rule.text.id == "A03")
    with pytest.raises(ValueError, match="waivable"):
        RuleText.model_validate({**text.model_dump(), **change})
