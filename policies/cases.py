"""Cases: every rule's own examples of passing, failing and lacking a fact, run through the engine that decides.

A case file patches one shared set of facts (`cases/base.yaml`) that passes every rule, so that a case says only
what makes it differ.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from policies.documents import BadPolicyDocument, load_yaml, parse_document
from policies.engine import Expression
from policies.evaluation import evaluate
from policies.facts import Facts
from policies.findings import Decision, Finding, RuleResult
from policies.packs import Gate, Pack, PackId, Rule, RuleId
from policies.second_engine import SecondEngine, second_engine

REQUIRED = (RuleResult.PASSED, RuleResult.VIOLATED, RuleResult.MISSING_FACT)


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CaseText(_Closed):
    """One example: the shared facts, with some set and some taken away, and what the rule must come to."""

    rule: RuleId
    gate: Gate
    expect: RuleResult
    set: dict[str, Any] = Field(default_factory=dict)
    unset: tuple[str, ...] = ()


class _CaseFile(_Closed):
    pack: PackId
    cases: Annotated[tuple[CaseText, ...], Field(min_length=1)]


class _Base(_Closed):
    now: AwareDatetime
    facts: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A case with its facts worked out."""

    text: CaseText
    facts: dict[str, Any]
    now: datetime


def load_cases(data: bytes, base: bytes, document: str = "cases") -> tuple[Case, ...]:
    """Read a case file over its shared facts. Raises BadPolicyDocument."""
    shared = parse_document(_Base, load_yaml(base, f"{document} base"), f"{document} base")
    file = parse_document(_CaseFile, load_yaml(data, document), document)
    return tuple(Case(text, _patched(shared.facts, text, document), shared.now) for text in file.cases)


def run_cases(pack: Pack, cases: Sequence[Case]) -> dict[str, Any]:
    """Run cases at default parameters.

    Returns `{"pack", "rules", "cases", "failed", "uncovered", "engines_agree"}`: `failed` lists each case that came
    out differently and each denial that lacks its citation, fact or remedy; `uncovered` lists each rule without a
    passing, failing or missing-fact case; `engines_agree` is null where the second engine is not installed.
    """
    engine = second_engine()
    failed: list[str] = []
    disagreements: list[str] = []
    covered: dict[str, set[RuleResult]] = {rule.text.id: set() for rule in pack.rules}
    for number, case in enumerate(cases, start=1):
        where = f"case {number} ({case.text.rule}, {case.text.gate}, {case.text.expect.value})"
        rule = next((rule for rule in pack.rules if rule.text.id == case.text.rule), None)
        if rule is None or case.text.gate not in rule.text.gates:
            failed.append(f"{where}: the pack has no such rule at this gate")
            continue
        decision = evaluate(case.text.gate, case.facts, [pack], pack.schema.defaults(), now=case.now)
        result = result_of(decision, pack, rule)
        if result is case.text.expect:
            covered[rule.text.id].add(result)
        else:
            failed.append(f"{where}: came to {result.value if result else 'nothing'}")
        failed += [f"{where}: {problem}" for problem in _incomplete(decision, pack, rule)]
        if engine is not None and result is not None:
            second = _second_result(engine, pack, rule, case)
            if second is not result:
                disagreements.append(f"{where}: {result.value}, second engine {second.value}")
    uncovered = [
        f"{name}: no {wanted.value} case" for name, had in covered.items() for wanted in REQUIRED if wanted not in had
    ]
    return {
        "pack": pack.id,
        "rules": len(pack.rules),
        "cases": len(cases),
        "failed": failed + disagreements,
        "uncovered": uncovered,
        "engines_agree": None if engine is None else not disagreements,
    }


def result_of(decision: Decision, pack: Pack, rule: Rule) -> RuleResult | None:
    """What a rule came to in a decision; the scope's finding where the pack's scope could not be decided."""
    for checked in decision.checked:
        if checked.rule == rule.text.id:
            return checked.result
    for finding in decision.findings:
        if finding.rule == f"{pack.id}.scope":
            return RuleResult(finding.kind.value)
    return None


def _incomplete(decision: Decision, pack: Pack, rule: Rule) -> list[str]:
    problems = []
    for finding in decision.findings:
        if finding.rule in (rule.text.id, f"{pack.id}.scope"):
            problems += _lacks(finding)
    return problems


def _lacks(finding: Finding) -> list[str]:
    parts = {"citation": finding.citation, "message": finding.message, "remedy": finding.remedy, "fact": finding.facts}
    return [f"the finding has no {name}" for name, part in parts.items() if not part]


def _second_result(engine: SecondEngine, pack: Pack, rule: Rule, case: Case) -> RuleResult:
    facts = Facts.of(pack.catalogue, case.facts)
    scope = pack.scopes.get(case.text.gate)
    for expression in (scope.when if scope else None, rule.guard):
        if expression is not None:
            applies = _second_truth(engine, pack, expression, facts, case.now)
            if applies is RuleResult.VIOLATED:
                return RuleResult.NOT_APPLICABLE
            if applies is not RuleResult.PASSED:
                return applies
    return _second_truth(engine, pack, rule.require, facts, case.now)


def _second_truth(engine: SecondEngine, pack: Pack, expression: Expression, facts: Facts, now: datetime) -> RuleResult:
    if facts.missing(expression.facts):
        return RuleResult.MISSING_FACT
    truth = engine.truth(expression.text, facts.prune(expression.facts), pack.schema.defaults().values, now)
    if truth is None:
        return RuleResult.ERROR
    return RuleResult.PASSED if truth else RuleResult.VIOLATED


def _patched(shared: dict[str, Any], text: CaseText, document: str) -> dict[str, Any]:
    facts = copy.deepcopy(shared)
    for path, value in [*text.set.items(), *((path, None) for path in text.unset)]:
        *parents, leaf = path.split(".")
        node: Any = facts
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or leaf not in node:
            raise BadPolicyDocument(
                document,
                f"the shared facts have no {path[:80]}",
                "Correct the path, or add the fact to cases/base.yaml.",
                rule=text.rule,
            )
        if value is None:
            del node[leaf]
        else:
            node[leaf] = value
    return facts
