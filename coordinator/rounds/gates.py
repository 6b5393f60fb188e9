"""The coordinator's part of the round and aggregation gates.

The round gate's rules about one site (its ledger, its data, its law) are for that site to judge, with its own packs.
The coordinator judges the rest of them, which need nothing but the plan, the spec and the log: a pack applies where
its proposal scope does, that is where a planned site is under that law. Packs are compiled once per driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from coordinator.audit.health import LogHealth
from coordinator.studies.policy import with_papers
from policies.evaluation import evaluate
from policies.findings import Decision
from policies.packs import Pack, Policy, Rule
from policies.study_facts import document_facts
from protocol.study_kind import AnyPlan

_KNOWN = ("plan.", "study.", "coordinator.", "audit.", "incident.", "round.number", "round.participants")


class LogWatch(Protocol):
    """Says how the log stands now."""

    def health(self) -> LogHealth:
        """Read anew at each call."""


@dataclass(frozen=True)
class RoundGates:
    """One study's gates, compiled."""

    plan: AnyPlan
    plan_digest: str
    policy: Policy
    coordinator_packs: tuple[Pack, ...]

    @classmethod
    def of(cls, plan: AnyPlan, plan_digest: str, policy: Policy) -> RoundGates:
        """Choose the rules of the round gate that the coordinator can judge."""
        return cls(plan, plan_digest, policy, tuple(_coordinators_part(pack) for pack in policy.packs))

    def round(
        self,
        number: int,
        health: LogHealth,
        papers: Mapping[str, Any],
        incidents: Mapping[str, Any],
        *,
        now: datetime,
    ) -> Decision:
        """Whether an attempt of round `number` may be sent. papers: what is on record now; incidents: those that touch
        the study or the cohort."""
        facts: dict[str, Any] = {
            **with_papers(document_facts(self.plan, self.plan_digest), papers),
            "round": {"number": number},
            "incident": dict(incidents),
            "audit": {
                "append_ok": True,
                "cosign_quorum": health.quorum,
                "last_checkpoint_age_seconds": health.age_seconds,
            },
        }
        return evaluate("round", facts, self.coordinator_packs, self.policy.parameters, now=now)

    def aggregation(self, contributors: Sequence[str], *, now: datetime) -> Decision:
        """Whether the sum over `contributors`, each of whose contributions was verified, may be opened."""
        facts: dict[str, Any] = {
            **document_facts(self.plan, self.plan_digest),
            "round": {"participants": len(contributors)},
            "update": {"signature_valid": True, "sha256_valid": True, "round_valid": True},
            "audit": {"append_ok": True},
        }
        return evaluate("aggregation", facts, self.policy.packs, self.policy.parameters, now=now)


def _coordinators_part(pack: Pack) -> Pack:
    scopes = dict(pack.scopes)
    if "round" in scopes and "proposal" in scopes:
        scopes["round"] = scopes["proposal"]
    return replace(pack, rules=tuple(rule for rule in pack.rules if _judged_here(rule)), scopes=scopes)


def _judged_here(rule: Rule) -> bool:
    guard = rule.text.applies_when.facts if rule.text.applies_when else ()
    return all(path.startswith(_KNOWN) for path in (*rule.text.facts, *guard))
