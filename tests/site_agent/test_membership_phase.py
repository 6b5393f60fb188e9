"""A site in the membership audit: one model, the one that it evaluated, charged to both groups; and it does find what
there is to find."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlmodel import select

from coordinator.studies.plan import plan_membership
from privacy.auditing.membership import attack_counts, prediction_attack, report
from privacy.errors import BudgetExceeded
from privacy.evaluation.histogram import ScoreHistogram
from privacy.local.contribution import membership_histogram
from privacy.local.model import PatientScores
from privacy.local.network import Network
from privacy.local.patients import Group
from protocol.membership import Audit, MembershipAudit
from protocol.round import CONTRIBUTION_TYPE, Packet
from protocol.study import StudyPlan
from site_agent.consent.plans import SignedPlan
from site_agent.database import transaction
from site_agent.training.budget_store import reserve
from site_agent.training.states import Budget, Charge
from site_agent.training.tables import CohortCharge
from tests.site_agent.federation_of_sites import Federation, Hospital, federation, refusal_in

KIND = "evaluate.membership"
ON = Audit(membership=MembershipAudit(mode="on", epsilon=1.0, attempts=2))


@pytest.fixture
def world(tmp_path: Path) -> Federation:
    return federation(tmp_path, audit=ON)


def planned(world: Federation, **changes: Any) -> StudyPlan:
    return world.plan(**({"membership": plan_membership(world.spec, 80)} | changes))


def agreed(world: Federation) -> SignedPlan:
    signed = world.sign(planned(world))
    for site in world.hospitals.values():
        site.grant(signed)
    world.establish(signed)
    return signed


def charged(site: Hospital) -> dict[tuple[str, bool], int]:
    with transaction(site.engine) as session:
        return {(row.phase, row.held_out): row.steps_charged for row in session.exec(select(CohortCharge))}


def refused(site: Hospital, request: bytes, code: str, kind: str = KIND) -> None:
    before = charged(site), site.worker.computed  # type: ignore[attr-defined]
    assert refusal_in(site.participant().answer(kind, request), site) == code
    assert (charged(site), site.worker.computed) == before  # type: ignore[attr-defined]


def test_a_model_that_was_never_evaluated_is_not_attacked(world: Federation) -> None:
    signed = agreed(world)
    refused(world.hospitals["cork"], world.round_request(signed, phase="membership"), "model-not-evaluated")


def test_a_coordinator_gets_one_model_attacked_and_not_a_second(world: Federation) -> None:
    signed = agreed(world)
    site = world.hospitals["cork"]
    site.participant().answer("evaluate.histogram", world.round_request(signed, phase="evaluate"))
    other = np.full(signed.plan.parameters, 0.5, dtype="<f8").tobytes()
    refused(site, world.round_request(signed, phase="membership", model=other), "model-changed")
    first = site.participant().answer(KIND, world.round_request(signed, phase="membership"))
    assert Packet.from_bytes(first).envelope.payload_type == CONTRIBUTION_TYPE
    again = site.participant().answer(KIND, world.round_request(signed, phase="membership"))
    assert again == first
    refused(site, world.round_request(signed, 1, 2, phase="membership", model=other), "model-changed")
    refused(site, world.round_request(signed, 1, 2, phase="evaluate"), "phase-over", "evaluate.histogram")
    assert charged(site)["membership", False] == charged(site)["membership", True] == 1


def test_both_groups_are_charged_until_the_attempts_are_spent(world: Federation) -> None:
    signed = agreed(world)
    for name, site in world.hospitals.items():
        site.participant().answer("evaluate.histogram", world.round_request(signed, phase="evaluate"))
        assert charged(site)["membership", False] == 0, name
    answers = {
        name: site.participant().answer(KIND, world.round_request(signed, phase="membership"))
        for name, site in world.hospitals.items()
    }
    assert signed.plan.membership is not None
    counts = world.decode(signed, answers, "membership")
    spread = signed.plan.membership.noise_multiplier * (10 * 4 / 3) ** 0.5
    assert abs(counts[:10].sum() - 80) < 8 * spread
    assert abs(counts[10:].sum() - 240) < 8 * spread
    site = world.hospitals["cork"]
    site.participant().answer(KIND, world.round_request(signed, 1, 2, phase="membership"))
    assert charged(site)["membership", False] == charged(site)["membership", True] == 2
    refused(site, world.round_request(signed, 1, 3, phase="membership"), "ledger-exhausted")


TAMPERED: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "less noise": (lambda m: {"noise_multiplier": m.noise_multiplier * 0.8}, "audit-noise"),
    "epsilon understated": (lambda m: {"epsilon": m.epsilon * 0.9}, "audit-noise"),
    "worst case understated": (lambda m: {"epsilon_worst_site": m.epsilon_worst_site * 0.9}, "audit-worst-case"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_the_site_recomputes_what_the_audit_costs(world: Federation, case: str) -> None:
    change, code = TAMPERED[case]
    honest = planned(world)
    assert honest.membership is not None
    plan = planned(world, membership=honest.membership.model_copy(update=change(honest.membership)))
    found = world.hospitals["cork"].review(world.sign(plan))
    assert code in {item.code for item in found.objections}


def test_an_audit_that_nobody_asked_for_and_a_missing_one_are_objected_to(tmp_path: Path, world: Federation) -> None:
    found = world.hospitals["cork"].review(world.sign(world.plan()))
    assert "no-audit" in {item.code for item in found.objections}
    (tmp_path / "other").mkdir()
    plain = federation(tmp_path / "other")  # auto, and 80 held-out patients say nothing
    plan = plain.plan(membership=plan_membership(world.spec, 80))
    found = plain.hospitals["cork"].review(plain.sign(plan))
    assert "unasked-audit" in {item.code for item in found.objections}
    assert not plain.hospitals["cork"].review(plain.sign(plain.plan())).objections


def test_what_a_group_is_charged_by_two_phases_counts_together_against_its_limit(world: Federation) -> None:
    site = world.hospitals["cork"]
    review = site.review(world.sign(planned(world)))
    training = [cost for cost in review.costs if not cost.charge.held_out]
    assert training[1].before == training[0].after
    with (
        transaction(site.engine) as session,
        pytest.raises(BudgetExceeded, match=r"epsilon 2 of 1\.5"),
    ):
        reserve(
            session,
            study="s",
            plan_digest="sha256:" + "5" * 64,
            snapshot=site.snapshot,
            charges=tuple(Charge(phase, False, 1.0, 1e-6, 1) for phase in ("train", "membership")),  # type: ignore[arg-type]
            cap=Budget(1.5, 1e-3),
            at="2026-03-01T12:00:00Z",
        )


def group(seed: int, count: int, width: int) -> Group:
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, width)) / np.sqrt(width)
    return Group(x, random.integers(0, 2, count).astype(np.float64), np.arange(count), count)


def test_the_attack_finds_the_members_of_a_model_that_learned_them_by_heart() -> None:
    members, others = group(1, 400, 500), group(2, 400, 500)  # random labels: nothing but memory can tell them apart
    model = Network((500, 1), "logistic")
    memorised = np.append(np.linalg.lstsq(members.x, 8 * members.y - 4, rcond=None)[0], 0.0)
    random = np.random.default_rng(3).normal(size=501)
    for parameters, finds in ((memorised, True), (random, False)):
        counts = membership_histogram(
            members,
            others,
            model,
            parameters,
            prediction="chance",
            bins=10,
            most=10_000,
            noise_std=5.0,
            entropy=os.urandom,
        )
        found = report(ScoreHistogram(counts, 5.0), members=400, non_members=400)
        assert found.finds_members is finds


def test_a_site_scores_no_more_patients_than_it_can_afford() -> None:
    counts = membership_histogram(
        group(1, 300, 3),
        group(2, 50, 3),
        Network((3, 1), "logistic"),
        np.zeros(4),
        prediction="chance",
        bins=4,
        most=100,
        noise_std=1e-9,
        entropy=os.urandom,
    )
    assert counts.round().tolist() == [0, 0, 50, 0, 0, 0, 100, 0]


def test_every_kind_of_prediction_scores_the_better_fit_higher() -> None:
    chance = PatientScores(np.array([0.1, 0.9, 0.9, 0.3]), np.array([0.0, 0.0, 1.0, 2.0]), 3)
    found = prediction_attack("chance", chance)
    assert found[0] == pytest.approx(found[2])
    assert found[1] < 0.5 < found[0]
    assert found[3] == 0.5  # nobody knows the outcome
    residual = PatientScores(np.array([0.5, 0.6, 1.0]), np.zeros(3), 1)
    assert prediction_attack("residual", residual) == pytest.approx([1.0, 0.8, 0.0])
    assert prediction_attack("quality", residual) is residual.scores
    assert attack_counts("quality", residual, 4).tolist() == [0, 0, 2, 1]
