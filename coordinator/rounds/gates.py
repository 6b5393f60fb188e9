"""The coordinator's part of the round and aggregation gates.

The round gate's rules about one site (its ledger, its data, its law) are for that site to judge, with its own packs.
The coordinator judges the rest of them, which need nothing but the plan, the spec and the log: a pack applies where
its proposal scope does, that is where a planned site is under that law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from coordinator.audit.health import LogHealth
from coordinator.studies.policy import with_papers
from policies.decided import Decided, decide
from policies.packs import Pack, Policy
from policies.replay import coordinators_part
from policies.study_facts import document_facts
from protocol.study_kind import AnyPlan


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
        return cls(plan, plan_digest, policy, tuple(coordinators_part(pack) for pack in policy.packs))

    def round(
        self,
        number: int,
        health: LogHealth,
        papers: Mapping[str, Any],
        incidents: Mapping[str, Any],
        *,
        now: datetime,
    ) -> Decided:
        """Whether an attempt of round `number` may be sent. papers: what is on record now; incidents: those that touch
        the study or the cohort."""
        facts: dict[str, Any] = {
            **with_papers(document_facts(self.plan, self.plan_digest), papers),
            "round": {"number": number},
            "incident": dict(incidents),
            "audit": {
                **papers.get("audit", {}),
                "append_ok": True,
                "cosign_quorum": health.quorum,
                "last_checkpoint_age_seconds": health.age_seconds,
            },
        }
        return decide("round", facts, self.policy, now=now, packs=self.coordinator_packs)

    def aggregation(self, contributors: Sequence[str], *, now: datetime) -> Decided:
        """Whether the sum over `contributors`, each of whose contributions was verified, may be opened."""
        facts: dict[str, Any] = {
            **document_facts(self.plan, self.plan_digest),
            "round": {"participants": len(contributors)},
            "update": {"signature_valid": True, "sha256_valid": True, "round_valid": True},
            "audit": {"append_ok": True},
        }
        return decide("aggregation", facts, self.policy, now=now)
