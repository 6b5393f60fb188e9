"""The coordinator's round gate and the sites' together leave no rule out."""

from __future__ import annotations

from coordinator.rounds.gates import _coordinators_part
from policies.packs import builtin_policy
from site_agent.training.round_gate import _own_part


def test_every_rule_of_the_round_gate_is_judged_by_somebody() -> None:
    def at_round(packs) -> set[str]:  # type: ignore[no-untyped-def]
        return {rule.text.id for pack in packs for rule in pack.rules if "round" in rule.text.gates}

    packs = builtin_policy().packs
    at_site = at_round(_own_part(pack) for pack in packs)
    at_coordinator = at_round(_coordinators_part(pack) for pack in packs)
    assert at_site | at_coordinator == at_round(packs)
    # What a site leaves to the coordinator is named here, so that no rule slips out of the sites' sight unnoticed.
    assert at_round(packs) - at_site == {"G09", "G20-content", "H22", "H26-quorum"}
