"""The retention gate at the coordinator: each holding judged twice, were it kept and were it purged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.retention.inventory import holdings
from policies.decided import Decided
from policies.decided import decide as decide_on
from policies.findings import Decision
from policies.packs import Policy
from policies.retention import Holding, Standing, facts_of, standing_of


@dataclass(frozen=True)
class Judged:
    """A holding, what becomes of it, and the decision on purging it."""

    holding: Holding
    standing: Standing
    decided: Decided

    @property
    def decision(self) -> Decision:
        """Whether it may be purged, and why."""
        return self.decided.decision

    @property
    def goes(self) -> bool:
        """Whether a run erases it."""
        return self.standing in (Standing.DUE, Standing.FREE) and not self.holding.running


def decide(
    appliance: Appliance, policy: Policy, holding: Holding, *, purge: bool, asked_by: Sequence[dict[str, str]] = ()
) -> Decided:
    """The gate's decision on one holding today."""
    now = appliance.clock()
    facts = facts_of(holding, on=now.date(), purge=purge, asked_by=asked_by)
    return decide_on("retention", facts, policy, now=now, salt=appliance.entropy(32))


def judge(appliance: Appliance, policy: Policy, holding: Holding) -> Judged:
    """Both questions, and what they come to."""
    kept = decide(appliance, policy, holding, purge=False)
    purged = decide(appliance, policy, holding, purge=True)
    standing = standing_of(kept.decision, purged.decision)
    if holding.running and standing is Standing.DUE:
        standing = Standing.STUCK
    return Judged(holding, standing, purged)


def plan(session: Session, appliance: Appliance, policy: Policy) -> list[Judged]:
    """Every holding, judged."""
    return [judge(appliance, policy, holding) for holding in holdings(session, appliance)]
