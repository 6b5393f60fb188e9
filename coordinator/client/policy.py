"""cloister policy: test, explain and compare packs of rules. Offline; no account is needed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from coordinator.client.options import Json
from coordinator.terminal import emit
from protocol.errors import Refused

app = typer.Typer(no_args_is_help=True, help="Packs of rules: test, explain, compare. Offline.")

Packs = Annotated[
    str | None, typer.Option("--packs", metavar="FOLDER", help="A folder of packs; Cloister's own when left out.")
]
NO_SECOND_ENGINE = "cel-python is not installed, so every case ran through one engine only"


class CasesFailed(Refused):
    """A pack's cases do not come out as they say, or do not cover each rule."""

    code = "policy-cases-failed"


class UnknownRule(Refused):
    """No pack has a rule, or Cloister a gate, of that name."""

    code = "unknown-rule"


@app.command("test")
def check(packs: Packs = None, as_json: Json = False) -> None:
    """Run every pack's cases through both CEL engines; each rule must have one that passes, fails, lacks a fact."""
    from coordinator.client.policy_documents import read_documents

    report = run_all(read_documents(packs))
    emit(report, as_json=as_json, text=_test_in_words(report))
    if report["failed"] and as_json:
        raise typer.Exit(1)
    if report["failed"]:
        raise CasesFailed(
            f"{report['failed']} of the packs' expectations do not hold.", "Correct the rule or the case named above."
        )


@app.command("explain")
def explain_rules(
    rule: Annotated[str | None, typer.Argument(help="A rule's id, such as G01.")] = None,
    gate: Annotated[str | None, typer.Option("--gate", help="All rules of a gate, such as release.")] = None,
    packs: Packs = None,
    as_json: Json = False,
) -> None:
    """Say in plain words what a rule, or each rule of a gate, asks, why, and what to do."""
    from coordinator.client.policy_documents import read_documents
    from policies.explain_rule import rule_document, rule_in_words, rules_of
    from policies.packs import GATES, policy_from

    if (rule is None) == (gate is None):
        raise Refused("Name either one rule or one gate.", "Give RULE, or --gate GATE.")
    known = next((name for name in GATES if name == gate), None)
    if gate is not None and known is None:
        raise UnknownRule(f"There is no gate {gate[:40]!r}.", f"Gates: {', '.join(GATES)}.")
    policy = policy_from(read_documents(packs))
    found = rules_of(policy, rule=rule, gate=known)
    if not found and rule is not None:
        known_rules = [item.text.id for pack in policy.packs for item in pack.rules]
        raise UnknownRule(f"No pack has a rule {rule[:40]!r}.", _near(rule, known_rules))
    documents = [rule_document(pack, item, gate=known) for pack, item in found]
    none = f"No rule looks at the {known} gate, so it never opens."
    emit(documents, as_json=as_json, text="\n\n".join(map(rule_in_words, documents)) or none)


@app.command("diff")
def compare_packs(
    old: Annotated[str, typer.Argument(help="A folder of packs, one pack's .yaml, or built-in.")],
    new: Annotated[str, typer.Argument(help="The same, to compare with.")],
    as_json: Json = False,
) -> None:
    """Compare two sets of packs: rules and parameters that came, went or changed, laxer or stricter where known."""
    from coordinator.client.policy_documents import read_pair
    from policies.difference import compare, in_words

    report = compare(*read_pair(old, new))
    emit(report, as_json=as_json, text=in_words(report))


def run_all(documents: dict[str, bytes]) -> dict[str, Any]:
    """`{"rules", "cases", "failed", "engines_agree", "failures", "packs"}` over a set of documents.

    `failed` counts `failures`: cases that came out differently, engines that disagree, rules without all three
    kinds of case, packs without cases. `engines_agree` is null, with `engines_reason`, without a second engine.
    Raises BadPolicyDocument.
    """
    from policies.cases import load_cases, run_cases
    from policies.packs import policy_from

    reports, failures = [], []
    for pack in policy_from(documents).packs:
        name = f"cases/{pack.id}"
        cases = load_cases(documents[name], documents.get("cases/base", b""), name) if name in documents else ()
        report = run_cases(pack, cases)
        reports.append(report)
        failures += [f"{pack.id}: {problem}" for problem in (*report["failed"], *report["uncovered"])]
    verdicts = [report["engines_agree"] for report in reports]
    agree = None if None in verdicts else all(verdicts)
    return {
        "rules": sum(report["rules"] for report in reports),
        "cases": sum(report["cases"] for report in reports),
        "failed": len(failures),
        "engines_agree": agree,
        **({"engines_reason": NO_SECOND_ENGINE} if agree is None else {}),
        "failures": failures,
        "packs": {report["pack"]: {"rules": report["rules"], "cases": report["cases"]} for report in reports},
    }


def _test_in_words(report: dict[str, Any]) -> str:
    agree = {True: "both engines agree", False: "THE ENGINES DISAGREE", None: report.get("engines_reason")}
    counted = f"{report['rules']} rules, {report['cases']} cases, {report['failed']} failed"
    lines = [f"{counted}; {agree[report['engines_agree']]}."]
    lines += [f"  {name}: {of['rules']} rules, {of['cases']} cases" for name, of in report["packs"].items()]
    return "\n".join(lines + [f"  failed: {failure}" for failure in report["failures"]])


def _near(rule: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(rule.upper(), known, n=5, cutoff=0.4)
    return f"Did you mean {', '.join(near)}?" if near else f"Rules: {', '.join(known[:40])}."
