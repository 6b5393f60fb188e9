"""A study that trains a model: what a researcher proposes (StudySpec) and what the coordinator makes of it for the
sites to consent to (StudyPlan). Both are closed documents; their digest is SHA-256 over RFC 8785.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from protocol.checks import PlannedChecks
from protocol.evaluation import Kind, cells, kind_of
from protocol.identifiers import Frozen, SiteName
from protocol.membership import MOST_SCORED, Audit, PlannedMembership
from protocol.model import ModelSpec, label_misfit, model_misfit, parameter_count
from protocol.plan import Plan, SecureSum, Stage
from protocol.proposal import MAX_SITES, MINIMUM_CELL, Proposal
from protocol.review import ReviewPolicy
from protocol.round import Phase
from protocol.subgroups import MOST_COLUMNS, Subgroup, histograms, sensitivity, subgroup_misfit
from protocol.training import Training
from protocol.tuning import Tuning

MOST_ROUNDS = 100_000
"""Secure aggregation numbers no more."""


class Evaluation(Frozen):
    """noised: one score histogram with its own epsilon, charged to the held-out patients (delta as in `privacy`).
    subgroups: columns by which it is told apart as well, at the same epsilon and with more noise on every count.

    exact: the declared exception of the design: no noise, once per candidate, shown on the release as outside
    the guarantee.
    """

    mode: Literal["noised", "exact"] = "noised"
    epsilon: Annotated[float, Field(gt=0, le=100)] = 1.0
    bins: Annotated[int, Field(ge=4, le=200)] = 10
    attempts: Annotated[int, Field(ge=1, le=20)] = 2
    subgroups: Annotated[tuple[Subgroup, ...], Field(max_length=MOST_COLUMNS)] = ()


class StudySpec(Proposal):
    """What a researcher signs to train a model and have it released."""

    kind: Literal["training"] = "training"
    model: ModelSpec
    training: Training
    tuning: Tuning | None = None
    evaluation: Evaluation = Evaluation()
    audit: Audit = Audit()
    recipients: Annotated[tuple[SiteName, ...], Field(min_length=1, max_length=MAX_SITES)]
    review: ReviewPolicy = ReviewPolicy()

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        for number, training in enumerate(self.trainings):
            if (unfit := training.misfit(self.privacy.mode)) is not None:
                raise ValueError(unfit if number == 0 else f"entry {number} of tuning.grid: {unfit}")
        if self.tuning is not None and self.evaluation.mode == "exact":
            raise ValueError("an exact evaluation happens once: a study with tuning needs a noised one")
        if self.runs * (self.training.rounds + 1) >= MOST_ROUNDS:
            raise ValueError(f"tuning makes over {MOST_ROUNDS} rounds of this study: lower training.rounds or runs")
        if (unlearnable := label_misfit(self.model, self.dataset.label)) is not None:
            raise ValueError(unlearnable)
        if (reason := model_misfit(self.model, self.dataset.shape)) is not None:
            raise ValueError(reason)
        if self.training.checks is not None and self.training.check_count == 0:
            raise ValueError("training.checks.every leaves no check before the last round: choose a smaller number")
        if self.training.checks is not None and self.tuning is not None:
            raise ValueError("a study with tuning scores its runs instead of checking between rounds: leave one out")
        if self.evaluation.subgroups and self.evaluation.mode == "exact":
            raise ValueError("an exact evaluation would show small subgroups: evaluation.subgroups needs a noised one")
        if (untold := subgroup_misfit(self.evaluation.subgroups, self.dataset)) is not None:
            raise ValueError(untold)
        if len(set(self.recipients)) != len(self.recipients):
            raise ValueError("recipients names a site twice")
        return self

    @property
    def trainings(self) -> tuple[Training, ...]:
        """`training` itself, then as each entry of the grid has it."""
        grid = () if self.tuning is None else self.tuning.grid
        return (self.training, *(entry.applied(self.training) for entry in grid))

    @property
    def runs(self) -> int:
        """How often the model is trained: once, or as often as the tuning says."""
        return 1 if self.tuning is None else self.tuning.count

    @property
    def rounds(self) -> int:
        """Rounds of the whole study, evaluations among them, when nothing is tried twice."""
        return self.runs * (self.training.rounds + 1) + (0 if self.tuning is None else 1)

    @property
    def attempts(self) -> int:
        """Attempts to train that the noise is calibrated for: the rounds of all runs + retries (T + A)."""
        return self.runs * self.training.rounds + self.privacy.retries

    @property
    def evaluations(self) -> int:
        """Attempts to evaluate that the noise is calibrated for: one score a run, and the planned attempts at the
        evaluation of what is released. The declared exception, an exact evaluation, happens once."""
        if self.evaluation.mode == "exact":
            return 1
        return self.evaluation.attempts + (0 if self.tuning is None else self.runs)

    @property
    def steps(self) -> int:
        """Private steps that the noise is calibrated for: those of T + A attempts, local ones each by itself."""
        return self.attempts * self.training.local_steps


class StudyPlan(Plan):
    """What sites consent to: the spec, who takes part under which key, and the calibrated noise.

    noise_multiplier: sigma at sampling_rate over spec.steps for (epsilon, delta); evaluation_multiplier: sigma of
    the score histograms over spec.evaluations (0 in exact mode). epsilon_worst_site, epsilon_evaluation_worst_site:
    of a site's training and held-out patients if all others collude; the latter is None in exact mode. membership: the
    audit before the release, checks: those of the model between rounds; None where there are none.
    """

    spec: StudySpec
    evaluation_multiplier: Annotated[float, Field(ge=0)]
    epsilon_evaluation_worst_site: Annotated[float, Field(gt=0)] | None
    membership: PlannedMembership | None = None
    checks: PlannedChecks | None = None

    @model_validator(mode="after")
    def _worst_case_of_its_mode(self) -> StudyPlan:
        if (self.epsilon_evaluation_worst_site is None) != (self.spec.evaluation.mode == "exact"):
            raise ValueError("epsilon_evaluation_worst_site is stated for a noised evaluation, and for no other")
        if (self.checks is None) != (self.spec.training.check_count == 0):
            raise ValueError("the plan states what checks cost where the study has checks, and nowhere else")
        return self

    @property
    def kind(self) -> Kind:
        """What the outcome is measured by."""
        return kind_of(self.spec.dataset)

    @property
    def parameters(self) -> int:
        """Length of the model's flat vector."""
        return parameter_count(self.spec.model, self.spec.dataset.shape)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every round of the study in the order in which they run: each run's, its score, and at last the evaluation
        of the model that is released, which for a study without tuning is the only run's score."""
        rounds, stages = self.spec.training.rounds, list[Stage]()
        for run in range(self.spec.runs):
            stages += [*self._run_stages(run * rounds), Stage("evaluate", run + 1, 1, held_out=True)]
        if self.spec.tuning is not None:
            stages.append(Stage("evaluate", self.spec.runs + 1, 1, held_out=True))
        if self.membership is not None:
            stages.append(Stage("membership", 1, 1, held_out=True))
        return tuple(stages)

    def _run_stages(self, before: int) -> tuple[Stage, ...]:
        """The rounds of one run, after `before` of earlier ones, with the checks between them."""
        training, stages, done = self.spec.training, list[Stage](), before
        for number in range(1, training.check_count + 1):
            assert training.checks is not None
            stages.append(Stage("train", done + 1, training.checks.every))
            stages.append(Stage("check", number, 1, held_out=True))
            done += training.checks.every
        return *stages, Stage("train", done + 1, before + training.rounds - done)

    @property
    def attempts(self) -> Mapping[Phase, int]:
        """The most attempts of each phase, over all its rounds, that the noise is calibrated for."""
        most: dict[Phase, int] = {"train": self.spec.attempts, "evaluate": self.spec.evaluations}
        if self.spec.training.checks is not None and self.checks is not None:
            most["check"] = self.spec.training.check_count + self.spec.training.checks.retries
        if self.membership is not None:
            most["membership"] = self.spec.audit.membership.attempts
        return most

    def run_of(self, phase: Phase, round_number: int) -> int:
        """The run that a round belongs to, from 1. What asks about the chosen model (the last evaluation of a study
        with tuning, and the membership audit) belongs to none and is counted as one more."""
        if phase == "train":
            return (round_number - 1) // self.spec.training.rounds + 1
        return round_number if phase == "evaluate" else self.spec.runs + 1

    def allows(self, phase: Phase, round_number: int, entry: int) -> bool:
        """Whether the round may use that entry of the grid; 0: none. Whatever entry it is costs the same."""
        tuning, run = self.spec.tuning, self.run_of(phase, round_number)
        if tuning is None:
            return entry == 0
        if tuning.order == "declared" and run <= tuning.count:
            return entry == run
        return 1 <= entry <= len(tuning.grid)

    def of_entry(self, entry: int) -> Self:
        """The plan with the training of that entry of the grid, 0 being the study's own. IndexError for no entry."""
        if entry == 0:
            return self
        training = self.spec.trainings[entry]
        return self.model_copy(update={"spec": self.spec.model_copy(update={"training": training})})

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
        changes of the model, each times its site's `patients_share`. evaluate and check: one count per
        held-out patient, in cells as `protocol.evaluation` lays them out; evaluate: one more in each declared column's,
        the histograms of its subgroups following that of all. membership: one count per patient that is
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
        exact, multiplier = self.spec.evaluation.mode == "exact", self.evaluation_multiplier
        subgroups = self.spec.evaluation.subgroups if phase == "evaluate" else ()
        if phase == "check":
            if self.checks is None:
                raise KeyError(phase)
            exact, multiplier = False, self.checks.noise_multiplier
        return SecureSum(
            clip=sensitivity(subgroups),
            sites=len(sites),
            tolerated=tolerated,
            largest_batch=sum(max(site.held_out, MINIMUM_CELL) for site in sites),  # 0 stands for 10 or fewer
            noise_multiplier=None if exact else multiplier,
            length=cells(self.kind, self.spec.evaluation.bins) * histograms(subgroups, self.spec.dataset),
        )
