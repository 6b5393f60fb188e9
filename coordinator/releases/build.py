"""From a candidate to what approvers sign, and from their signatures to the statement: pure.

safetensors, ONNX and the model card are deterministic in the candidate, so that anyone who has it can rebuild them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from safetensors.numpy import save

from coordinator.releases.model_card import write
from coordinator.releases.onnx_model import build, tensors
from protocol.approver_signature import Signed
from protocol.canonical import canonical, parse, sha256_hex
from protocol.evaluation import EvaluationReport
from protocol.membership import MembershipReport
from protocol.release import (
    BUNDLE_FILES,
    MODEL_FILES,
    PREDICATE_KIND,
    STATEMENT_KIND,
    EpsilonStatement,
    FileDigest,
    ReleasePredicate,
    ReleaseSubject,
)
from protocol.study import StudyPlan

UseMode = Literal["research", "decision-support"]


class Use(TypedDict):
    """What a release is for, and what its submitter claims of it."""

    intended_use: str
    use_mode: UseMode
    claim_anonymous: bool


def model_files(
    plan: StudyPlan,
    weights: bytes,
    epsilon: EpsilonStatement,
    evaluation: EvaluationReport,
    membership: MembershipReport | None = None,
    *,
    intended_use: str,
    use_mode: UseMode,
    claim_anonymous: bool = False,
) -> dict[str, bytes]:
    """The files of MODEL_FILES. weights: float64 little-endian, the candidate's vector. ValueError if it misfits."""
    vector = np.frombuffer(weights, dtype="<f8").astype(np.float64)
    schema, model = plan.spec.dataset, plan.spec.model
    named = tensors(model, schema.shape, vector)
    use = Use(intended_use=intended_use, use_mode=use_mode, claim_anonymous=claim_anonymous)
    card = write(plan, epsilon, evaluation, membership, **use)
    contents = (save(named), build(model, schema, vector), card.encode())
    return dict(zip(MODEL_FILES, contents, strict=True))


def subject_of(
    release: str,
    plan: StudyPlan,
    plan_digest: str,
    files: Mapping[str, bytes],
    epsilon: EpsilonStatement,
    evaluation: EvaluationReport,
    membership: MembershipReport | None = None,
    *,
    intended_use: str,
    use_mode: UseMode,
    claim_anonymous: bool = False,
) -> ReleaseSubject:
    """The document whose digest is the release digest."""
    return ReleaseSubject(
        release=release,
        study=plan.spec.study,
        plan_digest=plan_digest,
        model=plan.spec.model,
        dataset=plan.spec.dataset,
        files=tuple(
            FileDigest(name=name, sha256=sha256_hex(files[name]), size=len(files[name])) for name in MODEL_FILES
        ),
        epsilon=epsilon,
        evaluation=evaluation,
        membership=membership,
        intended_use=intended_use,
        use_mode=use_mode,
        submitter=plan.submitter,
        recipients=plan.spec.recipients,
        packs=plan.packs,
        claim_anonymous=claim_anonymous,
    )


def statement_of(
    subject: ReleaseSubject,
    files: Mapping[str, bytes],
    approvals: Sequence[Signed],
    *,
    waivers: Sequence[Signed] = (),
    rounds_digest: str,
    decision_digest: str,
    sealed_at: str,
) -> dict[str, Any]:
    """The in-toto v1 Statement over the model files and the subject document."""
    subject_bytes = canonical(subject.model_dump(mode="json"))
    contents = {**{name: files[name] for name in MODEL_FILES}, "subject.json": subject_bytes}
    predicate = ReleasePredicate(
        release=subject.release,
        subject_digest=subject.digest,
        plan_digest=subject.plan_digest,
        rounds_digest=rounds_digest,
        rounds=subject.epsilon.rounds_executed,
        waivers=tuple(_document(parse(envelope.to_bytes())) for envelope in waivers),
        approvals=tuple(_document(parse(envelope.to_bytes())) for envelope in approvals),
        decision_digest=decision_digest,
        sealed_at=sealed_at,
    )
    return {
        "_type": STATEMENT_KIND,
        "subject": [{"name": name, "digest": {"sha256": sha256_hex(data)[7:]}} for name, data in contents.items()],
        "predicateType": PREDICATE_KIND,
        "predicate": predicate.model_dump(mode="json"),
    }


def bundle_files(
    files: Mapping[str, bytes], *, subject: bytes, plan: bytes, statement: bytes, event: bytes, proof: bytes
) -> dict[str, bytes]:
    """Every file of the bundle, by name, in its order."""
    contents = (*(files[name] for name in MODEL_FILES), subject, plan, statement, event, proof)
    return dict(zip(BUNDLE_FILES, contents, strict=True))


def _document(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an envelope is a JSON object")
    return value
