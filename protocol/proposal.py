"""What a researcher signs, whatever the kind of study: who is asked, why, on which ground, of which data, at what
price. `protocol.study` and `protocol.exploration` hold the two kinds."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from protocol.dataset import DatasetSchema
from protocol.identifiers import Frozen, Label, SiteName, StudyId

Text = Annotated[str, StringConstraints(max_length=2000)]
Jurisdiction = Literal["EU", "US", "other"]
Mode = Literal["distributed", "local"]
StudyKind = Literal["training", "exploration"]
MAX_SITES = 50
MINIMUM_CELL = 10
MINIMUM_TRAINS_ALONE = 50
HELD_OUT_SHARE = 4


def held_out_count(patients: int) -> int:
    """How many of a site's patients only evaluate: a quarter, rounded up. A quarter of at most the minimum cell (10)
    would be a count that must not leave the site: then nobody, and the site takes part in training alone."""
    quarter = -(-patients // HELD_OUT_SHARE)
    return quarter if quarter > MINIMUM_CELL else 0


class Purpose(Frozen):
    """Why the data is used: a code from the organisation's list, and a description people read."""

    code: Label
    description: Text


class Waiver(Frozen):
    """45 CFR 164.512(i)(2): the five parts of a waiver's documentation."""

    board: Text
    date: Text
    criteria: Text
    phi: Text
    procedure: Text
    signature: Text


class LegalBasis(Frozen):
    """One site's ground. `gdpr_article6`: a letter; `gdpr_article9`: a letter; `hipaa_path`: RULES H05's list.

    consent_forms: versions of the site's consent form that cover this study. part2_basis: the ground under 42 CFR 2.52
    for records of substance-use treatment.
    """

    jurisdiction: Jurisdiction
    gdpr_article6: Literal["a", "b", "c", "d", "e", "f"] | None = None
    gdpr_article9: Literal["a", "g", "h", "i", "j"] | None = None
    member_state_law: Text | None = None
    hipaa_path: (
        Literal[
            "operations", "authorization", "waiver", "preparatory", "decedents", "limited-data-set", "de-identified"
        ]
        | None
    ) = None
    waiver: Waiver | None = None
    consent_forms: tuple[Text, ...] = ()
    part2_basis: Text | None = None


class Governance(Frozen):
    """References that rules ask for; dates are ISO (YYYY-MM-DD). special_categories_for_bias: whether the study reads
    special categories of data in order to find bias (AI Act Art. 10(5))."""

    controllers: tuple[Text, ...] = ()
    joint_arrangement: Text | None = None
    notice: Text | None = None
    dpia: Text | None = None
    research_safeguards: bool = False
    special_categories_for_bias: bool = False
    updates_until: Text | None = None
    checkpoints_until: Text | None = None
    model_until: Text | None = None


class Privacy(Frozen):
    """The promise. epsilon and delta bind the released model, zero-out adjacency, patient as the unit.

    mode distributed: every site adds its share of the noise under secure aggregation (dropouts + colluders = t).
    mode local, of training alone: every site adds all the noise itself, in each of its local steps, so that what holds
    for the model holds for a site whose peers all collude. retries: attempts beyond `rounds` that the noise is
    calibrated for.
    """

    unit: Literal["patient"] = "patient"
    epsilon: Annotated[float, Field(gt=0, le=100)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    mode: Mode = "distributed"
    colluders: Annotated[int, Field(ge=1, le=MAX_SITES)] = 1
    dropouts: Annotated[int, Field(ge=0, le=MAX_SITES)] = 0
    retries: Annotated[int, Field(ge=0, le=1000)] = 6
    epsilon_worst_site: Annotated[float, Field(gt=0, le=1000)] | None = None


class Proposal(Frozen):
    """What every study has. `legal_basis` has one entry per invited site; `kind` is fixed by each kind of study."""

    kind: StudyKind
    study: StudyId
    title: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    purpose: Purpose
    legal_basis: dict[SiteName, LegalBasis]
    governance: Governance = Governance()
    dataset: DatasetSchema
    justified_columns: tuple[Text, ...] = ()
    privacy: Privacy
    minimum_sites: Annotated[int, Field(ge=2, le=MAX_SITES)]

    @model_validator(mode="after")
    def _enough_sites(self) -> Proposal:
        if self.privacy.mode == "local" and self.kind != "training":
            raise ValueError("privacy.mode local is for studies that train")
        sites = len(self.legal_basis)
        tolerated = self.privacy.colluders + self.privacy.dropouts
        if not 2 <= sites <= MAX_SITES:
            raise ValueError(f"legal_basis names {sites} sites; a study has 2 to {MAX_SITES}")
        if not self.minimum_sites <= sites:
            raise ValueError("minimum_sites is larger than the number of invited sites")
        if self.minimum_sites - tolerated < 1 or self.minimum_sites - self.privacy.colluders < 2:
            raise ValueError(
                "minimum_sites leaves fewer than two honest sites: raise it above colluders + 1 and dropouts"
            )
        return self

    @property
    def invited(self) -> tuple[str, ...]:
        """Invited sites in name order."""
        return tuple(sorted(self.legal_basis))

    @property
    @abstractmethod
    def steps(self) -> int:
        """Private steps that the noise is calibrated for, retries included."""
