"""What the agent asks of its worker for a plan: frames' headers, as JSON. Pure."""

from __future__ import annotations

from typing import Any

from protocol.evaluation import cells, kind_of
from protocol.exploration import ExplorationPlan
from protocol.membership import MOST_SCORED, PREDICTIONS
from protocol.round import Phase
from protocol.study import StudyPlan
from protocol.study_kind import AnyPlan
from protocol.subgroups import bandings
from site_agent.training.exploration import asked_of_worker


def opening(plan: AnyPlan, snapshot: str) -> dict[str, Any]:
    """To load a snapshot for the plan's model."""
    return {"op": "open", "snapshot": snapshot, "model": _model(plan)}


def step(plan: AnyPlan, phase: Phase, site: str, *, noise_std: float | None) -> dict[str, Any]:
    """For one attempt of a phase at `site`. noise_std: None where the plan asks for an exact sum."""
    return {"op": phase, "model": _model(plan), "noise_std": noise_std, **_step(plan, phase, site)}


def _model(plan: AnyPlan) -> dict[str, Any] | None:
    """None for an exploration, which has none. A researcher's first weights begin the first round, at the coordinator;
    no step needs them."""
    return plan.spec.model.model_dump(mode="json", exclude={"initial"}) if isinstance(plan, StudyPlan) else None


def _step(plan: AnyPlan, phase: Phase, site: str) -> dict[str, Any]:
    """What the worker must know of the plan for a step of this phase."""
    if isinstance(plan, ExplorationPlan):
        return asked_of_worker(plan, phase)
    match phase:
        case "train":
            training = plan.spec.training
            step: dict[str, Any] = {"clip": training.clip, "sampling_rate": training.sampling_rate}
            if plan.spec.privacy.mode == "local":
                here = plan.site(site)
                step["local"] = {
                    "steps": training.local_steps,
                    "learning_rate": training.learning_rate,
                    "momentum": training.momentum,
                    "largest_delta": training.largest_delta,
                    "expected_batch": training.sampling_rate * (here.patients - here.held_out),
                    "share": plan.patients_share((site,)),
                }
            return step
        case "evaluate" | "check":
            declared = plan.spec.evaluation.subgroups if phase == "evaluate" else ()
            found = bandings(declared, plan.spec.dataset)
            told = [one.model_dump(mode="json") for one in found]
            return {"cells": cells(plan.kind, plan.spec.evaluation.bins), "subgroups": told}
        case "membership":
            prediction = PREDICTIONS[kind_of(plan.spec.dataset)]
            return {"prediction": prediction, "bins": plan.spec.audit.membership.bins, "most": MOST_SCORED}
    raise KeyError(phase)
