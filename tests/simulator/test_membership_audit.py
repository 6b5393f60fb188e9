"""The membership audit of a study: what it costs, what it says, and a candidate all the same where it can't run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sqlmodel import select

from coordinator.database import transaction
from coordinator.errors import Conflict
from coordinator.releases.review import draft
from coordinator.rounds.membership import membership_report
from coordinator.studies.states import StudyState
from protocol.membership import MembershipReport
from protocol.release import EpsilonStatement
from protocol.study import StudyPlan
from site_agent.database import transaction as site_transaction
from site_agent.training.tables import CohortCharge
from tests.simulator.federation import Federation
from tests.simulator.test_simulated_study import silent

ON = {"membership": {"mode": "on", "epsilon": 1.0, "bins": 10, "attempts": 2}}
Begin = Callable[..., str]


def found(federation: Federation, study: str) -> MembershipReport:
    candidate = federation.candidate(study)
    assert candidate is not None
    assert candidate.membership is not None
    return MembershipReport.model_validate_json(candidate.membership)


def charges(federation: Federation, study: str, site: str) -> dict[tuple[str, bool], tuple[int, float]]:
    with site_transaction(federation.sites[site].store._engine) as session:
        rows = session.exec(select(CohortCharge).where(CohortCharge.study == study)).all()
    return {(row.phase, row.held_out): (row.steps_charged, row.epsilon) for row in rows}


def test_the_audit_follows_the_evaluation_and_is_charged_to_both_groups(federation: Federation, begin: Begin) -> None:
    study = begin(audit=ON)
    assert federation.driver(study).run() is StudyState.CANDIDATE
    plan, report = federation.plan(study), found(federation, study)
    assert plan.membership is not None
    assert (report.ran, report.members, report.non_members, report.bins) == (True, 240, 80, 10)
    assert report.advantage is not None
    assert report.advantage.low == 0.0  # the made-up sites' members and non-members score alike
    assert report.auc is not None
    for figure in (report.auc, report.found_at_1, report.found_at_10, report.advantage):
        assert figure is not None
        assert figure.value is None or figure.low <= figure.value <= figure.high  # type: ignore[operator]
    for site in federation.sites:
        charged = charges(federation, study, site)
        assert charged["membership", False] == charged["membership", True]
        assert charged["membership", False] == (1, pytest.approx(plan.membership.epsilon))
        assert charged["train", False][0] == 3
    candidate = federation.candidate(study)
    assert candidate is not None
    told = EpsilonStatement.model_validate_json(candidate.epsilon)
    assert (told.epsilon_membership, told.epsilon_membership_worst_site) == (
        plan.membership.epsilon,
        plan.membership.epsilon_worst_site,
    )
    assert told.epsilon_cohort_to_date["aachen"] >= plan.epsilon + plan.membership.epsilon
    phases = [group.split("-")[0] for kind, group, _ in federation.exchange.requests if "-" in group]
    assert phases[-2:] == ["evaluate", "membership"]
    assert [event.event.value for event in federation.events(study)][-1] == "candidate.audited"
    rounds = federation.records(study)
    assert {record["phase"] for record in rounds} == {"train", "evaluate", "membership"}


def test_by_default_nobody_is_charged_for_an_audit_that_could_say_nothing(federation: Federation, begin: Begin) -> None:
    study = begin()
    assert federation.plan(study).membership is None
    assert federation.driver(study).run() is StudyState.CANDIDATE
    candidate = federation.candidate(study)
    assert candidate is not None
    assert candidate.membership is None
    assert ("membership", False) not in charges(federation, study, "aachen")


def test_a_candidate_whose_audit_is_under_way_makes_no_release(federation: Federation, begin: Begin) -> None:
    study = begin(audit=ON)

    class Killed(Exception):
        pass

    def kill() -> None:
        if federation.exchange.requests[-1][0] == "evaluate.membership":
            raise Killed

    federation.exchange.after_request = kill
    with pytest.raises(Killed):
        federation.driver(study).run()
    asked = {"study": study, "intended_use": "research.heart", "use_mode": "research"}
    with (
        pytest.raises(Conflict, match="under way"),
        transaction(federation.appliance.engine) as session,
    ):
        draft(session, federation.appliance, federation.researcher, **asked)  # type: ignore[arg-type]
    federation.exchange.after_request = lambda: None
    assert federation.driver(study).run() is StudyState.CANDIDATE  # resent, answered from disk
    assert found(federation, study).ran
    assert charges(federation, study, "berlin")["membership", True][0] == 1


def test_a_site_that_did_not_evaluate_is_not_asked(federation: Federation, begin: Begin) -> None:
    study = begin(audit=ON)
    federation.exchange.faults.append(silent("evaluate-1-1", site="cologne"))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    report = found(federation, study)
    assert (report.ran, report.members, report.non_members) == (True, 180, 60)
    assert charges(federation, study, "cologne")["membership", False][0] == 0


def test_without_enough_answers_the_candidate_says_that_the_audit_did_not_run(
    federation: Federation, begin: Begin
) -> None:
    study = begin(audit=ON)
    federation.exchange.faults += [silent("membership-1-1", site="cologne"), silent("membership-1-2", site="berlin")]
    assert federation.driver(study).run() is StudyState.CANDIDATE
    report = found(federation, study)
    assert not report.ran
    assert report.reason is not None
    assert report.auc is None
    assert charges(federation, study, "aachen")["membership", False][0] == 2
    last = federation.events(study)[-1]
    assert (last.event.value, last.labels["membership"]) == ("candidate.audited", "did-not-run")


@pytest.mark.parametrize("lie", [1e6, -1e6, 300.0])
def test_a_site_that_lies_in_its_histogram_spoils_the_figures_and_nothing_else(
    federation: Federation, begin: Begin, lie: float
) -> None:
    """What it can do is to make the answer wrong; the card says that sites count their own patients."""
    plan: StudyPlan = federation.plan(begin(audit=ON))
    counts = np.concatenate([np.full(10, 8.0), np.full(10, 24.0)])
    counts[19] += lie
    report = membership_report(plan, plan.names, counts)
    assert report.advantage is not None
    assert report.advantage.value is not None
    for figure in (report.found_at_10, report.advantage):
        assert figure is not None
        assert 0 <= figure.low <= figure.value <= figure.high <= 1  # type: ignore[operator]
