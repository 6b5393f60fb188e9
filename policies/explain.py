"""A decision in plain words, for a terminal or a page."""

from __future__ import annotations

from policies.facts import rfc3339
from policies.findings import APPROVAL, Decision, Finding, Kind, Outcome, RuleResult

_HEAD = {
    Outcome.ALLOW: "The {gate} gate is open: {passed} rules were checked and hold.",
    Outcome.HOLD: "The {gate} gate waits: nothing forbids it, and something is still owed.",
    Outcome.DENY: "The {gate} gate stays shut.",
}


def explain(decision: Decision) -> str:
    """Several lines: the outcome, then each finding with rule, citation, facts and remedy."""
    passed = sum(1 for checked in decision.checked if checked.result is RuleResult.PASSED)
    lines = [_HEAD[decision.outcome].format(gate=decision.gate, passed=passed)]
    for finding in sorted(decision.findings, key=lambda f: _weight(f.effect)):
        lines += ["", *_finding(finding)]
    idle = sum(1 for checked in decision.checked if checked.result is RuleResult.NOT_APPLICABLE)
    packs = ", ".join(f"{name} {digest[:19]}" for name, digest in decision.pack_digests.items())
    lines += [
        "",
        f"Checked at {rfc3339(decision.evaluated_at)}: {passed} rules hold, {idle} do not apply here.",
        f"Packs: {packs or 'none'}.",
    ]
    return "\n".join(lines)


def _finding(finding: Finding) -> list[str]:
    lines = [
        f"{_label(finding)} {finding.rule} ({finding.citation})",
        f"  {finding.message}",
        f"  What to do: {finding.remedy}",
    ]
    facts = [f"{f.path} = {f.value}" if f.value is not None else f.path for f in finding.facts]
    if facts:
        absent = "absent: " if finding.kind is Kind.MISSING_FACT else ""
        lines.insert(2, f"  Facts: {absent}{'; '.join(facts)}")
    return lines


def _label(finding: Finding) -> str:
    if finding.kind is Kind.MISSING_FACT:
        return "Denied, a fact is missing:"
    if finding.kind is Kind.ERROR:
        return "Denied, it can't be decided:"
    if finding.effect == "evidence":
        return "Evidence is owed:"
    if finding.effect.startswith(APPROVAL):
        return f"Approval by a {finding.effect.removeprefix(APPROVAL).replace('_', ' ')} is owed:"
    return "Warning:" if finding.effect == "warn" else "Denied:"


def _weight(effect: str) -> int:
    return {"deny": 0, "warn": 2}.get(effect, 1)
