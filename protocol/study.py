"""A study that trains a model: what a researcher proposes (StudySpec) and what the coordinator makes of it for the
sites to consent to (StudyPlan). Both are closed documents; their digest is SHA-256 over RFC 8785.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from protocol.evaluation import cells, kind_of
from protocol.identifiers import Frozen, SiteName
from protocol.membership import MOST_SCORED, Audit, PlannedMembership
from protocol.model import ModelSpec, label_misfit, model_misfit, parameter_count
from protocol.plan import Plan, SecureSum, Stage
from protocol.proposal import MAX_SITES, MINIMUM_CELL, Proposal
from protocol.round import Phase
from protocol.training import Training


class Evaluation(Frozen):
    """noised: one score histogram with its own epsilon, charged to the held-out patients (delta as in `privacy`).

    exact: the declared exception of the design: no noise, once per candidate, shown on the release as outside
    the guarantee.
    """

    mode: Literal["noised", "exact"] = "noised"
    epsilon: Annotated[float, Field(gt=0, le=100)] = 1.0
    bins: Annotated[int, Field(ge=4, le=200)] = 10
    attempts: Annotated[int, Field(ge=1, le=20)] = 2


class StudySpec(Proposal):
    """What a researcher signs to train a model and have it released."""

    kind: Literal["training"] = "training"
    model: ModelSpec
    training: Training
    evaluation: Evaluation = Evaluation()
    audit: Audit = Audit()
    recipients: Annotated[tuple[SiteName, ...], Field(min_length=1, max_length=MAX_SITES)]

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        if (unfit := self.training.misfit(self.privacy.mode)) is not None:
            raise ValueError(unfit)
        if (unlearnable := label_misfit(self.model, self.dataset.label)) is not None:
            raise ValueError(unlearnable)
        if (reason := model_misfit(self.model, self.dataset.shape)) is not None:
            raise ValueError(reason)
        if len(set(self.recipients)) != len(self.recipients):
            raise ValueError("recipients names a site twice")
        return self

    @property
    def attempts(self) -> int:
        """Attempts to train that the noise is calibrated for: rounds + retries (T + A)."""
        return self.training.rounds + self.privacy.retries

    @property
    def steps(self) -> int:
        """Private steps that the noise is calibrated for: those of T + A attempts, local ones each by itself."""
        return self.attempts * self.training.local_steps


class StudyPlan(Plan):
    """What sites consent to: the spec, who takes part under which key, and the calibrated noise.

    noise_multiplier: sigma at sampling_rate over spec.steps for (epsilon, delta); evaluation_multiplier: sigma of
    the score histogram over evaluation.attempts (0 in exact mode). epsilon_worst_site, epsilon_evaluation_worst_site:
    of a site's training and held-out patients if all others collude; the latter is None in exact mode. membership: the
    audit before the release; None where there is none.
    """

    spec: StudySpec
    evaluation_multiplier: Annotated[float, Field(ge=0)]
    epsilon_evaluation_worst_site: Annotated[float, Field(gt=0)] | None
    membership: PlannedMembership | None = None

    @model_validator(mode="after")
    def _worst_case_of_its_mode(self) -> StudyPlan:
        if (self.epsilon_evaluation_worst_site is None) != (self.spec.evaluation.mode == "exact"):
            raise ValueError("epsilon_evaluation_worst_site is stated for a noised evaluation, and for no other")
        return self

    @property
    def parameters(self) -> int:
        """Length of the model's flat vector."""
        return parameter_count(self.spec.model, self.spec.dataset.shape)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every round of the study in the order in which they run."""
        audited = () if self.membership is None else (Stage("membership", 1, 1, held_out=True),)
        return Stage("train", 1, self.spec.training.rounds), Stage("evaluate", 1, 1, held_out=True), *audited

    @property
    def attempts(self) -> Mapping[Phase, int]:
        """The most attempts of each phase, over all its rounds, that the noise is calibrated for. The declared
        exception, an exact evaluation, happens once."""
        evaluation = self.spec.evaluation
        most: dict[Phase, int] = {
            "train": self.spec.attempts,
            "evaluate": 1 if evaluation.mode == "exact" else evaluation.attempts,
        }
        return most if self.membership is None else {**most, "membership": self.spec.audit.membership.attempts}

    def steps_of(self, phase: Phase) -> int:
        """How many noisy steps one attempt of the phase is, and is charged as."""
        return self.spec.training.local_steps if phase == "train" else 1

    def body_length(self, phase: Phase) -> int:
        """How many floats a request of the phase brings to the sites: the model's parameters."""
        return self.parameters

    def scored(self, cohort: Iterable[str]) -> tuple[int, int]:
        """(members, non-members) that the membership audit counts over the cohort."""
        sites = [self.site(name) for name in cohort]
        members = sum(min(site.patients - site.held_out, MOST_SCORED) for site in sites)
        return members, sum(min(site.held_out, MOST_SCORED) for site in sites)

    def patients_share(self, names: Iterable[str]) -> float:
        """The training patients of these sites over those of all planned sites, by the plan's public counts: how much
        the model's change at a site weighs in local mode."""
        trained = {site.name: site.patients - site.held_out for site in self.sites}
        return sum(trained[name] for name in names) / sum(trained.values())

    def secure_sum(self, phase: Phase, cohort: Iterable[str]) -> SecureSum:
        """The secure sum of one attempt with `cohort`. train: the sum of clipped gradients, or in local mode of the
        changes of the model, each times its site's `patients_share`. evaluate: one count per
        held-out patient, in cells as `protocol.evaluation` lays them out. membership: one count per patient that is
        scored, in `bins` cells for non-members, then as many for members. KeyError for a site outside the plan."""
        sites = [self.site(name) for name in cohort]
        tolerated = self.spec.privacy.colluders + self.spec.privacy.dropouts
        if phase == "train" and self.spec.privacy.mode == "local":
            assert self.spec.training.largest_delta is not None
            return SecureSum(
                clip=self.spec.training.largest_delta,
                sites=len(sites),
                tolerated=tolerated,
                largest_batch=1,  # the sites' shares of the patients add up to 1 at most
                noise_multiplier=None,
                length=self.parameters,
                own_noise_std=self.noise_multiplier * self.spec.training.clip,
            )
        if phase == "train":
            return SecureSum(
                clip=self.spec.training.clip,
                sites=len(sites),
                tolerated=tolerated,
                largest_batch=sum(site.patients for site in sites),
                noise_multiplier=self.noise_multiplier,
                length=self.parameters,
            )
        if phase == "membership":
            if self.membership is None:
                raise KeyError(phase)
            return SecureSum(
                clip=1.0,
                sites=len(sites),
                tolerated=tolerated,
                largest_batch=sum(site.patients for site in sites),
                noise_multiplier=self.membership.noise_multiplier,
                length=2 * self.spec.audit.membership.bins,
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
