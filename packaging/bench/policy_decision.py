"""What the release gate's decision costs, beside the bare evaluation of its expressions.

python packaging/bench/policy_decision.py
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from interleaved import row

DECISIONS = 40
GOAL = 2.0


def rows() -> list[dict[str, Any]]:
    """The release gate over facts that pass every rule, beside its expressions alone with their variables bound."""
    from policies.cases import load_cases
    from policies.engine import bind
    from policies.evaluation import evaluate
    from policies.facts import Facts
    from policies.findings import RuleResult
    from policies.packs import builtin_packs, builtin_policy

    policy, documents = builtin_policy(), builtin_packs()
    case = next(
        case
        for pack in policy.packs
        for case in load_cases(documents[f"cases/{pack.id}"], documents["cases/base"])
        if case.text.gate == "release" and case.text.expect is RuleResult.PASSED and not case.text.set
    )
    salt = os.urandom(32)
    needed = Facts.of(policy.catalogue, case.facts).prune(policy.facts_needed("release"))
    facts = Facts(policy.catalogue, needed)
    gathered = facts.to_json()  # nested, as a gatherer supplies it: every fact that the gate may ask for
    found = []
    for pack in policy.packs:
        scope = pack.scopes.get("release")
        found += [scope.when] if scope else []
        for rule in pack.at("release", case.now):
            found += [rule.guard, rule.require] if rule.guard else [rule.require]

    # Bare: each with its facts, every parameter and the moment. Least: each with no more than the variables it names.
    every = [(e.compiled, bind(facts.prune(e.facts), policy.parameters, case.now)) for e in found]
    bound = bind(facts.values, policy.parameters, case.now)
    named = [(e.compiled, {name: bound[name] for name in e.variables}) for e in found]

    def decide() -> None:
        for _ in range(DECISIONS):
            decision = evaluate("release", gathered, policy.packs, policy.parameters, now=case.now, salt=salt)
            if not decision.checked:
                raise RuntimeError("the gate looked at no rule")

    def bare(expressions: list[Any]) -> Callable[[], None]:
        def evaluate_all() -> None:
            for _ in range(DECISIONS):
                for compiled, values in expressions:
                    compiled.eval(data=values)

        return evaluate_all

    of = "the bare CEL evaluations of the release gate's scopes, guards and rules"
    found_row = row("policy decision", decide, bare(every), DECISIONS, GOAL, of)
    least = row("policy decision", decide, bare(named), DECISIONS, GOAL, of)
    return [{**found_row, "expressions": len(found), "ratio_over_least_variables": least["ratio"]}]


if __name__ == "__main__":
    json.dump(rows(), sys.stdout, indent=2)
    print()
