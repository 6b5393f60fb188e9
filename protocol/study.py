"""A study: what a researcher proposes (StudySpec) and what the coordinator makes of it for the sites to consent to
(StudyPlan). Both are closed documents; their digest is SHA-256 over RFC 8785.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from protocol.dataset import DatasetSchema, NumberLabel, SurvivalLabel
from protocol.evaluation import cells, kind_of
from protocol.identifiers import Digest, Frozen, KeyText, Label, PersonName, Role, SiteName, StudyId, Timestamp
from protocol.model import DiscreteTimeSurvival, ModelSpec, model_misfit, parameter_count
from protocol.round import Phase

Text = Annotated[str, StringConstraints(max_length=2000)]
Jurisdiction = Literal["EU", "US", "other"]
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
    """One site's ground. `gdpr_article6`: a letter; `gdpr_article9`: a letter; `hipaa_path`: RULES H05's list."""

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


class Governance(Frozen):
    """References that rules ask for; dates are ISO (YYYY-MM-DD)."""

    controllers: tuple[Text, ...] = ()
    joint_arrangement: Text | None = None
    notice: Text | None = None
    dpia: Text | None = None
    research_safeguards: bool = False
    updates_until: Text | None = None
    checkpoints_until: Text | None = None
    model_until: Text | None = None


class Privacy(Frozen):
    """The promise. epsilon and delta bind the released model, zero-out adjacency, patient as the unit.

    mode distributed: every site adds its share of the noise under secure aggregation (dropouts + colluders = t).
    retries: attempts beyond `rounds` that the noise is calibrated for (T + A steps).
    """

    unit: Literal["patient"] = "patient"
    epsilon: Annotated[float, Field(gt=0, le=100)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    mode: Literal["distributed"] = "distributed"
    colluders: Annotated[int, Field(ge=1, le=MAX_SITES)] = 1
    dropouts: Annotated[int, Field(ge=0, le=MAX_SITES)] = 0
    retries: Annotated[int, Field(ge=0, le=1000)] = 6
    epsilon_worst_site: Annotated[float, Field(gt=0, le=1000)] | None = None


class Training(Frozen):
    """One private step a round; the coordinator applies momentum to the noisy mean (post-processing)."""

    rounds: Annotated[int, Field(ge=1, le=10_000)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    clip: Annotated[float, Field(gt=0, le=1e6)]
    learning_rate: Annotated[float, Field(gt=0, le=1e6)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    average_last: Annotated[float, Field(ge=0, le=1)] = 0.5


class Evaluation(Frozen):
    """noised: one score histogram with its own epsilon, charged to the held-out patients (delta as in `privacy`).

    exact: the declared exception of the design: no noise, once per candidate, shown on the release as outside
    the guarantee.
    """

    mode: Literal["noised", "exact"] = "noised"
    epsilon: Annotated[float, Field(gt=0, le=100)] = 1.0
    bins: Annotated[int, Field(ge=4, le=200)] = 10
    attempts: Annotated[int, Field(ge=1, le=20)] = 2


class StudySpec(Frozen):
    """What a researcher signs. `legal_basis` has one entry per invited site."""

    study: StudyId
    title: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    purpose: Purpose
    legal_basis: dict[SiteName, LegalBasis]
    governance: Governance = Governance()
    dataset: DatasetSchema
    justified_columns: tuple[Text, ...] = ()
    model: ModelSpec
    privacy: Privacy
    training: Training
    evaluation: Evaluation = Evaluation()
    minimum_sites: Annotated[int, Field(ge=2, le=MAX_SITES)]
    recipients: Annotated[tuple[SiteName, ...], Field(min_length=1, max_length=MAX_SITES)]

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
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
        label = self.dataset.label
        if isinstance(label, NumberLabel):
            raise ValueError("no model here predicts a number yet")
        edges = len(label.edges) if isinstance(label, SurvivalLabel) else None
        intervals = self.model.intervals if isinstance(self.model, DiscreteTimeSurvival) else None
        if intervals != edges:
            raise ValueError(
                f"the model predicts {intervals or 'no'} survival intervals and the data set's label has "
                f"{edges or 'none'}: discrete_time_survival needs a label with as many edges, other models one without"
            )
        if (reason := model_misfit(self.model, self.dataset.shape)) is not None:
            raise ValueError(reason)
        if len(set(self.recipients)) != len(self.recipients):
            raise ValueError("recipients names a site twice")
        return self

    @property
    def invited(self) -> tuple[str, ...]:
        """Invited sites in name order."""
        return tuple(sorted(self.legal_basis))

    @property
    def steps(self) -> int:
        """Private steps that the noise is calibrated for: rounds + retries (T + A)."""
        return self.training.rounds + self.privacy.retries


class PlannedSite(Frozen):
    """A site's pinned identity and its public counts (constants of the plan)."""

    name: SiteName
    identity: KeyText
    jurisdiction: Jurisdiction
    patients: Annotated[int, Field(gt=MINIMUM_CELL)]
    held_out: Annotated[int, Field(ge=0)]
    snapshot: Digest


class PlannedApprover(Frozen):
    """A person whose signature counts at release: fixed when the sites consent, so nobody can be invented later."""

    person: PersonName
    role: Role
    key: KeyText


class SecureSum(Frozen):
    """The numbers of one secure sum, as both ends must derive them from the plan and the cohort alone.

    `clip`: L2 bound of one patient. `sites`: K, the cohort's size. `tolerated`: t = dropouts + colluders.
    `largest_batch`: patients in the sum at most. `noise_multiplier`: sigma over the clip; None: exact, whole counts
    without noise. `length`: coordinates.
    """

    clip: Annotated[float, Field(gt=0)]
    sites: Annotated[int, Field(ge=2, le=MAX_SITES)]
    tolerated: Annotated[int, Field(ge=1)]
    largest_batch: Annotated[int, Field(ge=1)]
    noise_multiplier: Annotated[float, Field(gt=0)] | None
    length: Annotated[int, Field(ge=1)]

    @property
    def exact_step(self) -> float:
        """Grid step of an exact sum modulo 2^32: a power of two that leaves room for twice `largest_batch` either
        way. Randomised rounding moves a count by a few steps; the sum is rounded to whole counts afterwards."""
        return float(2.0 ** (self.largest_batch.bit_length() - 30))


@dataclass(frozen=True)
class Stage:
    """Consecutive rounds of one phase, numbered first .. first + rounds - 1 within it. held_out: they ask of held-out
    patients, so only sites that hold enough of them out take part."""

    phase: Phase
    first: int
    rounds: int
    held_out: bool = False


class StudyPlan(Frozen):
    """What sites consent to: the spec, who takes part under which key, and the calibrated noise.

    noise_multiplier: sigma at sampling_rate over spec.steps for (epsilon, delta); evaluation_multiplier: sigma of
    the score histogram over evaluation.attempts (0 in exact mode). epsilon_worst_site, epsilon_evaluation_worst_site:
    of a site's training and held-out patients if all others collude; the latter is None in exact mode.
    `witness_policy`: protocol.witness_policy's canonical form. `coordinator`: the key that signs round requests and
    releases.
    """

    spec: StudySpec
    spec_digest: Digest
    proposal_digest: Digest
    submitter: PersonName
    sites: Annotated[tuple[PlannedSite, ...], Field(min_length=2, max_length=MAX_SITES)]
    approvers: tuple[PlannedApprover, ...]
    noise_multiplier: Annotated[float, Field(gt=0)]
    evaluation_multiplier: Annotated[float, Field(ge=0)]
    epsilon: Annotated[float, Field(gt=0)]
    epsilon_worst_site: Annotated[float, Field(gt=0)]
    epsilon_evaluation_worst_site: Annotated[float, Field(gt=0)] | None
    packs: dict[Label, Digest]
    witness_policy: dict[str, Any]
    coordinator: KeyText
    created_at: Timestamp

    @model_validator(mode="after")
    def _ordered(self) -> StudyPlan:
        names = [site.name for site in self.sites]
        if names != sorted(set(names)):
            raise ValueError("plan sites must be distinct and in name order")
        if len({site.identity for site in self.sites}) != len(names):
            raise ValueError("two plan sites share one key")
        if (self.epsilon_evaluation_worst_site is None) != (self.spec.evaluation.mode == "exact"):
            raise ValueError("epsilon_evaluation_worst_site is stated for a noised evaluation, and for no other")
        if len({approver.key for approver in self.approvers}) != len(self.approvers):
            raise ValueError("two approvers share one key")
        return self

    def site(self, name: str) -> PlannedSite:
        """The named site. KeyError if it is not in the plan."""
        return next(site for site in self.sites if site.name == name) if name in self.names else _absent(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Site names in order."""
        return tuple(site.name for site in self.sites)

    @property
    def parameters(self) -> int:
        """Length of the model's flat vector."""
        return parameter_count(self.spec.model, self.spec.dataset.shape)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every round of the study in the order in which they run."""
        return Stage("train", 1, self.spec.training.rounds), Stage("evaluate", 1, 1, held_out=True)

    @property
    def attempts(self) -> Mapping[Phase, int]:
        """The most attempts of each phase, over all its rounds, that the noise is calibrated for. The declared
        exception, an exact evaluation, happens once."""
        evaluation = self.spec.evaluation
        return {"train": self.spec.steps, "evaluate": 1 if evaluation.mode == "exact" else evaluation.attempts}

    def position(self, phase: Phase, round_number: int) -> int:
        """The place of a round in the whole study, from 1. KeyError for a round that the plan does not have."""
        before = 0
        for stage in self.stages:
            if stage.phase == phase and stage.first <= round_number < stage.first + stage.rounds:
                return before + round_number - stage.first + 1
            before += stage.rounds
        raise KeyError((phase, round_number))

    def body_length(self, phase: Phase) -> int:
        """How many floats a request of the phase brings to the sites: the model's parameters."""
        return self.parameters

    def secure_sum(self, phase: Phase, cohort: Iterable[str]) -> SecureSum:
        """The secure sum of one attempt with `cohort`. train: the sum of clipped gradients. evaluate: one count per
        held-out patient, in cells as `protocol.evaluation` lays them out. KeyError for a site outside the plan."""
        sites = [self.site(name) for name in cohort]
        tolerated = self.spec.privacy.colluders + self.spec.privacy.dropouts
        if phase == "train":
            return SecureSum(
                clip=self.spec.training.clip,
                sites=len(sites),
                tolerated=tolerated,
                largest_batch=sum(site.patients for site in sites),
                noise_multiplier=self.noise_multiplier,
                length=self.parameters,
            )
        exact = self.spec.evaluation.mode == "exact"
        return SecureSum(
            clip=1.0,
            sites=len(sites),
            tolerated=tolerated,
            largest_batch=sum(max(site.held_out, MINIMUM_CELL) for site in sites),  # 0 stands for 10 or fewer
            noise_multiplier=None if exact else self.evaluation_multiplier,
            length=cells(kind_of(self.spec.dataset), self.spec.evaluation.bins),
        )


def _absent(name: str) -> PlannedSite:
    raise KeyError(name)
