"""Evidence on record: which document somebody vouches for, about what, and until when. The document itself stays with
its owner; its SHA-256 stands here, so that it can be asked for and recognised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints, model_validator

from protocol.canonical import digest
from protocol.identifiers import Digest, Frozen, Label, PersonName, SiteName

Scope = Literal["site", "study", "release", "deployment"]
Kind = Literal[
    "dpa", "baa", "dua", "scc", "tia", "ethics_approval", "dpia", "prior_consultation", "compatibility_assessment",
    "risk_analysis", "restore_test", "security_test", "backup_test", "training", "access_review",
    "expert_determination", "subcontractor_baa", "subprocessor_review", "disclosure_accounting", "scratch_wipe",
    "infeasibility", "bias_assessment", "risk_file", "technical_documentation", "regulatory_classification",
    "change_control", "pms_plan", "incident_contact", "deployer_dpia", "part2_basis", "oversight_training",
    "attack_evaluation", "prior_notice", "datasheet",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(Kind)
DPIA_SECTIONS = ("description", "necessity", "risks", "measures")
"""The four parts that Art. 35(7) GDPR asks of an impact assessment."""
NO_EXPIRY_DAYS = 36_500
_Words = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Assessment(Frozen):
    """What a data protection impact assessment came to. spec: the digest of the very spec it is about, so that another
    spec makes it stale. officer: the data protection officer who advised."""

    spec: Digest
    sections: tuple[Literal["description", "necessity", "risks", "measures"], ...]
    residual_risk: Literal["low", "medium", "high"]
    officer: PersonName


class Classification(Frozen):
    """The classes under the Medical Device Regulation and the AI Act."""

    mdr_class: Literal["I", "IIa", "IIb", "III", "none"]
    ai_act_class: Literal["prohibited", "high", "limited", "minimal"]


class AttackEvaluation(Frozen):
    """What attacks on a model came to, for a claim that it is anonymous (EDPB Opinion 28/2024): the largest advantage
    of membership inference, and the largest share of training records that extraction and inversion found, each in
    [0, 1]; the epsilon that it rests on."""

    membership: Annotated[float, Field(ge=0, le=1)]
    extraction: Annotated[float, Field(ge=0, le=1)]
    inversion: Annotated[float, Field(ge=0, le=1)]
    epsilon: Annotated[float, Field(gt=0)]


class EvidenceRecord(Frozen):
    """One document. subject: the site, the study, the digest of the release, or the site that serves. expires: the last
    day on which it counts. missing: sections of a technical documentation that are empty."""

    kind: Kind
    scope: Scope
    subject: SiteName | Digest
    issuer: _Words
    issued: date
    expires: date | None = None
    file: Digest
    assessment: Assessment | None = None
    classification: Classification | None = None
    change_class: Literal["first", "within-plan", "outside-plan"] | None = None
    missing: tuple[Label, ...] | None = None
    attacks: AttackEvaluation | None = None

    @model_validator(mode="after")
    def _coherent(self) -> EvidenceRecord:
        if self.expires is not None and self.expires < self.issued:
            raise ValueError("expires is before issued")
        told = {
            "dpia": self.assessment is not None,
            "regulatory_classification": self.classification is not None,
            "change_control": self.change_class is not None,
            "technical_documentation": self.missing is not None,
            "attack_evaluation": self.attacks is not None,
        }
        for kind, given in told.items():
            if given != (self.kind == kind):
                raise ValueError(f"a {kind} has its own field, and no other kind has it")
        if self.attacks is not None and (self.scope != "release" or self.expires is None):
            raise ValueError("an attack_evaluation is about one release, and expires")
        if (self.scope == "release") != self.subject.startswith("sha256:"):
            raise ValueError("evidence about a release names its digest; other evidence names a site or a study")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical record: its identity."""
        return digest(self.model_dump(mode="json"))


def standing(records: Iterable[EvidenceRecord], *, on: date) -> list[dict[str, Any]]:
    """Records as policy facts: those issued by then, each with its age and the days left, 0 or less once expired."""
    return [
        {
            "kind": record.kind,
            "subject": record.subject,
            "age_days": (on - record.issued).days,
            "days_left": NO_EXPIRY_DAYS if record.expires is None else (record.expires - on).days + 1,
        }
        for record in records
        if record.issued <= on
    ]


def latest(records: Iterable[EvidenceRecord], kind: Kind, *, on: date) -> EvidenceRecord | None:
    """The newest record of the kind that counts on this day; of two of one day, the later in the order given."""
    valid = [r for r in records if r.kind == kind and r.issued <= on and (r.expires is None or on <= r.expires)]
    return max(enumerate(valid), key=lambda pair: (pair[1].issued, pair[0]))[1] if valid else None


def assessment_facts(records: Iterable[EvidenceRecord], *, on: date) -> Mapping[str, Any]:
    """`study.dpia.*` from the newest assessment that counts. Without one it is not approved and says nothing else, so
    that a rule which asks for the remaining risk denies."""
    found = latest(records, "dpia", on=on)
    if found is None or found.assessment is None:
        return {"approved": False, "spec_digest": "", "sections": [], "advice_recorded": False, "officer": ""}
    told = found.assessment
    return {
        "approved": True,
        "spec_digest": told.spec,
        "sections": list(told.sections),
        "advice_recorded": True,
        "officer": told.officer,
        "residual_risk": told.residual_risk,
    }
