"""What an exploration would cost its patients and how sharp its answers would be, before anybody is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.client.forecast import SECONDS_A_ROUND, SECONDS_FOR_KEYS, check_delta, check_worst_case, unjustified
from coordinator.client.spec_file import Problem, SpecFile
from coordinator.studies.exploration_plan import ExplorationNoise, calibrate_exploration
from coordinator.terminal import table
from privacy.errors import PrivacyError
from privacy.parameters import site_noise_multiplier
from privacy.statistics.answers import Z
from privacy.statistics.clusters import Weights
from protocol.exploration import ExplorationSpec
from protocol.proposal import held_out_count
from protocol.statistics import Resolved


@dataclass(frozen=True)
class ExplorationForecast:
    """Epsilon of everything that is asked, and the intervals to expect. patients: None where nobody told."""

    spec: ExplorationSpec
    noise: ExplorationNoise
    patients: Mapping[str, int | None]

    @property
    def count_reach(self) -> float:
        """Half the 95 % interval of a number of patients among the statistics, with every invited site present."""
        return Z * self._std * math.sqrt(len(self.spec.statistics))

    @property
    def cluster_reach(self) -> float | None:
        """The same of a cluster's number of patients; None without clustering."""
        if self.spec.clustering is None:
            return None
        return Z * self._std / Weights.of(len(self.spec.clustering.columns)).count

    @property
    def _std(self) -> float:
        """Of a coordinate of a sum over all invited sites whose L2 bound is 1."""
        sites, privacy = len(self.spec.invited), self.spec.privacy
        alone = site_noise_multiplier(self.noise.noise_multiplier, sites, privacy.colluders + privacy.dropouts)
        return alone * math.sqrt(sites)

    @property
    def trained(self) -> int | None:
        """Patients that the sums are of; None where not all sites' counts are known."""
        counts = [count for name in self.spec.invited if (count := self.patients.get(name)) is not None]
        return sum(n - held_out_count(n) for n in counts) if len(counts) == len(self.spec.invited) else None

    def reaches(self) -> Sequence[tuple[str, str, str]]:
        """(statistic, column, half its 95 % interval) in the order asked; "" where the patients are not known."""
        found = []
        for statistic, resolved in zip(self.spec.statistics, self.spec.resolved(), strict=True):
            found.append((statistic.kind, statistic.column, self._reach(resolved)))
        return found

    def _reach(self, resolved: Resolved) -> str:
        if resolved.kind in ("count", "histogram"):
            return f"{self.count_reach:.1f} patients"
        if resolved.kind == "mean" and self.trained:
            return f"{self.count_reach * (resolved.high - resolved.low) / 2 / self.trained:.3g}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        spec = self.spec
        return {
            "noise_multiplier": self.noise.noise_multiplier,
            "epsilon": {
                "target": spec.privacy.epsilon,
                "global": self.noise.epsilon,
                "worst_site": self.noise.epsilon_worst_site,
            },
            "delta": spec.privacy.delta,
            "sums": spec.steps,
            "retries": spec.privacy.retries,
            "count_half_interval": self.count_reach,
            "cluster_count_half_interval": self.cluster_reach,
            "statistics": [
                {"kind": kind, "column": column, "half_interval": reach} for kind, column, reach in self.reaches()
            ],
            "sites": [
                {
                    "name": name,
                    "epsilon_worst_case": self.noise.epsilon_worst_site,
                    "patients": self.patients.get(name),
                }
                for name in spec.invited
            ],
            "expected_seconds": self.seconds,
        }

    @property
    def seconds(self) -> float:
        """A guess at the time from start to results."""
        rounds = 1 + (0 if self.spec.clustering is None else self.spec.clustering.rounds)
        return SECONDS_FOR_KEYS + SECONDS_A_ROUND * rounds

    def text(self) -> str:
        """For a person."""
        spec, privacy = self.spec, self.spec.privacy
        lines = [
            f"{spec.study}: an exploration of {len(spec.statistics)} statistics"
            + ("" if spec.clustering is None else f" and {spec.clustering.clusters} clusters")
            + f", {spec.steps} sums at most, {len(spec.invited)} sites; nothing is trained or released",
            f"noise multiplier {self.noise.noise_multiplier:.4f}; a number of patients comes with an interval of "
            f"+-{self.count_reach:.1f}",
            f"epsilon {self.noise.epsilon:.4f} of {privacy.epsilon:g} at delta {privacy.delta:g} per training patient: "
            "everything asked, all retries included; held-out patients are not asked",
            f"a site's worst case, if all others collude: epsilon {self.noise.epsilon_worst_site:.4f}",
            "",
            table(("statistic", "column", "half of its 95 % interval"), self.reaches()),
        ]
        if self.cluster_reach is not None:
            lines += ["", f"clusters: a number of patients comes with +-{self.cluster_reach:.1f}"]
        return "\n".join([*lines, f"expected time: about {self.seconds:.0f} s, when every site is quick to answer"])


def make_exploration_forecast(
    file: SpecFile, spec: ExplorationSpec, patients: Mapping[str, int] | None
) -> tuple[ExplorationForecast | None, tuple[Problem, ...], tuple[str, ...]]:
    """(forecast, problems, notes), as `forecast.make_forecast` has them for a study that trains."""
    notes: list[str] = unjustified(spec)
    try:
        noise = calibrate_exploration(spec, len(spec.invited))
    except PrivacyError as error:
        return None, (file.problem("privacy.epsilon", error.message, error.remedy),), ()
    problems = [*check_worst_case(file, noise.epsilon_worst_site), *check_delta(file, patients, notes)]
    made = ExplorationForecast(spec, noise, {name: (patients or {}).get(name) for name in spec.invited})
    trained = made.trained
    if trained is not None and made.count_reach > trained / 4:
        notes.append(
            f"with {trained} patients an interval of +-{made.count_reach:.0f} says little: ask fewer statistics, allow "
            "fewer retries or rounds, or a larger epsilon"
        )
    return made, tuple(problems), tuple(notes)
