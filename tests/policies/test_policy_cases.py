"""Every rule against its own cases, with two engines; and the cases against broken rules."""

from __future__ import annotations

import dataclasses
import re

import pytest

import policies.cases
from policies.cases import Case, load_cases, run_cases
from policies.documents import BadPolicyDocument
from policies.engine import Expression, compile_expression
from policies.evaluation import evaluate
from policies.findings import Kind, Outcome, RuleResult, outcome_of
from policies.packs import CompiledScope, Pack, Rule, builtin_packs, builtin_policy
from policies.second_engine import second_engine
from protocol.release import BUNDLE_FILES

DOCUMENTS = builtin_packs()
POLICY = builtin_policy()
GDPR = next(pack for pack in POLICY.packs if pack.id == "gdpr")
CASES = {p.id: load_cases(DOCUMENTS[f"cases/{p.id}"], DOCUMENTS["cases/base"], f"cases {p.id}") for p in POLICY.packs}
RULES = [(pack, rule) for pack in POLICY.packs for rule in pack.rules]
each_rule = pytest.mark.parametrize(("pack", "rule"), RULES, ids=[rule.text.id for _, rule in RULES])


@pytest.mark.parametrize("pack", POLICY.packs, ids=lambda pack: pack.id)
def test_cases_pass_and_both_engines_agree(pack: Pack) -> None:
    pytest.importorskip("celpy", reason="cel-python is a development dependency")
    report = run_cases(pack, CASES[pack.id])
    assert report["failed"] == []
    assert report["uncovered"] == []
    assert report["engines_agree"] is True
    assert report["rules"] == len(pack.rules)
    assert report["cases"] == len(CASES[pack.id])


def test_the_rules_are_those_of_the_list() -> None:
    listed = {rule.text.id.split("-")[0] for _, rule in RULES}
    count = {"G": 25, "H": 30, "A": 15, "N": 7}
    assert listed <= {f"{letter}{number:02d}" for letter, most in count.items() for number in range(1, most + 1)}
    assert len(listed) >= 43


@each_rule
def test_a_failing_case_names_rule_citation_fact_and_remedy(pack: Pack, rule: Rule) -> None:
    seen = set()
    for case in _cases(pack, rule):
        if case.text.expect in (RuleResult.PASSED, RuleResult.NOT_APPLICABLE):
            continue
        decision = evaluate(case.text.gate, case.facts, [pack], POLICY.parameters, now=case.now)
        findings = [f for f in decision.findings if f.rule in (rule.text.id, f"{pack.id}.scope")]
        assert len(findings) == 1
        finding = findings[0]
        seen.add(finding.kind)
        assert finding.remedy
        assert finding.facts
        assert "{" not in finding.message
        assert finding.kind.value == case.text.expect.value
        if finding.kind is Kind.MISSING_FACT:
            assert finding.effect == "deny"
            assert all(fact.path in finding.message for fact in finding.facts)
            assert decision.outcome is Outcome.DENY
        else:
            assert finding.rule == rule.text.id
            assert finding.citation == rule.text.citation
            assert finding.effect == rule.text.effect
            assert {fact.path for fact in finding.facts} == set(rule.text.facts)
            alone = {"deny": Outcome.DENY, "warn": Outcome.ALLOW}.get(rule.text.effect, Outcome.HOLD)
            assert outcome_of([finding]) is alone
            assert alone is Outcome.ALLOW or decision.outcome in (alone, Outcome.DENY)
    assert seen == {Kind.VIOLATED, Kind.MISSING_FACT}


@each_rule
def test_cases_notice_a_negated_rule(pack: Pack, rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_second_engine(monkeypatch)
    assert _failures(pack, rule, require=_variant(pack, rule.require, f"!({rule.require.text})"))


@each_rule
def test_cases_notice_each_dropped_condition(pack: Pack, rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_second_engine(monkeypatch)
    for weakened in _weakened(rule.require.text):
        assert _failures(pack, rule, require=_variant(pack, rule.require, weakened)), weakened


@pytest.mark.parametrize(
    ("pack", "rule"), [(p, r) for p, r in RULES if r.guard], ids=[r.text.id for _, r in RULES if r.guard]
)
def test_cases_notice_a_negated_guard(pack: Pack, rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_second_engine(monkeypatch)
    assert rule.guard is not None
    assert _failures(pack, rule, guard=_variant(pack, rule.guard, f"!({rule.guard.text})"))


@pytest.mark.parametrize("pack", [p for p in POLICY.packs if p.scopes], ids=lambda pack: pack.id)
def test_cases_notice_a_negated_scope(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_second_engine(monkeypatch)
    for gate, scope in pack.scopes.items():
        flipped = CompiledScope(scope.text, _variant(pack, scope.when, f"!({scope.when.text})"))
        mutant = dataclasses.replace(pack, scopes={**pack.scopes, gate: flipped})
        assert run_cases(mutant, [c for c in CASES[pack.id] if c.text.gate == gate])["failed"], gate


def test_the_second_engine_would_notice_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = second_engine()
    if engine is None:
        pytest.skip("cel-python is not installed")
    monkeypatch.setattr(engine, "truth", lambda *_: True)
    monkeypatch.setattr(policies.cases, "second_engine", lambda: engine)
    pack = GDPR
    assert run_cases(pack, CASES[pack.id])["engines_agree"] is False


def test_a_rule_without_cases_is_reported() -> None:
    pack = GDPR
    report = run_cases(pack, [c for c in CASES[pack.id] if c.text.rule != "G04"])
    assert report["uncovered"] == [f"G04: no {kind} case" for kind in ("passed", "violated", "missing-fact")]


def test_a_case_for_an_unknown_fact_or_rule_is_refused() -> None:
    base = DOCUMENTS["cases/base"]
    stray = b"pack: gdpr\ncases:\n- {rule: G04, gate: release, expect: passed, set: {release.colour: red}}\n"
    with pytest.raises(BadPolicyDocument, match=r"rule G04: the shared facts have no release\.colour"):
        load_cases(stray, base)
    unknown = b"pack: gdpr\ncases:\n- {rule: G99, gate: release, expect: passed}\n"
    assert run_cases(GDPR, load_cases(unknown, base))["failed"] == [
        "case 1 (G99, release, passed): the pack has no such rule at this gate"
    ]


def test_the_files_a_release_may_hold_are_the_bundle_s() -> None:
    assert POLICY.parameters.values["release_files"] == list(BUNDLE_FILES)


def test_messages_hold_no_shown_counts_of_patients() -> None:
    for path in ("site.cohort_n", "dataset.patients", "dataset.max_records_per_patient", "approvals", "actor.id"):
        assert not POLICY.catalogue[path].disclosed


def _cases(pack: Pack, rule: Rule) -> list[Case]:
    return [case for case in CASES[pack.id] if case.text.rule == rule.text.id]


def _without_second_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.cases, "second_engine", lambda: None)


def _variant(pack: Pack, expression: Expression, text: str) -> Expression:
    return compile_expression(text, expression.facts, pack.catalogue, pack.schema)


def _failures(pack: Pack, rule: Rule, **change: Expression) -> list[str]:
    mutant = dataclasses.replace(rule, **change)
    rules = tuple(mutant if other is rule else other for other in pack.rules)
    report = run_cases(dataclasses.replace(pack, rules=rules), _cases(pack, rule))
    return list(report["failed"])


def _weakened(text: str) -> list[str]:
    """One variant for each condition joined by && at any depth, that condition made always true."""
    variants = []
    for start, end in _conjuncts(text):
        condition = text[start:end]
        variants.append(f"{text[:start]} ({condition.strip()} || true) {text[end:]}")
    return variants


def _conjuncts(text: str) -> list[tuple[int, int]]:
    spans, opened = [], [0]
    joined = [False]
    starts = [0]
    for match in re.finditer(r"'[^']*'|&&|\|\||[(),\[\]{}]", text):
        token = match.group(0)
        if token in "([{":
            opened.append(match.end())
            starts.append(match.end())
            joined.append(False)
        elif token in ")]}":
            if joined.pop():
                spans.append((starts[-1], match.start()))
            starts.pop()
            opened.pop()
        elif token in ("&&", "||", ","):
            if token == "&&" or joined[-1]:
                spans.append((starts[-1], match.start()))
            starts[-1] = match.end()
            joined[-1] = token == "&&"
    if joined[0]:
        spans.append((starts[0], len(text)))
    return spans
