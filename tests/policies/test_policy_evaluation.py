"""Default deny, findings, holds, and what a decision records."""

from __future__ import annotations

import copy
import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest

from policies.cases import load_cases
from policies.documents import BadPolicyDocument
from policies.engine import bind, compile_expression
from policies.evaluation import evaluate
from policies.explain import explain
from policies.facts import Facts
from policies.findings import Decision, Finding, Kind, Outcome, outcome_of
from policies.packs import GATES, Rule, builtin_packs, builtin_policy, load_catalogue, load_pack, policy_from
from policies.parameters import load_parameters
from protocol.canonical import canonical, sha256_hex

DOCUMENTS = builtin_packs()
PACK_NAMES = ("eu_ai_act", "gdpr", "hipaa", "iso27001", "nist")
POLICY = builtin_policy()
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def good() -> dict[str, Any]:
    # a case that changes nothing has the shared facts themselves
    data = b"pack: gdpr\ncases:\n- {rule: G04, gate: release, expect: passed}\n"
    return copy.deepcopy(load_cases(data, DOCUMENTS["cases/base"])[0].facts)


def decide(gate: str, facts: Any, **more: Any) -> Decision:
    return evaluate(gate, facts, POLICY.packs, POLICY.parameters, now=NOW, **more)


def only(decision: Decision) -> Finding:
    assert len(decision.findings) == 1, [f.message for f in decision.findings]
    return decision.findings[0]


@pytest.mark.parametrize("gate", ["enrolment", "proposal", "consent", "round", "aggregation", "release", "serving"])
def test_good_facts_open_every_gate_that_has_rules(gate: str) -> None:
    decision = decide(gate, good())
    assert decision.outcome is Outcome.ALLOW, explain(decision)
    assert decision.allowed
    assert decision.findings == ()


@pytest.mark.parametrize("gate", GATES)
def test_no_facts_open_no_gate(gate: str) -> None:
    assert decide(gate, {}).outcome is Outcome.DENY


@pytest.mark.parametrize("gate", ["proposal", "consent", "round", "aggregation", "release", "serving"])
def test_taking_away_any_needed_fact_denies(gate: str) -> None:
    for path in POLICY.facts_needed(gate):
        facts = good()
        *parents, leaf = path.split(".")
        node = facts
        for parent in parents:
            node = node[parent]
        del node[leaf]
        decision = decide(gate, facts)
        for finding in decision.findings:
            assert finding.kind is Kind.MISSING_FACT
            assert [fact.path for fact in finding.facts] == [path]
        applied = {c.rule for c in decision.checked if c.result.value != "not-applicable"}
        needing = {rule.text.id for pack in POLICY.packs for rule in pack.at(gate, NOW) if path in _required(rule)}
        if needing & applied or decision.findings:
            assert decision.outcome is Outcome.DENY, path
        else:  # every rule that needs the fact does not apply to these facts
            assert decision.allowed, path


def test_without_packs_or_gate_or_rules_everything_is_denied() -> None:
    nothing = evaluate("release", good(), [], POLICY.parameters, now=NOW)
    assert nothing.outcome is Outcome.DENY
    assert "No policy pack" in only(nothing).message
    assert "no gate 'lunch'" in only(decide("lunch", good())).message
    silent = [pack for pack in POLICY.packs if pack.id == "eu_ai_act"]  # it says nothing of sums
    assert "No rule in force" in only(evaluate("aggregation", good(), silent, POLICY.parameters, now=NOW)).message


def test_rules_that_do_not_apply_open_nothing() -> None:
    gdpr = [pack for pack in POLICY.packs if pack.id == "gdpr"]
    facts = good()
    facts["plan"]["sites"] = [{"name": "boston", "jurisdiction": "US", "patients": 300}]
    decision = evaluate("release", facts, gdpr, POLICY.parameters, now=NOW)
    assert decision.outcome is Outcome.DENY
    assert "No rule in force" in only(decision).message


@pytest.mark.parametrize("when", [datetime(2025, 12, 31, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)])
def test_a_pack_out_of_its_dates_denies(when: datetime) -> None:
    decision = evaluate("release", good(), POLICY.packs, POLICY.parameters, now=when)
    assert decision.outcome is Outcome.DENY
    assert {f.rule for f in decision.findings} == {f"{pack.id}.validity" for pack in POLICY.packs}
    assert "in force from 2026-01-01" in decision.findings[0].message


def test_an_expired_pack_denies_and_the_last_day_counts() -> None:
    text = DOCUMENTS["nist"].replace(b"valid_from: 2026-01-01\n", b"valid_from: 2026-01-01\nvalid_to: 2026-06-01\n", 1)
    pack = load_pack(text, POLICY.catalogue, POLICY.parameters.schema)
    last = evaluate("release", good(), [pack], POLICY.parameters, now=NOW)
    after = evaluate("release", good(), [pack], POLICY.parameters, now=datetime(2026, 6, 2, tzinfo=UTC))
    assert (last.outcome, after.outcome) == (Outcome.ALLOW, Outcome.DENY)
    assert "until 2026-06-01" in only(after).message


def test_a_rule_out_of_its_dates_is_not_looked_at() -> None:
    text = DOCUMENTS["gdpr"].replace(
        b"gates: [release]\n  valid_from: 2026-01-01\n  facts: [study.dpia_ref]",
        b"gates: [release]\n  valid_from: 2026-06-02\n  facts: [study.dpia_ref]",
    )
    assert text != DOCUMENTS["gdpr"]
    pack = load_pack(text, POLICY.catalogue, POLICY.parameters.schema)
    facts = good()
    facts["study"]["dpia_ref"] = ""
    early = evaluate("release", facts, [pack], POLICY.parameters, now=NOW)
    late = evaluate("release", facts, [pack], POLICY.parameters, now=datetime(2026, 6, 2, 12, tzinfo=UTC))
    assert early.allowed
    assert only(late).rule == "G20"


@pytest.mark.parametrize("value", [math.nan, math.inf, "8", True, None, -1.0])
def test_an_epsilon_that_is_no_number_denies(value: Any) -> None:
    facts = good()
    facts["release"]["epsilon"] = value
    decision = decide("release", facts)
    assert decision.outcome is Outcome.DENY
    assert "release.epsilon" in [fact.path for f in decision.findings for fact in f.facts]


def test_an_unknown_jurisdiction_escapes_no_pack() -> None:
    facts = good()
    facts["plan"]["sites"][0]["jurisdiction"] = "eu"
    finding = only(decide("release", facts))
    assert finding.kind is Kind.ERROR
    assert "plan.sites[0].jurisdiction" in finding.message


def test_an_evaluation_error_denies() -> None:
    pack = load_pack(
        _pack(facts="[plan.min_sites]", require="10 / plan.min_sites > 0"),
        POLICY.catalogue,
        POLICY.parameters.schema,
    )
    for sites, outcome in ((3, Outcome.ALLOW), (0, Outcome.DENY)):
        facts = {"plan": {"min_sites": sites}}
        decision = evaluate("round", facts, [pack], POLICY.parameters, now=NOW)
        assert decision.outcome is outcome
    finding = only(decision)
    assert finding.kind is Kind.ERROR
    assert finding.effect == "deny"
    assert "INVALID_ARGUMENT" in finding.message


def test_a_warning_s_missing_fact_denies_all_the_same() -> None:
    pack = load_pack(
        _pack(facts="[plan.min_sites]", require="plan.min_sites > 3", effect="warn"),
        POLICY.catalogue,
        POLICY.parameters.schema,
    )
    warned = evaluate("round", {"plan": {"min_sites": 3}}, [pack], POLICY.parameters, now=NOW)
    missing = evaluate("round", {}, [pack], POLICY.parameters, now=NOW)
    # the only rule did not hold, it warned: nothing denies
    assert (warned.outcome, only(warned).effect) == (Outcome.ALLOW, "warn")
    assert (missing.outcome, only(missing).effect) == (Outcome.DENY, "deny")


def test_a_hold_says_whose_approval_is_owed_and_ends_with_it() -> None:
    facts = good()
    facts["plan"]["dp"]["epsilon"] = 3.0
    held = decide("proposal", facts)
    assert held.outcome is Outcome.HOLD
    assert held.approvals_needed == ("compliance_officer",)
    facts["approvals"].append({**facts["approvals"][0], "subject_digest": facts["plan"]["digest"]})
    assert decide("proposal", facts).allowed


def test_evidence_holds_and_a_deny_outweighs_it() -> None:
    facts = good()
    facts["study"]["notice_ref"] = ""
    assert decide("proposal", facts).outcome is Outcome.HOLD
    facts["plan"]["secure_aggregation"] = False
    assert decide("proposal", facts).outcome is Outcome.DENY


def test_an_effect_nobody_knows_denies() -> None:
    finding = Finding("X1", "x", "y", "shrug", Kind.VIOLATED, "m", "r")
    assert outcome_of([finding]) is Outcome.DENY
    assert outcome_of([]) is Outcome.ALLOW


def test_a_stricter_site_denies_what_the_federation_allows() -> None:
    facts = good()
    facts["plan"]["dp"]["epsilon"] = 1.0
    stricter = POLICY.parameters.for_site({"epsilon_ceiling": 0.5})
    decision = evaluate("consent", facts, POLICY.packs, stricter, now=NOW)
    assert only(decision).rule == "N01"
    assert "at most 0.5" in only(decision).message
    assert decision.params_digest != POLICY.parameters.digest


def test_a_decision_can_be_taken_again_from_its_record() -> None:
    first, second = decide("release", good()), decide("release", good())
    assert canonical(first.to_dict()) == canonical(second.to_dict())
    record = json.loads(json.dumps(first.to_dict()))
    assert record["packs"] == {name: sha256_hex(DOCUMENTS[name]) for name in PACK_NAMES}
    assert record["evaluated_at"] == "2026-06-01T12:00:00Z"
    assert record["facts_digest"] == Facts.of(POLICY.catalogue, good()).digest()
    others = {c["rule"]: c["result"] for c in record["checked"] if c["result"] != "passed"}
    assert others == dict.fromkeys(("G24-attacks", "G24-officer"), "not-applicable")  # nobody claims anonymity


def test_counts_of_patients_leave_in_no_form_that_can_be_guessed() -> None:
    facts = good()
    facts["site"]["cohort_n"] = 7
    bare, salted = decide("round", facts), decide("round", facts, salt=b"0123456789abcdef")
    fact = only(bare).facts[0]
    assert (fact.path, fact.value, fact.digest) == ("site.cohort_n", None, None)
    assert only(salted).facts[0].digest != Facts.of(POLICY.catalogue, facts).digest_of("site.cohort_n")
    assert salted.facts_digest != bare.facts_digest
    assert "7 patients" not in json.dumps(bare.to_dict())


def test_packs_of_another_catalogue_are_not_mixed() -> None:
    other = load_catalogue(DOCUMENTS["facts"].replace(b"version: 2026.11.1", b"version: 2026.12.1"))
    pack = load_pack(DOCUMENTS["nist"], other, POLICY.parameters.schema)
    decision = evaluate("release", good(), [POLICY.packs[0], pack], POLICY.parameters, now=NOW)
    assert "one fact catalogue" in only(decision).message
    foreign = evaluate("release", Facts.of(other, good()), POLICY.packs, POLICY.parameters, now=NOW)
    assert "one fact catalogue" in only(foreign).message
    schema = load_parameters(DOCUMENTS["parameters"].replace(b"version: 2026.11.1", b"version: 2026.12.1"))
    assert not evaluate("release", good(), POLICY.packs, schema.defaults(), now=NOW).allowed
    twice = evaluate("release", good(), [POLICY.packs[0], POLICY.packs[0]], POLICY.parameters, now=NOW)
    assert "active twice" in only(twice).message


def test_now_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        evaluate("release", good(), POLICY.packs, POLICY.parameters, now=datetime(2026, 6, 1))


def test_offenders_are_named_briefly_and_printably() -> None:
    facts = good()
    facts["release"]["files"] = ["model.safetensors", "a\x1b[31m.pkl", *(f"{n}{'x' * 100}" for n in range(9))]
    message = only(decide("release", facts)).message
    assert "a[31m.pkl" in message
    assert "\x1b" not in message
    assert "and 5 more" in message
    assert len(message) < 600


def test_explain_speaks_plainly() -> None:
    facts = good()
    facts["study"]["dpia_ref"] = ""
    facts["release"]["epsilon"] = 9.0
    del facts["release"]["files"]
    text = explain(decide("release", facts))
    assert text.startswith("The release gate stays shut.")
    for part in (
        "Denied: G20 (GDPR Art. 35(1), 35(3)(b))",
        "What to do: Carry out the assessment",
        "Denied: N01-release",
        "epsilon 9 (at most 8)",
        "release.epsilon = 9",
        "Denied, a fact is missing: N06",
        "absent: release.files",
        "Packs: eu_ai_act sha256:",
    ):
        assert part in text, part
    assert "is open" in explain(decide("release", good()))
    facts = good()
    facts["plan"]["dp"]["epsilon"] = 3.5
    held = explain(decide("proposal", facts))
    assert "waits" in held
    assert "Approval by a compliance officer is owed: N01-approval" in held
    assert held.index("is owed:") < held.index("Warning: N01-weak")


def test_a_policy_needs_its_documents_and_one_pack_of_each_name() -> None:
    for name in ("facts", "parameters"):
        with pytest.raises(BadPolicyDocument, match=name):
            policy_from({key: data for key, data in DOCUMENTS.items() if key != name})
    with pytest.raises(BadPolicyDocument, match="two documents"):
        policy_from({**DOCUMENTS, "again": DOCUMENTS["nist"]})


def _required(rule: Rule) -> set[str]:
    return set(rule.text.facts) | set(rule.text.applies_when.facts if rule.text.applies_when else ())


def _pack(*, facts: str, require: str, effect: str = "deny") -> bytes:
    return f"""
pack: trial
version: 2026.1.1
title: A pack for a test
valid_from: 2026-01-01
rules:
- id: X01
  citation: a citation
  gates: [round]
  valid_from: 2026-01-01
  facts: {facts}
  require: "{require}"
  effect: {effect}
  message: The rule does not hold.
  remedy: Do what the rule says.
""".encode()


@pytest.mark.parametrize(
    "text",
    [
        "a.n < params.epsilon_ceiling",
        "a.n < params . epsilon_ceiling",
        "now > timestamp('2000-01-01T00:00:00Z') && a.n < 1.0",
    ],
)
def test_an_expression_is_given_the_variables_that_it_names(text: str) -> None:
    """However a parameter is written, it is bound: what the search by name passes over, the compiler still finds."""
    catalogue = load_catalogue(b"version: '1'\nfacts:\n- {path: a.n, type: double, description: a number}\n")
    expression = compile_expression(text, ("a.n",), catalogue, POLICY.parameters.schema)
    bound = bind({"a.n": 0.5}, POLICY.parameters, NOW)
    assert set(expression.variables) <= set(bound)
    assert expression.truth({name: bound[name] for name in expression.variables})
