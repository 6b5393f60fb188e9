"""What a decision says: findings, each with rule, citation, fact and remedy, and the outcome they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from policies.facts import rfc3339

APPROVAL = "approval:"


class Outcome(StrEnum):
    """What a gate does: open, wait for evidence or an approval, or stay shut."""

    ALLOW = "allow"
    HOLD = "hold"
    DENY = "deny"


class Kind(StrEnum):
    """Why there is a finding: the rule was broken, a fact it needs is absent, or it could not be evaluated."""

    VIOLATED = "violated"
    MISSING_FACT = "missing-fact"
    ERROR = "error"


class RuleResult(StrEnum):
    """What one rule came to."""

    PASSED = "passed"
    NOT_APPLICABLE = "not-applicable"
    VIOLATED = "violated"
    MISSING_FACT = "missing-fact"
    ERROR = "error"


@dataclass(frozen=True)
class OffendingFact:
    """A fact that a finding rests on. `value` only where the catalogue lets it be shown; absent facts have neither."""

    path: str
    digest: str | None
    value: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {"path": self.path, "digest": self.digest, "value": self.value}


@dataclass(frozen=True)
class Finding:
    """One reason why a gate does not simply open."""

    rule: str
    pack: str
    citation: str
    effect: str
    kind: Kind
    message: str
    remedy: str
    facts: tuple[OffendingFact, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "rule": self.rule,
            "pack": self.pack,
            "citation": self.citation,
            "effect": self.effect,
            "kind": self.kind.value,
            "message": self.message,
            "remedy": self.remedy,
            "facts": [fact.to_dict() for fact in self.facts],
        }


@dataclass(frozen=True)
class Checked:
    """A rule that was looked at and what it came to."""

    pack: str
    rule: str
    result: RuleResult


@dataclass(frozen=True)
class Decision:
    """A gate's decision and everything needed to explain it or to take it again.

    Digests are `sha256:` hex. `facts_digest` is null where the facts themselves were refused. `waived`: findings that
    approvers answered for; they are not among `findings`.
    """

    gate: str
    outcome: Outcome
    findings: tuple[Finding, ...]
    checked: tuple[Checked, ...]
    pack_digests: dict[str, str]
    params_digest: str
    facts_digest: str | None
    evaluated_at: datetime
    waived: tuple[Finding, ...] = ()

    @property
    def allowed(self) -> bool:
        """True only where nothing denies and nothing holds."""
        return self.outcome is Outcome.ALLOW

    @property
    def approvals_needed(self) -> tuple[str, ...]:
        """The roles whose approval would lift a hold, sorted."""
        return tuple(sorted({f.effect.removeprefix(APPROVAL) for f in self.findings if f.effect.startswith(APPROVAL)}))

    def to_dict(self) -> dict[str, Any]:
        """JSON, stable in order."""
        return {
            "gate": self.gate,
            "outcome": self.outcome.value,
            "findings": [finding.to_dict() for finding in self.findings],
            "waived": [finding.to_dict() for finding in self.waived],
            "checked": [{"pack": c.pack, "rule": c.rule, "result": c.result.value} for c in self.checked],
            "packs": dict(self.pack_digests),
            "params_digest": self.params_digest,
            "facts_digest": self.facts_digest,
            "evaluated_at": rfc3339(self.evaluated_at),
        }


def outcome_of(findings: Sequence[Finding]) -> Outcome:
    """Any deny denies; any evidence or approval still owed holds; a warning does neither; what is unknown denies."""
    outcome = Outcome.ALLOW
    for finding in findings:
        if finding.effect == "warn":
            continue
        if finding.effect == "evidence" or finding.effect.startswith(APPROVAL):
            outcome = Outcome.HOLD
        else:
            return Outcome.DENY
    return outcome


def reasons(decision: Decision) -> tuple[Finding, ...]:
    """The findings that keep the gate from opening; warnings are not among them."""
    return tuple(finding for finding in decision.findings if finding.effect != "warn")
