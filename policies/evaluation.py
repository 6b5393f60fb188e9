"""Decisions: default deny.

A gate opens only where at least one rule in force applied, every rule that applied held, and nothing was missing.
No pack, an unknown gate, a pack out of its dates, a missing fact, a fact of the wrong type and an expression that
fails are each a denial with its own finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from policies.engine import EvaluationError, Expression, bind
from policies.facts import BadFact, FactCatalogue, Facts, in_words, rfc3339
from policies.findings import Checked, Decision, Finding, Kind, OffendingFact, RuleResult, outcome_of
from policies.packs import GATES, PLACEHOLDER, Pack, Rule
from policies.parameters import Parameters

HOUSE_RULE = "default-deny"
HOUSE_CITATION = "Cloister policy engine: what is not shown to be allowed is denied"
MAX_OFFENDERS = 5


@dataclass
class _Progress:
    facts: Facts
    parameters: Parameters
    now: datetime
    salt: bytes
    bound: Mapping[str, Any]
    findings: list[Finding] = field(default_factory=list)
    checked: list[Checked] = field(default_factory=list)

    def values(self, expression: Expression) -> dict[str, Any]:
        """What the expression declared, and nothing else. KeyError where a fact is missing."""
        bound = self.bound
        return {name: bound[name] for name in expression.variables}

    def offending(self, paths: Sequence[str]) -> tuple[OffendingFact, ...]:
        return tuple(self._offending(path) for path in paths)

    def _offending(self, path: str) -> OffendingFact:
        if path not in self.facts.values:
            return OffendingFact(path, None, None)
        value = self.facts.shown(path)
        # Without a salt, the digest of a value that may not be shown could be guessed back to the value.
        digest = self.facts.digest_of(path, self.salt) if value is not None or self.salt else None
        return OffendingFact(path, digest, value)


def evaluate(
    gate: str,
    facts: Facts | Mapping[str, Any],
    packs: Sequence[Pack],
    parameters: Parameters,
    *,
    now: datetime,
    salt: bytes = b"",
) -> Decision:
    """Decide a gate over the supplied facts.

    `facts`: a nested mapping, or Facts already checked. `now`: time zone aware. `salt`: random bytes (16 or more)
    mixed into fact digests; give one wherever the decision leaves the party that gathered the facts, since an
    unsalted digest of a small count can be guessed. Raises ValueError for a `now` without a time zone; everything
    else that is wrong is a denial.
    """
    if now.tzinfo is None:
        raise ValueError("now must carry a time zone")
    catalogue = facts.catalogue if isinstance(facts, Facts) else None
    refused = _refuse_before_facts(gate, packs, parameters, catalogue)
    supplied = None
    if not refused:
        try:
            supplied = facts if isinstance(facts, Facts) else Facts.of(packs[0].catalogue, facts)
        except BadFact as error:
            refused = [_house(Kind.ERROR, error.message, error.remedy, (OffendingFact(error.path, None, None),))]
    progress = None
    if supplied is not None:
        at = now.astimezone(UTC)
        progress = _Progress(supplied, parameters, at, salt, bind(supplied.values, parameters, at))
        for pack in packs:
            _evaluate_pack(gate, pack, progress)
        if not progress.findings and not any(c.result is RuleResult.PASSED for c in progress.checked):
            refused = [
                _house(
                    Kind.ERROR,
                    f"No rule in force applies at the {gate} gate.",
                    "Activate a pack with rules for this gate; Cloister opens no gate that no rule has looked at.",
                )
            ]
    findings = refused + (progress.findings if progress else [])
    return Decision(
        gate=gate,
        outcome=outcome_of(findings),
        findings=tuple(findings),
        checked=tuple(progress.checked) if progress else (),
        pack_digests={pack.id: pack.digest for pack in packs},
        params_digest=parameters.digest,
        facts_digest=supplied.digest(salt) if supplied else None,
        evaluated_at=now.astimezone(UTC),
    )


def _refuse_before_facts(
    gate: str, packs: Sequence[Pack], parameters: Parameters, catalogue: FactCatalogue | None
) -> list[Finding]:
    if gate not in GATES:
        return [_house(Kind.ERROR, f"There is no gate {gate[:40]!r}.", f"Known gates: {', '.join(GATES)}.")]
    if not packs:
        return [_house(Kind.ERROR, "No policy pack is active.", "Activate at least one pack.")]
    identifiers = [pack.id for pack in packs]
    if len(set(identifiers)) != len(identifiers):
        return [_house(Kind.ERROR, "One pack is active twice.", "Activate each pack once, in one version.")]
    catalogue = catalogue or packs[0].catalogue
    if any(_apart(pack.catalogue, catalogue) or _apart(pack.schema, parameters.schema) for pack in packs):
        return [
            _house(
                Kind.ERROR,
                "Packs, facts and parameters do not rest on one fact catalogue and one parameter document.",
                "Load them all from one set of documents.",
            )
        ]
    return []


_checked = lru_cache(maxsize=4096)(Checked)  # frozen, and the same few in each decision


def _apart(one: object, other: object) -> bool:
    return one is not other and one != other  # to compare a whole catalogue with itself takes its time


def _evaluate_pack(gate: str, pack: Pack, progress: _Progress) -> None:
    if not pack.text.valid_on(progress.now.date()):
        until = pack.text.valid_to.isoformat() if pack.text.valid_to else "further notice"
        progress.findings.append(
            Finding(
                rule=f"{pack.id}.validity",
                pack=pack.id,
                citation=pack.text.title,
                effect="deny",
                kind=Kind.ERROR,
                message=f"Pack {pack.id} is in force from {pack.text.valid_from.isoformat()} until {until}, "
                f"not at {rfc3339(progress.now)}.",
                remedy="Activate a version of the pack that is in force.",
            )
        )
        return
    rules = pack.at(gate, progress.now)
    if not rules:
        return
    scope = pack.scopes.get(gate)
    if scope is not None:
        name, citation = f"{pack.id}.scope", scope.text.citation
        applies = _guard(scope.when, name, citation, pack, progress)
        if applies is not True:
            if applies is False:
                progress.checked.extend(Checked(pack.id, rule.text.id, RuleResult.NOT_APPLICABLE) for rule in rules)
            return
    for rule in rules:
        result = _evaluate_rule(rule, pack, progress)
        progress.checked.append(_checked(pack.text.pack, rule.text.id, result))


def _evaluate_rule(rule: Rule, pack: Pack, progress: _Progress) -> RuleResult:
    text = rule.text
    before = len(progress.findings)
    if rule.guard is not None:
        applies = _guard(rule.guard, text.id, text.citation, pack, progress, text.remedy)
        if applies is None:
            return RuleResult(progress.findings[before].kind.value)
        if not applies:
            return RuleResult.NOT_APPLICABLE
    holds = _guard(rule.require, text.id, text.citation, pack, progress, text.remedy)
    if holds is None:
        return RuleResult(progress.findings[before].kind.value)
    if holds:
        return RuleResult.PASSED
    progress.findings.append(
        Finding(
            rule=text.id,
            pack=pack.id,
            citation=text.citation,
            effect=text.effect,
            kind=Kind.VIOLATED,
            message=_message(rule, progress),
            remedy=text.remedy,
            facts=progress.offending(text.facts),
        )
    )
    return RuleResult.VIOLATED


def _guard(
    expression: Expression, rule: str, citation: str, pack: Pack, progress: _Progress, remedy: str = ""
) -> bool | None:
    """The expression's truth; None after adding a finding, where a fact is missing or the evaluation failed."""
    try:
        values = progress.values(expression)
    except KeyError:
        missing = progress.facts.missing(expression.facts)
        described = "; ".join(f"{path}: {pack.catalogue[path].description.rstrip('.')}" for path in missing)
        progress.findings.append(
            Finding(
                rule=rule,
                pack=pack.id,
                citation=citation,
                effect="deny",
                kind=Kind.MISSING_FACT,
                message=f"Rule {rule} can't be decided without {', '.join(missing)}.",
                remedy=f"Supply {described}.{' ' + remedy if remedy else ''}",
                facts=progress.offending(missing),
            )
        )
        return None
    try:
        return expression.truth(values)
    except EvaluationError as error:
        progress.findings.append(
            Finding(
                rule=rule,
                pack=pack.id,
                citation=citation,
                effect="deny",
                kind=Kind.ERROR,
                message=f"Rule {rule} could not be evaluated ({error}).",
                remedy="Check these facts against the fact catalogue; if they are right, the pack's rule is wrong.",
                facts=progress.offending(expression.facts),
            )
        )
        return None


def _message(rule: Rule, progress: _Progress) -> str:
    def fill(name: str) -> str:
        if name == "offenders":
            return _offenders(rule, progress)
        if name.startswith("params."):
            return in_words(progress.parameters.values[name.removeprefix("params.")])
        return progress.facts.shown(name) or "(not shown)"

    return PLACEHOLDER.sub(lambda match: fill(match.group(1)), rule.text.message)


def _offenders(rule: Rule, progress: _Progress) -> str:
    assert rule.offenders is not None
    try:
        found = rule.offenders.strings(progress.values(rule.offenders))
    except EvaluationError:
        return "(could not be listed)"
    shown = ["".join(c for c in name if c.isprintable())[:64] for name in found[:MAX_OFFENDERS]]
    more = f" and {len(found) - MAX_OFFENDERS} more" if len(found) > MAX_OFFENDERS else ""
    return (", ".join(shown) or "(none named)") + more


def _house(kind: Kind, message: str, remedy: str, facts: tuple[OffendingFact, ...] = ()) -> Finding:
    return Finding(HOUSE_RULE, "cloister", HOUSE_CITATION, "deny", kind, message, remedy, facts)
