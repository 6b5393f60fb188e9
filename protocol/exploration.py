"""An exploration: what a researcher may ask before proposing to train anything. Statistics of the cohort and, if asked
for, its k-means clusters: sums over the patients who would train, each noised once, under one (epsilon, delta). Nothing
is trained and nothing is released. ExplorationSpec and ExplorationPlan are closed documents, as a study's are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from protocol.errors import Malformed
from protocol.identifiers import ColumnName, Digest, Frozen, StudyId, Timestamp
from protocol.plan import Plan, SecureSum, Stage
from protocol.proposal import Proposal
from protocol.round import Phase
from protocol.statistics import MAX_QUERIES, Resolved, Statistic, resolve

MAX_CLUSTERS = 20
MAX_CLUSTER_COLUMNS = 64
MAX_CLUSTER_ROUNDS = 50
COUNTS = frozenset({"count", "histogram"})
"""Kinds of statistic that say how many patients there are, and no more."""


class Clustering(Frozen):
    """k-means (Lloyd 1982) of number columns, each scaled to its range: `rounds` steps from centres that no patient
    chose."""

    clusters: Annotated[int, Field(ge=2, le=MAX_CLUSTERS)]
    rounds: Annotated[int, Field(ge=1, le=MAX_CLUSTER_ROUNDS)]
    columns: Annotated[tuple[ColumnName, ...], Field(min_length=1, max_length=MAX_CLUSTER_COLUMNS)]


class ExplorationSpec(Proposal):
    """What a researcher signs to look before proposing a study. privacy: of everything asked here together; `retries`
    may be used in each phase, the statistics and the clustering."""

    kind: Literal["exploration"] = "exploration"
    statistics: Annotated[tuple[Statistic, ...], Field(min_length=1, max_length=MAX_QUERIES)]
    clustering: Clustering | None = None

    @model_validator(mode="after")
    def _can_be_asked(self) -> ExplorationSpec:
        if len(set(self.statistics)) != len(self.statistics):
            raise ValueError("a statistic is asked twice: each costs all the others some accuracy")
        columns = () if self.clustering is None else self.clustering.columns
        if len(set(columns)) != len(columns):
            raise ValueError("clustering names a column twice")
        try:
            self.resolved()
            self.cluster_axes()
        except Malformed as error:
            raise ValueError(f"{error.message} {error.remedy}") from None
        return self

    def resolved(self) -> tuple[Resolved, ...]:
        """The statistics in terms of the encoded inputs. Raises Malformed."""
        return tuple(resolve(self.dataset, statistic) for statistic in self.statistics)

    def cluster_axes(self) -> tuple[Resolved, ...]:
        """The clustered columns, as means of them; empty without clustering. Raises Malformed."""
        columns = () if self.clustering is None else self.clustering.columns
        return tuple(resolve(self.dataset, Statistic(kind="mean", column=column)) for column in columns)

    @property
    def counts_only(self) -> bool:
        """Whether nothing but numbers of patients is asked for."""
        return self.clustering is None and all(statistic.kind in COUNTS for statistic in self.statistics)

    @property
    def attempts_by_phase(self) -> Mapping[Phase, int]:
        """The most attempts of each phase, retries included."""
        retries = self.privacy.retries
        if self.clustering is None:
            return {"statistics": 1 + retries}
        return {"statistics": 1 + retries, "cluster": self.clustering.rounds + retries}

    @property
    def steps(self) -> int:
        """Noised sums over the same patients that the noise is calibrated for: all attempts of all phases."""
        return sum(self.attempts_by_phase.values())


class ExplorationPlan(Plan):
    """What sites consent to: the spec, who takes part under which key, and the noise.

    noise_multiplier: sigma over the L2 bound of each sum, the same for all spec.steps of them. Every patient who would
    train is in every sum; held-out patients are in none.
    """

    spec: ExplorationSpec

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The statistics, then the steps of the clustering."""
        clustering = self.spec.clustering
        first = Stage("statistics", 1, 1)
        return (first,) if clustering is None else (first, Stage("cluster", 1, clustering.rounds))

    @property
    def attempts(self) -> Mapping[Phase, int]:
        """The most attempts of each phase."""
        return self.spec.attempts_by_phase

    def body_length(self, phase: Phase) -> int:
        """A request for statistics brings nothing; one for clusters brings the centres, column by column."""
        if phase == "statistics" or self.spec.clustering is None:
            return 0
        return self.spec.clustering.clusters * len(self.spec.clustering.columns)

    def secure_sum(self, phase: Phase, cohort: Iterable[str]) -> SecureSum:
        """statistics: the vectors of all statistics, one after the other, each of L2 norm at most 1 for a patient.
        cluster: for each centre a weighted count and sum of the patients nearest to it, of L2 norm at most 1."""
        sites = [self.site(name) for name in cohort]
        clip, length = 1.0, 0
        if phase == "statistics":
            clip = math.sqrt(len(self.spec.statistics))
            length = sum(resolved.length for resolved in self.spec.resolved())
        elif phase == "cluster" and self.spec.clustering is not None:
            length = self.spec.clustering.clusters * (1 + len(self.spec.clustering.columns))
        else:
            raise KeyError(phase)
        return SecureSum(
            clip=clip,
            sites=len(sites),
            tolerated=self.spec.privacy.colluders + self.spec.privacy.dropouts,
            largest_batch=sum(site.patients for site in sites),
            noise_multiplier=self.noise_multiplier,
            length=length,
        )

    def patients(self, cohort: Iterable[str]) -> int:
        """How many patients the sums over these sites are of, by the plan's public counts."""
        return sum(site.patients - site.held_out for site in (self.site(name) for name in cohort))


class Estimated(Frozen):
    """A noised number and the interval that covers its noise with 95 %."""

    value: float
    low: float
    high: float


class StatisticResult(Frozen):
    """One statistic's answer. names: of the figures, in order: the level or the ends of the bin, or the probability."""

    statistic: Statistic
    unit: str
    names: tuple[str, ...]
    figures: tuple[Estimated, ...]


class ClusterResult(Frozen):
    """One cluster: how many patients were nearest to its centre in the last step, and their means by column; None
    where the noise leaves open whether there are any."""

    patients: Estimated
    center: dict[ColumnName, Estimated] | None


class ExplorationResult(Frozen):
    """What the researcher reads, and whose digest the log holds.

    patients: whom the sums are of (training patients only). noise_std: of a count among the statistics.
    """

    study: StudyId
    plan_digest: Digest
    epsilon: float
    delta: float
    patients: int
    patients_clustered: int | None
    noise_std: float
    statistics: tuple[StatisticResult, ...]
    clusters: tuple[ClusterResult, ...]
    completed_at: Timestamp
