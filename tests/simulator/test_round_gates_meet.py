"""The coordinator's round gate and the sites' together leave no rule out, and a site whose gate shuts is left out."""

from __future__ import annotations

from collections.abc import Callable

from sqlmodel import select

from coordinator.audit.tables import LogEntry
from coordinator.database import reading
from coordinator.studies.states import StudyState
from policies.packs import builtin_policy
from policies.replay import coordinators_part
from site_agent.consent.governance import load_governance, save_governance
from site_agent.database import transaction
from site_agent.training.round_gate import _own_part, decisions
from tests.simulator import invariants
from tests.simulator.federation import Federation

Begin = Callable[..., str]


def test_every_rule_of_the_round_gate_is_judged_by_somebody() -> None:
    def at_round(packs) -> set[str]:  # type: ignore[no-untyped-def]
        return {rule.text.id for pack in packs for rule in pack.rules if "round" in rule.text.gates}

    packs = builtin_policy().packs
    at_site = at_round(_own_part(pack) for pack in packs)
    at_coordinator = at_round(coordinators_part(pack) for pack in packs)
    assert at_site | at_coordinator == at_round(packs)
    # What a site leaves to the coordinator is named here, so that no rule slips out of the sites' sight unnoticed.
    assert at_round(packs) - at_site == {"A05", "G09", "G20-content", "H17", "H22", "H26-quorum"}


def change_rules(federation: Federation, name: str, group: str) -> None:
    """The hospital's steward says, after this round, that `age` identifies a person."""

    def once() -> None:
        if federation.exchange.requests[-1][1] == group:
            federation.exchange.after_request = lambda: None
            home = federation.sites[name].settings.home
            said = load_governance(home)
            save_governance(home, said.model_copy(update={"direct_identifiers": ("age",)}))

    federation.exchange.after_request = once


def test_a_site_whose_gate_shuts_is_left_out_by_a_closed_code_at_no_charge(
    federation: Federation, begin: Begin
) -> None:
    study = begin()
    change_rules(federation, "cologne", "train-1-1")
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    first, *later = federation.records(study)
    assert "cologne" in first["contributed"]
    assert all("cologne" not in record["contributed"] for record in later)
    assert later[0]["excluded"]["cologne"] == "refused:policy-denied"
    assert federation.charged(study, "cologne")[False] == 1
    with transaction(federation.sites["cologne"].store._engine) as session:
        decided = decisions(session, study)
    assert [decision.outcome for decision in decided if decision.round == 1 and decision.phase == "train"] == ["allow"]
    assert {decision.outcome for decision in decided[:-1]} == {"deny"}
    with reading(federation.appliance.engine) as session:
        leaves = b"".join(row.leaf for row in session.exec(select(LogEntry)))
    assert b"G05" not in leaves  # why is the hospital's own affair
