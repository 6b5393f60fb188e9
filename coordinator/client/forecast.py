"""What a study would cost its patients, before anybody is asked: computed here, without the coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from coordinator.client.spec_file import Problem, SpecFile
from coordinator.studies.plan import Calibration, calibrate, forecast, mechanism, site_multiplier, tuning_account
from coordinator.terminal import table
from privacy.accounting.epsilon import FORECAST_INTERVAL, epsilon
from privacy.accounting.tuning import TuningCost
from privacy.errors import PrivacyError
from privacy.evaluation.histogram import check_bins
from protocol.proposal import MINIMUM_TRAINS_ALONE, Proposal
from protocol.study import StudySpec
from protocol.subgroups import MINIMUM_SUBGROUP, group_names, sensitivity

SECONDS_A_ROUND = 0.8
SECONDS_FOR_KEYS = 5.0
"""What a round and the key set-up take with four sites on one machine; real lines and sites are slower."""
SHOWN_ROUNDS = 8


@dataclass(frozen=True)
class Forecast:
    """Epsilon by step, in total, and for each site if all others collude. patients: None where nobody told.
    tuning: what all runs of a tuned study cost together."""

    spec: StudySpec
    calibration: Calibration
    curve: tuple[tuple[int, float], ...]
    worst: Mapping[str, float]
    patients: Mapping[str, int | None]
    tuning: TuningCost | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        spec, calibration = self.spec, self.calibration
        return {
            "noise_multiplier": calibration.noise_multiplier,
            "evaluation_multiplier": calibration.evaluation_multiplier,
            "epsilon": {
                "target": spec.privacy.epsilon,
                "global": calibration.epsilon,
                "worst_site": calibration.epsilon_worst_site,
                "evaluation": spec.evaluation.epsilon if spec.evaluation.mode == "noised" else None,
                "evaluation_worst_site": calibration.epsilon_evaluation_worst_site,
                "per_round": [{"steps": steps, "epsilon": value} for steps, value in self.curve],
            },
            "subgroups": {
                "groups": list(groups_of(spec)),
                "noise_factor": sensitivity(spec.evaluation.subgroups),
                "least_patients": MINIMUM_SUBGROUP,
            },
            "delta": spec.privacy.delta,
            "mode": spec.privacy.mode,
            "steps": spec.steps,
            "tuning": None if self.tuning is None else asdict(self.tuning),
            "rounds": spec.training.rounds,
            "retries": spec.privacy.retries,
            "sites": [
                {"name": name, "epsilon_worst_case": self.worst[name], "patients": self.patients.get(name)}
                for name in spec.invited
            ],
            "expected_seconds": self.seconds,
        }

    @property
    def executed_steps(self) -> int:
        """Noisy steps when nothing is tried twice."""
        return self.spec.steps - self.spec.privacy.retries * self.spec.training.local_steps

    @property
    def seconds(self) -> float:
        """A guess at the time from start to candidate."""
        return SECONDS_FOR_KEYS + SECONDS_A_ROUND * self.spec.rounds

    def text(self) -> str:
        """For a person."""
        spec, calibration = self.spec, self.calibration
        tolerated = spec.privacy.colluders + spec.privacy.dropouts
        sites = len(spec.invited)
        alone = site_multiplier(spec, calibration.noise_multiplier, sites)
        rounds = [(steps, f"{value:.3f}") for steps, value in selected(self.curve, self.executed_steps)]
        people = [(name, self.patients.get(name), f"{self.worst[name]:.3f}") for name in spec.invited]
        worst = calibration.epsilon_evaluation_worst_site
        evaluation = (
            "exact: outside the privacy guarantee, declared to every site and shown on the release"
            if worst is None
            else f"epsilon {spec.evaluation.epsilon:g} for held-out patients, {worst:.3f} if all others collude; "
            f"{attempts_text(spec)}"
        )
        return "\n".join(
            [
                f"{spec.study}: {rounds_text(spec)}, {sites} sites",
                f"noise multiplier {calibration.noise_multiplier:.4f}; "
                + (
                    f"each site adds all of it to each of its {spec.training.local_steps} steps a round: nothing "
                    "rests on the other sites"
                    if spec.privacy.mode == "local"
                    else f"each site adds {alone:.4f} times the clip: with all {sites} present the noise has "
                    f"{sites / (sites - tolerated):.2f} times the variance charged"
                ),
                f"epsilon {calibration.epsilon:.4f} of {spec.privacy.epsilon:g} at delta {spec.privacy.delta:g}, per "
                "patient, all retries included",
                *self._tuning_lines(),
                "",
                table(("steps", "epsilon so far"), rows=rounds),
                "",
                table(("site", "patients", "worst case if all others collude"), rows=people),
                "",
                f"evaluation: {evaluation}",
                *subgroup_lines(spec),
                f"expected time: about {self.seconds:.0f} s, when every site is quick to answer",
            ]
        )

    def _tuning_lines(self) -> list[str]:
        cost, tuning = self.tuning, self.spec.tuning
        if cost is None or tuning is None:
            return []
        order = "in the order listed" if tuning.order == "declared" else "each next one picked by earlier scores"
        return [
            f"tuning: {cost.runs} runs of a grid of {len(tuning.grid)}, {order}, {cost.steps} steps, all charged; "
            f"one run alone would cost epsilon {cost.dearest_run:.3f} at this noise",
            "the best run is chosen by noised scores on the same held-out patients that its evaluation asks: what is "
            "reported of it leans upwards, the more so the more runs there are",
        ]


def groups_of(spec: StudySpec) -> tuple[str, ...]:
    """Every declared subgroup in words."""
    return tuple(name for one in spec.evaluation.subgroups for name in group_names(one, spec.dataset))


def subgroup_lines(spec: StudySpec) -> list[str]:
    """What telling subgroups apart costs, for a person; nothing where none is declared."""
    declared = spec.evaluation.subgroups
    if not declared:
        return []
    return [
        f"subgroups: {', '.join(groups_of(spec))}; no epsilon of their own: every count of the evaluation, that of all "
        f"patients too, carries {sensitivity(declared):.2f} times the noise; nothing is told of one with fewer than "
        f"{MINIMUM_SUBGROUP} held-out patients"
    ]


def rounds_text(spec: StudySpec) -> str:
    """How many rounds a study has, of each run where it has several, and how many retries."""
    runs = "" if spec.tuning is None else f" in each of {spec.runs} runs"
    return f"{spec.training.rounds} rounds{runs} and up to {spec.privacy.retries} retries"


def attempts_text(spec: StudySpec) -> str:
    """How often the held-out patients are asked at most."""
    if spec.tuning is None:
        return f"at most {spec.evaluations} attempts"
    return f"at most {spec.evaluations} attempts, each run's score among them"


def selected(curve: tuple[tuple[int, float], ...], rounds: int) -> list[tuple[int, float]]:
    """A few points of a curve, the planned rounds and the last among them."""
    wanted = {1, rounds, curve[-1][0]} | {
        round(rounds * part / (SHOWN_ROUNDS - 2)) for part in range(1, SHOWN_ROUNDS - 2)
    }
    return [point for point in curve if point[0] in wanted or point is curve[-1]]


def make_forecast(
    file: SpecFile, spec: StudySpec, patients: Mapping[str, int] | None
) -> tuple[Forecast | None, tuple[Problem, ...], tuple[str, ...]]:
    """(forecast, problems, notes). patients: training and held-out patients by site where known, None where not.

    Problems of the numbers together: noise that no value reaches, a worst case above the spec's own limit, a delta
    too large for the patients there are.
    """
    notes: list[str] = []
    try:
        check_bins(spec.evaluation.bins)
    except PrivacyError as error:
        return None, (file.problem("evaluation.bins", error.message, error.remedy),), ()
    try:
        calibration = calibrate(spec, len(spec.invited))
    except PrivacyError as error:
        return None, (file.problem("privacy.epsilon", error.message, error.remedy),), ()
    notes += unjustified(spec)
    problems = [*check_worst_case(file, calibration.epsilon_worst_site), *check_delta(file, patients, notes)]
    alone = site_multiplier(spec, calibration.noise_multiplier, len(spec.invited))
    worst = epsilon(mechanism(spec, alone), FORECAST_INTERVAL)
    made = Forecast(
        spec=spec,
        calibration=calibration,
        curve=forecast(spec, calibration.noise_multiplier),
        worst=dict.fromkeys(spec.invited, max(worst, calibration.epsilon_worst_site)),
        patients={name: (patients or {}).get(name) for name in spec.invited},
        tuning=tuning_account(spec, calibration),
    )
    return made, tuple(problems), tuple(notes)


def unjustified(spec: Proposal) -> list[str]:
    """A note where sites would refuse: their packs ask for every column's justification under EU and US law."""
    columns = [*spec.dataset.columns, *spec.dataset.label.columns]
    missing = [name for name in columns if name not in spec.justified_columns]
    bound = {basis.jurisdiction for basis in spec.legal_basis.values()} & {"EU", "US"}
    if not missing or not bound:
        return []
    return [
        f"justified_columns lacks {', '.join(missing)}: sites under {' and '.join(sorted(bound))} law grant no study "
        "that reads a column which it does not justify"
    ]


def check_worst_case(file: SpecFile, epsilon_worst_site: float) -> list[Problem]:
    """Where it is above the spec's own limit."""
    limit = file.spec.privacy.epsilon_worst_site
    if limit is None or epsilon_worst_site <= limit:
        return []
    return [
        file.problem(
            "privacy.epsilon_worst_site",
            f"a site's worst case is {epsilon_worst_site:.3f}, above {limit:g}",
            "Lower privacy.epsilon, tolerate fewer drop-outs, or raise this limit.",
        )
    ]


def check_delta(file: SpecFile, patients: Mapping[str, int] | None, notes: list[str]) -> list[Problem]:
    """Where it is not below one in all patients; `notes` takes what could not be checked."""
    spec, delta = file.spec, file.spec.privacy.delta
    known = [name for name in spec.invited if patients is not None and name in patients]
    if patients is not None and not known:
        notes.append(
            "delta is not checked against the number of patients: no site has registered a dataset of this schema yet "
            f"(it must be below {1 / delta:.0f} patients in all for delta {delta:g})"
        )
        return []
    if patients is None:
        notes.append(
            "delta is not checked against the number of patients: the coordinator was not asked "
            f"(it must be below {1 / delta:.0f} patients in all for delta {delta:g})"
        )
        return []
    unknown = [name for name in spec.invited if name not in patients]
    if unknown:
        notes.append(f"no dataset of this schema is registered yet by {', '.join(unknown)}")
    for name in known:
        if patients[name] < MINIMUM_TRAINS_ALONE:
            alone = (
                "its own noise outweighs them"
                if spec.privacy.mode == "local"
                else "it joins the sum and never trains alone"
            )
            notes.append(f"{name} has under {MINIMUM_TRAINS_ALONE} patients: {alone}")
    total = sum(patients[name] for name in known)
    if delta < 1 / total:
        return []
    return [
        file.problem(
            "privacy.delta",
            f"{delta:g} is not below 1 in {total} patients: it would allow one patient's whole record to be given away",
            f"Set it to at most {0.1 / total:.1g}.",
        )
    ]
