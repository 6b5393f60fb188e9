"""What the round driver does next, given only what its records say. Pure.

An attempt is one message to one cohort. It is recorded before it is sent; it is committed when every site of its
cohort contributed, and abandoned otherwise: without all of them the masked sum is noise. An abandoned attempt is
followed by one on the smaller cohort; at most `retries` attempts of the training may be abandoned, because the
noise is calibrated for rounds + retries steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from protocol.round import Phase
from protocol.study import StudyPlan

TRAIN: Phase = "train"
EVALUATE: Phase = "evaluate"
PASSED_OVER = frozenset({"refused:expired"})
"""Codes that say nothing about the site: it is invited to the next attempt although it did not contribute."""


class AttemptStatus(StrEnum):
    """open: recorded, perhaps sent. The other two are final."""

    OPEN = "open"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


class FailureCode(StrEnum):
    """Why a study failed while its rounds ran."""

    TOO_FEW_SITES = "too-few-sites"
    RETRIES_EXHAUSTED = "retries-exhausted"
    EVALUATION_EXHAUSTED = "evaluation-attempts-exhausted"
    KEYS_NOT_ESTABLISHED = "keys-not-established"
    POLICY_DENIED = "policy-denied"
    SUM_REFUSED = "sum-refused"


@dataclass(frozen=True)
class Design:
    """What the plan fixes about the rounds. evaluators: the sites that hold enough patients out."""

    rounds: int
    retries: int
    evaluation_attempts: int
    minimum_sites: int
    evaluators: tuple[str, ...]

    @classmethod
    def of(cls, plan: StudyPlan) -> Design:
        """From a study's plan."""
        return cls(
            rounds=plan.spec.training.rounds,
            retries=plan.spec.privacy.retries,
            # the declared exception happens once
            evaluation_attempts=plan.spec.evaluation.attempts if plan.spec.evaluation.mode == "noised" else 1,
            minimum_sites=plan.spec.minimum_sites,
            evaluators=tuple(site.name for site in plan.sites if site.held_out > 0),
        )


@dataclass(frozen=True)
class Attempt:
    """One attempt as recorded. `excluded`: site -> closed code; both lists are empty while it is open."""

    phase: Phase
    round: int
    attempt: int
    cohort: tuple[str, ...]
    status: AttemptStatus = AttemptStatus.OPEN
    contributed: tuple[str, ...] = ()
    excluded: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Absence:
    """Consecutive attempts that a site missed, and the round of the latest."""

    count: int
    round: int


@dataclass(frozen=True)
class Progress:
    """Everything that the next decision rests on; `after` folds one attempt in.

    established: the sites that share keys, empty before. evaluated: the evaluation is committed.
    """

    established: tuple[str, ...] = ()
    committed: int = 0
    abandoned: int = 0
    evaluation_attempts: int = 0
    evaluated: bool = False
    open: Attempt | None = None
    latest: Attempt | None = None
    absences: Mapping[str, Absence] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def attempts(self) -> int:
        """Noisy training steps that sites may have executed: committed, abandoned and open ones."""
        training_open = self.open is not None and self.open.phase == TRAIN
        return self.committed + self.abandoned + int(training_open)

    def after(self, attempt: Attempt) -> Progress:
        """The progress once `attempt` is recorded, open or closed. Attempts come in the order they were made."""
        if attempt.status is AttemptStatus.OPEN:
            return replace(self, open=attempt)
        committed = attempt.status is AttemptStatus.COMMITTED
        training = attempt.phase == TRAIN
        absences = dict(self.absences)
        for site in attempt.contributed:
            absences.pop(site, None)
        for site, code in attempt.excluded.items():
            if code not in PASSED_OVER:
                earlier = absences[site].count if site in absences else 0
                absences[site] = Absence(earlier + 1, attempt.round if training else 0)
        return replace(
            self,
            committed=self.committed + int(committed and training),
            abandoned=self.abandoned + int(training and not committed),
            evaluation_attempts=self.evaluation_attempts + int(not training),
            evaluated=self.evaluated or (committed and not training),
            open=None,
            latest=attempt,
            absences=MappingProxyType(absences),
        )


def replay(established: tuple[str, ...], attempts: Iterable[Attempt]) -> Progress:
    """The progress that the records say, in order."""
    progress = Progress(established=established)
    for attempt in attempts:
        progress = progress.after(attempt)
    return progress


@dataclass(frozen=True)
class Await:
    """Wait until these sites are connected, or until the driver's patience ends; `enough`: how many would do."""

    sites: tuple[str, ...]
    enough: int


@dataclass(frozen=True)
class EstablishKeys:
    """Run the key set-up with these sites."""

    cohort: tuple[str, ...]


@dataclass(frozen=True)
class Begin:
    """Record a new attempt, then send it."""

    phase: Phase
    round: int
    attempt: int
    cohort: tuple[str, ...]


@dataclass(frozen=True)
class Resend:
    """Send the recorded request of an open attempt again, byte for byte."""

    attempt: Attempt


@dataclass(frozen=True)
class Finish:
    """Everything is committed: make the candidate."""


@dataclass(frozen=True)
class Fail:
    """The study cannot go on."""

    code: FailureCode
    detail: str


Action = Await | EstablishKeys | Begin | Resend | Finish | Fail


def next_action(
    design: Design, granted: tuple[str, ...], progress: Progress, present: frozenset[str], *, patient: bool
) -> Action:
    """What to do now. granted: the sites whose consent stands, in name order. present: those connected now.
    patient: whether waiting for absent sites is still an option.

    A site that is not connected is not invited, for its absence would cost everybody's patients a step.
    """
    if len(granted) < design.minimum_sites:
        return _too_few(len(granted), design, "have granted")
    if not progress.established:
        here = tuple(site for site in granted if site in present)
        if patient and len(here) < len(granted):
            return Await(granted, len(granted))
        if len(here) < design.minimum_sites:
            return _too_few(len(here), design, "are connected for the key set-up")
        return EstablishKeys(here)
    if progress.open is not None:
        return Resend(progress.open)
    if progress.evaluated:
        return Finish()
    members = tuple(site for site in progress.established if site in granted)
    if progress.committed < design.rounds:
        if progress.abandoned > design.retries:
            return Fail(
                FailureCode.RETRIES_EXHAUSTED,
                f"{progress.abandoned} attempts were abandoned and the noise is calibrated for {design.retries}",
            )
        return _begin(design, members, progress, present, patient, TRAIN, progress.committed + 1)
    if progress.evaluation_attempts >= design.evaluation_attempts:
        return Fail(
            FailureCode.EVALUATION_EXHAUSTED,
            f"all {design.evaluation_attempts} planned evaluations missed a site",
        )
    evaluators = tuple(site for site in members if site in design.evaluators)
    return _begin(design, evaluators, progress, present, patient, EVALUATE, 1)


def _begin(
    design: Design,
    members: tuple[str, ...],
    progress: Progress,
    present: frozenset[str],
    patient: bool,
    phase: Phase,
    round_number: int,
) -> Await | Begin | Fail:
    latest = progress.latest
    where = f"could take part in {phase} round {round_number}"
    if latest is not None and (latest.phase, latest.round) == (phase, round_number):
        keep = {site for site, code in latest.excluded.items() if code in PASSED_OVER} | set(latest.contributed)
        cohort = tuple(site for site in latest.cohort if site in keep and site in members)
        if len(cohort) < design.minimum_sites:
            return _too_few(len(cohort), design, where)
        return Begin(phase, round_number, latest.attempt + 1, cohort)
    here = tuple(site for site in members if site in present)
    if len(here) < design.minimum_sites:
        return Await(members, design.minimum_sites) if patient else _too_few(len(here), design, where)
    number = round_number if phase == TRAIN else design.rounds + 1
    return Begin(phase, round_number, 1, due(design, here, progress, number))


def due(design: Design, here: tuple[str, ...], progress: Progress, round_number: int) -> tuple[str, ...]:
    """Whom of those connected to invite to a round's first attempt.

    A site that missed one attempt is invited to the next round. After m misses in a row it sits 2^(m-1) - 1 rounds
    out, so that a failing site costs a logarithm of the rounds and not all the retries. With fewer than the agreed
    minimum left, everybody is invited.
    """
    ready = tuple(site for site in here if _is_due(progress.absences.get(site), round_number))
    return ready if len(ready) >= design.minimum_sites else here


def _is_due(absence: Absence | None, round_number: int) -> bool:
    return absence is None or round_number >= absence.round + 2 ** min(absence.count - 1, 20)


def _too_few(count: int, design: Design, what: str) -> Fail:
    return Fail(FailureCode.TOO_FEW_SITES, f"{count} sites {what}; the study agreed on at least {design.minimum_sites}")
