"""A claim that a model is anonymous is denied unless evidence, its figures and an officer carry it."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from coordinator.database import reading, transaction
from coordinator.evidence.repository import EvidenceRepository
from coordinator.people.facts import Actor
from coordinator.policy.active import active_policy
from coordinator.releases import review, seal
from coordinator.releases.repository import ReleaseRepository
from coordinator.rounds.tables import Candidate
from policies.findings import Decision
from protocol.evaluation import Interval
from protocol.evidence import AttackEvaluation, EvidenceRecord
from protocol.membership import MembershipReport
from tests.coordinator.test_release_review import HASH, RELEASE, STUDY, Federation, federation

__all__ = ["federation"]
FIGURE = Interval(value=0.01, low=0.0, high=0.03)
AUDIT = MembershipReport(
    ran=True, members=400, non_members=120, bins=10, auc=FIGURE, found_at_1=FIGURE, found_at_10=FIGURE, advantage=FIGURE
)
ISSUED = date(2026, 11, 1)


def claim(made: Federation, audit: MembershipReport | None = AUDIT) -> None:
    with transaction(made.appliance.engine) as session:
        candidate = session.get_one(Candidate, STUDY)
        candidate.membership = None if audit is None else audit.model_dump_json()
        session.add(candidate)
    with transaction(made.appliance.engine) as session:
        review.draft(
            session, made.appliance, made.people["ada"], study=STUDY, intended_use="research.heart",
            use_mode="research", claim_anonymous=True,
        )  # fmt: skip
    with transaction(made.appliance.engine) as session:
        review.submit(session, made.appliance, made.people["ada"], RELEASE)


def evaluated(made: Federation, *, days: int = 300, **changes: float) -> None:
    with transaction(made.appliance.engine) as session:
        digest = ReleaseRepository(session).get(RELEASE).subject_digest
        figures = {"membership": 0.04, "extraction": 0.0, "inversion": 0.01, "epsilon": 1.0, **changes}
        record = EvidenceRecord(
            kind="attack_evaluation", scope="release", subject=digest, issuer="Red team", issued=ISSUED,
            expires=made.appliance.clock().date() + timedelta(days=days), file=HASH,
            attacks=AttackEvaluation.model_validate(figures),
        )  # fmt: skip
        EvidenceRepository(session).add(record, by="bo", at="2026-11-23T00:00:00Z")


def gate(made: Federation) -> Decision:
    with reading(made.appliance.engine) as session:
        who = Actor(made.people["ada"], made.level)
        return seal.preview(session, made.appliance, active_policy(session, made.appliance), who, RELEASE)


def broken(made: Federation) -> set[str]:
    return {finding.rule for finding in gate(made).findings if finding.rule.startswith("G24")}


def test_a_claim_alone_is_denied(federation: Federation) -> None:
    claim(federation)
    assert broken(federation) == {"G24", "G24-attacks", "G24-officer"}
    assert gate(federation).outcome.value == "deny"


def test_evidence_figures_and_an_officer_carry_it(federation: Federation) -> None:
    claim(federation)
    evaluated(federation)
    assert broken(federation) == {"G24-officer"}
    federation.decide("cy")
    assert broken(federation) == {"G24-officer"}
    federation.decide("bo")
    assert gate(federation).allowed, gate(federation).findings
    with reading(federation.appliance.engine) as session:
        card = ReleaseRepository(session).files(RELEASE)["model_card.md"].decode()
    assert "claims that this model is **anonymous**" in card
    federation.seal()
    federation.witness()
    assert federation.seal()


def test_evidence_that_expires_takes_the_claim_with_it(federation: Federation) -> None:
    claim(federation)
    evaluated(federation, days=-1)
    federation.decide("bo")
    assert broken(federation) == {"G24", "G24-attacks"}


@pytest.mark.parametrize(
    ("audit", "figures"),
    [
        (None, {}),  # nobody tried
        (AUDIT.model_copy(update={"advantage": Interval(value=0.01, low=0.0, high=0.045)}), {}),  # more than stated
        (AUDIT, {"membership": 0.2}),
        (AUDIT, {"extraction": 0.06}),
        (AUDIT, {"inversion": 0.06}),
        (AUDIT, {"epsilon": 0.5}),  # of another, smaller guarantee
    ],
)
def test_an_attack_that_finds_more_than_is_stated_denies_it(
    federation: Federation, audit: MembershipReport | None, figures: dict[str, float]
) -> None:
    claim(federation, audit)
    evaluated(federation, **figures)
    federation.decide("bo")
    assert broken(federation) == {"G24-attacks"}


def test_the_claim_is_part_of_what_is_signed(federation: Federation) -> None:
    claim(federation)
    with reading(federation.appliance.engine) as session:
        subject = review.subject_of_release(ReleaseRepository(session).get(RELEASE))
    assert subject.model_copy(update={"claim_anonymous": False}).digest != subject.digest


@pytest.mark.parametrize(
    "wrong",
    [
        {"attacks": None}, {"expires": None}, {"kind": "risk_file"}, {"scope": "study", "subject": STUDY},
        {"attacks": {"membership": 1.5, "extraction": 0, "inversion": 0, "epsilon": 1}},
        {"attacks": {"membership": 0.1, "extraction": 0, "inversion": 0}},
    ],
)  # fmt: skip
def test_an_evaluation_of_another_form_is_no_evidence(wrong: dict[str, Any]) -> None:
    fields = {
        "kind": "attack_evaluation", "scope": "release", "subject": HASH, "issuer": "Red team", "issued": ISSUED,
        "expires": date(2027, 11, 1), "file": HASH,
        "attacks": {"membership": 0.1, "extraction": 0, "inversion": 0, "epsilon": 1},
    }  # fmt: skip
    EvidenceRecord.model_validate(fields)
    with pytest.raises(ValidationError):
        EvidenceRecord.model_validate({**fields, **wrong})
