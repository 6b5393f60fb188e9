"""What people and sites are shown of a study, as JSON."""

from __future__ import annotations

import base64
import json
from typing import Any

from sqlmodel import Session

from coordinator.errors import NotFound
from coordinator.incidents.facts import frozen_sites, is_frozen
from coordinator.rounds import waiting
from coordinator.rounds.repository import CandidateRepository, RoundRepository, round_record
from coordinator.rounds.states import Design
from coordinator.studies.plan import spent
from coordinator.studies.repository import StudyRepository, forecast_of, plan_of
from coordinator.studies.states import ACTIVE, StudyState
from coordinator.studies.tables import DeniedProposal, Study
from protocol.study import StudyPlan
from protocol.study_kind import AnyPlan


def summary(row: Study) -> dict[str, Any]:
    """One line of the list."""
    return {
        "study": row.id,
        "title": row.title,
        "submitter": row.submitter,
        "state": row.state,
        "reason": row.reason,
        "detail": row.detail,
        "plan_digest": row.plan_digest,
        "proposed_at": row.proposed_at,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
    }


def denied(row: DeniedProposal) -> dict[str, Any]:
    """One line of the list, for a proposal that policy denied."""
    rules = sorted({finding["rule"] for finding in json.loads(row.decision)["findings"]})
    return {
        "study": row.study,
        "submitter": row.submitter,
        "state": StudyState.DENIED.value,
        "reason": "policy-denied",
        "detail": ", ".join(rules),
        "proposed_at": row.proposed_at,
    }


def status(session: Session, row: Study, *, patience: float) -> dict[str, Any]:
    """Everything about a study but its rounds' records: sites with their answers, what was spent, how far it is,
    and why it waits. patience: seconds that a study waits before it fails."""
    studies, rounds = StudyRepository(session), RoundRepository(session)
    plan = plan_of(row)
    consents = studies.consents(row.id)
    setup = rounds.key_setup(row.id)
    progress = rounds.progress(row.id)
    curve = forecast_of(row)
    design = Design.of(plan)
    trained = design.on_training
    evaluated = plan.epsilon_evaluation_worst_site if isinstance(plan, StudyPlan) else None
    shut_out, frozen = studies.excluded(row.id), frozen_sites(session)
    asked = {found.site for found in studies.exclusions(row.id) if found.confirmed_by is None}
    joined = set(json.loads(setup.joined)) if setup is not None else set()
    if setup is not None and setup.established_at is not None:
        joined = set(json.loads(setup.cohort))
    latest = rounds.latest_round(row.id)
    return {
        **summary(row),
        "kind": plan.spec.kind,
        "decision": json.loads(row.decision),
        "epsilon": plan.epsilon,
        "privacy": {
            "target": plan.spec.privacy.epsilon,
            "delta": plan.spec.privacy.delta,
            "epsilon_worst_site": plan.epsilon_worst_site,
            "epsilon_evaluation_worst_site": evaluated,
            "membership": membership(plan),
            "epsilon_spent": spent(curve, sum(progress.steps(phase) * plan.steps_of(phase) for phase in trained)),
            "noise_multiplier": plan.noise_multiplier,
        },
        "rounds": {
            "planned": sum(design.rounds(phase) for phase in trained),
            "committed": sum(progress.done(phase) for phase in trained),
            "abandoned_attempts": sum(progress.abandoned.get(phase, 0) for phase in trained),
            "retries_planned": sum(design.retries(phase) for phase in trained),
            "latest": round_record(latest) if latest is not None else None,
        },
        "waiting": waiting.shown(session, row.id, patience) if StudyState(row.state) in ACTIVE else None,
        "frozen": is_frozen(session, row.id),
        "minimum_sites": plan.spec.minimum_sites,
        "sites": [
            {
                "name": site.name,
                "jurisdiction": site.jurisdiction,
                "patients": site.patients,
                "held_out": site.held_out,
                "answer": consents[site.name].decision if site.name in consents else None,
                "reason": consents[site.name].reason if site.name in consents else None,
                "joined": site.name in joined,
                "shut_out": site.name in shut_out,
                "shut_out_asked": site.name in asked,
                "frozen": site.name in frozen,
            }
            for site in plan.sites
        ],
        "runs": _runs(rounds, plan),
        "candidate": _candidate(session, row),
        "result_digest": found.result_digest if (found := rounds.result(row.id)) is not None else None,
        "plan": plan.model_dump(mode="json"),
    }


def membership(plan: AnyPlan) -> dict[str, Any] | None:
    """What the plan's membership audit costs; None where there is none."""
    planned = plan.membership if isinstance(plan, StudyPlan) else None
    return None if planned is None else planned.model_dump(mode="json")


def _runs(rounds: RoundRepository, plan: AnyPlan) -> list[dict[str, Any]]:
    """The runs of a tuned study that are scored: which entry of the grid, and its noised score."""
    tuning = plan.spec.tuning if isinstance(plan, StudyPlan) else None
    if tuning is None:
        return []
    return [
        {
            "run": run.number,
            "entry": run.entry,
            "changes": tuning.grid[run.entry - 1].model_dump(mode="json", exclude_none=True),
            "score": run.score,
        }
        for run in rounds.runs(plan.spec.study)
    ]


def _candidate(session: Session, row: Study) -> dict[str, Any] | None:
    candidate = CandidateRepository(session).find(row.id)
    if candidate is None:
        return None
    return {
        "weights_digest": candidate.weights_digest,
        "rounds_digest": candidate.rounds_digest,
        "evaluation": json.loads(candidate.evaluation),
        "membership": None if candidate.membership is None else json.loads(candidate.membership),
        "epsilon": json.loads(candidate.epsilon),
        "created_at": candidate.created_at,
    }


def results(session: Session, study: str) -> dict[str, Any]:
    """What an exploration found, and the digest of it that the log holds. NotFound before it is completed."""
    row = StudyRepository(session).get(study)
    found = RoundRepository(session).result(study)
    if found is None:
        raise NotFound(
            f"{study} has no results: it is {row.state}.",
            "An exploration has them once it is completed; a study that trains has a candidate instead.",
        )
    return {"study": study, "result": json.loads(found.result), "result_digest": found.result_digest}


def round_records(session: Session, study: str) -> dict[str, Any]:
    """The committed rounds and the attempts that were not."""
    rounds = RoundRepository(session)
    return {
        "rounds": [round_record(row) for row in rounds.rounds(study)],
        "abandoned": [
            {
                "phase": recorded.attempt.phase,
                "round": recorded.attempt.round,
                "attempt": recorded.attempt.attempt,
                "cohort": list(recorded.attempt.cohort),
                "contributed": list(recorded.attempt.contributed),
                "excluded": dict(recorded.attempt.excluded),
            }
            for recorded in rounds.attempts(study)
            if recorded.attempt.status.value == "abandoned"
        ],
        "rounds_digest": rounds.rounds_digest(study),
    }


def for_site(row: Study) -> dict[str, Any]:
    """What a planned site is shown: the signed plan itself."""
    return {
        "study": row.id,
        "state": row.state,
        "plan_envelope": base64.b64encode(row.plan or b"").decode("ascii"),
        "plan_digest": row.plan_digest,
    }
