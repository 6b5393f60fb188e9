"""Malformed and hostile packs: refused when loaded, naming pack, rule and remedy; or bounded when evaluated."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from policies.documents import BadPolicyDocument, load_yaml
from policies.evaluation import evaluate
from policies.findings import Kind, Outcome
from policies.packs import Pack, builtin_policy, load_pack

POLICY = builtin_policy()
NOW = datetime(2026, 6, 1, tzinfo=UTC)
GOOD = """
pack: trial
version: 2026.1.1
title: A pack for a test
valid_from: 2026-01-01
rules:
- id: X01
  citation: a citation
  gates: [round]
  valid_from: 2026-01-01
  facts: [plan.min_sites, dataset.columns]
  require: "plan.min_sites >= params.min_sites && size(dataset.columns) > 0"
  effect: deny
  message: "Sites: {plan.min_sites}."
  remedy: Do what the rule says.
"""


def load(text: str | bytes) -> Pack:
    data = text.encode() if isinstance(text, str) else text
    return load_pack(data, POLICY.catalogue, POLICY.parameters.schema, "trial.yaml")


def test_the_good_pack_loads() -> None:
    pack = load(GOOD)
    assert pack.facts_needed("round") == {"plan.min_sites", "dataset.columns"}
    assert pack.facts_needed("release") == set()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("  effect: deny", "  effect: deny\n  colour: red", r"rules\.0\.colour"),
        ("  effect: deny", "  effect: shrug", "effect"),
        ("  effect: deny", "  effect: approval:dictator", "effect"),
        ("  effect: deny\n", "", r"rules\.0\.effect"),
        ("  valid_from: 2026-01-01\n  facts", "  valid_from: 2026-13-01\n  facts", r"rules\.0\.valid_from"),
        ("  valid_from: 2026-01-01\n  facts", "  valid_from: soon\n  facts", r"rules\.0\.valid_from"),
        ("  valid_from: 2026-01-01\n  facts", "  valid_from: 2026-02-01\n  valid_to: 2026-01-01\n  facts", "valid_to"),
        ("gates: [round]", "gates: [lunch]", r"rules\.0\.gates"),
        ("gates: [round]", "gates: []", r"rules\.0\.gates"),
        ("facts: [plan.min_sites, dataset.columns]", "facts: []", r"rules\.0\.facts"),
        ("facts: [plan.min_sites, dataset.columns]", "facts: [dataset.columns]", "undeclared reference"),
        ("facts: [plan.min_sites, dataset.columns]", "facts: [plan.min_sites, dataset.columns, plan.kind]", "not used"),
        (
            "facts: [plan.min_sites, dataset.columns]",
            "facts: [plan.min_sites, dataset.colour]",
            "dataset.colour is not",
        ),
        ("params.min_sites", "params.min_cites", "undeclared reference"),
        ("params.min_sites", "3.0", "no matching overload"),
        ("size(dataset.columns) > 0", "size(dataset.columns) >", "Syntax error"),
        (
            '"plan.min_sites >= params.min_sites && size(dataset.columns) > 0"',
            "plan.min_sites + size(dataset.columns)",
            "must come to bool",
        ),
        ("{plan.min_sites}", "{plan.dp.epsilon}", "message"),
        ("{plan.min_sites}", "{dataset.columns}", "message"),
        ("{plan.min_sites}", "{offenders}", "message"),
        ("  effect: deny", "  effect: deny\n  offenders: size(dataset.columns) > 1", "must come to strings"),
        (
            "  effect: deny",
            "  effect: deny\n  applies_when: {facts: [plan.kind], when: site.name == ''}",
            "applies_when: undeclared|applies_when.*undeclared",
        ),
        ("  remedy: Do what the rule says.", "  remedy: ''", r"rules\.0\.remedy"),
        ("  citation: a citation\n", "", r"rules\.0\.citation"),
        ("  require:", "  require: 'true'\n  require:", "given twice"),
    ],
)
def test_a_malformed_rule_is_refused(old: str, new: str, problem: str) -> None:
    assert old in GOOD
    with pytest.raises(BadPolicyDocument, match=problem) as refused:
        load(GOOD.replace(old, new, 1))
    assert refused.value.message.startswith(("pack trial, rule X01:", "trial.yaml: line"))
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("pack: trial", "pack: Trial Pack", "pack"),
        ("version: 2026.1.1", "version: newest", "version"),
        ("title: A pack", "owner: me\ntitle: A pack", "owner"),
        ("valid_from: 2026-01-01\nrules", "valid_from: 2026-02-30\nrules", "valid_from"),
        ("valid_from: 2026-01-01\nrules", "valid_from: 2026-02-01\nvalid_to: 2026-01-01\nrules", "valid_to is before"),
        (
            "rules:",
            "scopes:\n- {gates: [release], citation: a citation, facts: [plan.kind], when: plan.kind != ''}\nrules:",
            "gate round has rules and no scope",
        ),
        (
            "rules:",
            "scopes:\n- {gates: [round, round], citation: a citation, facts: [plan.kind], when: 'true'}\nrules:",
            "two scopes",
        ),
        (
            "rules:",
            "scopes:\n- {gates: [round], citation: a citation, facts: [plan.kind], when: site.name != ''}\nrules:",
            "scope of round: undeclared|undeclared",
        ),
    ],
)
def test_a_malformed_pack_is_refused(old: str, new: str, problem: str) -> None:
    assert old in GOOD
    with pytest.raises(BadPolicyDocument, match=problem) as refused:
        load(GOOD.replace(old, new, 1))
    assert refused.value.remedy


def test_a_rule_given_twice_is_named() -> None:
    rule = GOOD[GOOD.index("- id:") :]
    with pytest.raises(BadPolicyDocument, match=r"pack trial: .*rule X01 is given twice"):
        load(GOOD + rule)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"a: &x [1]\nb: *x\n", "anchors and aliases"),
        (b"a: &a [z, z]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "anchors and aliases"),
        (b"a: 1\na: 2\n", "'a' is given twice"),
        (b"a: {b: 1, b: 2}\n", "'b' is given twice"),
        (b"? [a, b]\n: 1\n", "plain text"),
        (b"a: " + b"[" * 100 + b"]" * 100, "nested deeper"),
        (b"a: " + b"[" * 20000, "nested deeper"),
        (b"a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        (b"a: !!python/name:os.system\n", "could not determine a constructor"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a: \x00\n", "not valid YAML"),
        (b"- 1\n", "not a mapping"),
        (b"", "not a mapping"),
        (b"a: 1\n---\nb: 2\n", "another document"),
        (b"a: [1\n", "line"),
        (b"x" * (256 * 1024 + 1), "larger than 256 KiB"),
    ],
)
def test_hostile_yaml_is_refused_quickly(data: bytes, problem: str) -> None:
    began = time.perf_counter()
    with pytest.raises(BadPolicyDocument, match=problem) as refused:
        load_yaml(data, "hostile.yaml")
    assert refused.value.message.startswith("hostile.yaml: ")
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    "require",
    [
        "(" * 300 + "true" + ")" * 300,
        "[" * 400 + "]" * 400 + " == []",
        "true" + " && true" * 400,
        "1" + "+1" * 900 + " > 0",
        "plan.min_sites > 0 && " + "x" * 2000,
        "dyn(" * 100 + "true" + ")" * 100,
    ],
)
def test_a_deep_or_long_expression_is_refused_or_harmless(require: str) -> None:
    text = GOOD.replace("plan.min_sites >= params.min_sites && size(dataset.columns) > 0", require)
    began = time.perf_counter()
    with pytest.raises(BadPolicyDocument, match="rule X01: require"):
        load(text)
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    "hostile",
    [
        "dataset.columns.all(a, dataset.columns.all(b, dataset.columns.all(c, a + b + c != '')))",
        "size(dataset.columns.map(a, dataset.columns.map(b, dataset.columns))) > 0",
        "dataset.columns.all(a, dataset.columns.exists_one(b, a == b))",
        "dataset.columns[0].matches('^" + "a?" * 400 + "$')",
        "dataset.columns[0].matches('(((a{1,30}){1,30}){1,30}){1,30}$')",
        "dataset.columns.all(a, a.matches('(x+x+)+y'))",
        "dataset.columns[5000] == ''",
        "int(dataset.columns[0]) > 0",
    ],
)
def test_a_hostile_expression_is_bounded_and_denies(hostile: str) -> None:
    pack = load(
        GOOD.replace(
            "plan.min_sites >= params.min_sites && size(dataset.columns) > 0", f"plan.min_sites > 0 && {hostile}"
        )
    )
    facts = {"plan": {"min_sites": 3}, "dataset": {"columns": [f"{'x' * 60}{n}" for n in range(4096)]}}
    began = time.perf_counter()
    decision = evaluate("round", facts, [pack], POLICY.parameters, now=NOW)
    assert time.perf_counter() - began < 5
    assert decision.outcome is Outcome.DENY
    assert decision.findings[0].kind in (Kind.ERROR, Kind.VIOLATED)
    assert "xxxx" not in decision.findings[0].message


def test_engine_errors_carry_no_value() -> None:
    pack = load(GOOD.replace("size(dataset.columns) > 0", "int(dataset.columns[0]) > 0"))
    facts = {"plan": {"min_sites": 3}, "dataset": {"columns": ["Mrs Secret"]}}
    decision = evaluate("round", facts, [pack], POLICY.parameters, now=NOW)
    assert decision.findings[0].kind is Kind.ERROR
    assert "Secret" not in str(decision.to_dict())


def test_only_declared_facts_reach_a_rule() -> None:
    with pytest.raises(BadPolicyDocument, match=r"undeclared reference to 'site\.cohort_n'"):
        load(GOOD.replace("size(dataset.columns) > 0", "size(dataset.columns) > 0 && site.cohort_n > 5"))


def test_offenders_that_fail_leave_the_denial_standing() -> None:
    text = GOOD.replace("  effect: deny", "  effect: deny\n  offenders: dataset.columns.map(c, string(int(c)))")
    pack = load(text.replace("Sites: {plan.min_sites}.", "Columns: {offenders}."))
    facts = {"plan": {"min_sites": 1}, "dataset": {"columns": ["Mrs Secret"]}}
    decision = evaluate("round", facts, [pack], POLICY.parameters, now=NOW)
    assert decision.findings[0].kind is Kind.VIOLATED
    assert decision.findings[0].message == "Columns: (could not be listed)."
