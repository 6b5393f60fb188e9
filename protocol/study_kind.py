"""The two kinds of study, told apart by `kind`: one that trains and releases a model, and an exploration."""

from __future__ import annotations

from typing import Any

from protocol.exploration import ExplorationPlan, ExplorationSpec
from protocol.study import StudyPlan, StudySpec

AnySpec = StudySpec | ExplorationSpec
AnyPlan = StudyPlan | ExplorationPlan
_SPECS: dict[object, type[StudySpec] | type[ExplorationSpec]] = {"training": StudySpec, "exploration": ExplorationSpec}
_PLANS: dict[object, type[StudyPlan] | type[ExplorationPlan]] = {"training": StudyPlan, "exploration": ExplorationPlan}


def spec_from(document: Any) -> AnySpec:
    """A parsed document as the spec that its `kind` names; without one it trains. Raises pydantic.ValidationError with
    the fields that are wrong; an unknown kind is wrong in the field `kind`."""
    return _SPECS.get(_kind(document), StudySpec).model_validate(document)


def plan_from(document: Any) -> AnyPlan:
    """A parsed document as the plan of the kind that its spec names. Raises pydantic.ValidationError."""
    spec = document.get("spec") if isinstance(document, dict) else None
    return _PLANS.get(_kind(spec), StudyPlan).model_validate(document)


def _kind(spec: Any) -> object:
    kind = spec.get("kind", "training") if isinstance(spec, dict) else "training"
    return kind if isinstance(kind, str) else None
