"""What the round driver does next, given only what its records say. Pure.

An attempt is one message to one cohort. It is recorded before it is sent; it is committed when every site of its
cohort contributed, and abandoned otherwise: without all of them the masked sum is noise. An abandoned attempt is
followed by one on the smaller cohort, or, where that is too small, by one with everybody who was merely not heard; the
plan says how many attempts of each phase its noise is calibrated for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from protocol.plan import Plan, Stage
from protocol.round import Phase

TRAIN: Phase = "train"
EVALUATE: Phase = "evaluate"
CHECK: Phase = "check"
MEMBERSHIP: Phase = "membership"
OPTIONAL = frozenset({MEMBERSHIP})
"""Phases that come last and without which there is a candidate all the same."""
PASSED_OVER = frozenset({"refused:expired"})
"""Codes that say nothing about the site: it is invited to the next attempt although it did not contribute."""
WITHHELD = "upload-incomplete"
"""The code of a site that announced a vector and did not send all of it."""
NOT_HEARD = PASSED_OVER | {"no-answer", "offline", "refused:consumed", WITHHELD}
"""Codes of a site that was away, slow, or killed at work: with too few others it is invited once more, since the next
attempt has another number."""
MOST_WITHHELD = 2
"""A site that has withheld so many announced vectors of a study is invited only where the minimum needs it."""


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
    """What the plan fixes about the rounds. attempts: the most of each phase, over all its rounds. evaluators: the
    sites that hold enough patients out."""

    stages: tuple[Stage, ...]
    attempts: Mapping[Phase, int]
    minimum_sites: int
    evaluators: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan) -> Design:
        """From a study's plan."""
        return cls(
            stages=plan.stages,
            attempts=plan.attempts,
            minimum_sites=plan.spec.minimum_sites,
            evaluators=tuple(site.name for site in plan.sites if site.held_out > 0),
        )

    @property
    def on_training(self) -> tuple[Phase, ...]:
        """The phases whose steps the patients who train pay for, in order."""
        return tuple(dict.fromkeys(stage.phase for stage in self.stages if not stage.held_out))

    def rounds(self, phase: Phase) -> int:
        """The rounds of all stages of the phase."""
        return sum(stage.rounds for stage in self.stages if stage.phase == phase)

    def retries(self, phase: Phase) -> int:
        """How many attempts of the phase may be abandoned."""
        return self.attempts[phase] - self.rounds(phase)


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
    """Consecutive attempts that a site missed, and the place in the study of the latest one's round."""

    count: int
    position: int


@dataclass(frozen=True)
class Progress:
    """Everything that the next decision rests on; `after` folds one attempt in.

    established: the sites that share keys, empty before. committed, abandoned: closed attempts by phase. evaluated: the
    sites that gave to the last committed evaluation. withheld: announced vectors that never came, by site, over the
    whole study.
    """

    established: tuple[str, ...] = ()
    committed: Mapping[Phase, int] = field(default_factory=lambda: MappingProxyType({}))
    abandoned: Mapping[Phase, int] = field(default_factory=lambda: MappingProxyType({}))
    evaluated: tuple[str, ...] = ()
    open: Attempt | None = None
    latest: Attempt | None = None
    withheld: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    absences: Mapping[str, Absence] = field(default_factory=lambda: MappingProxyType({}))

    def done(self, phase: Phase) -> int:
        """Committed rounds of the phase."""
        return self.committed.get(phase, 0)

    def steps(self, phase: Phase) -> int:
        """Noisy steps of the phase that sites may have executed: committed, abandoned and open attempts."""
        is_open = self.open is not None and self.open.phase == phase
        return self.done(phase) + self.abandoned.get(phase, 0) + int(is_open)

    @property
    def position(self) -> int:
        """The place in the whole study of the round that is next, or under way."""
        return sum(self.committed.values()) + 1

    def stage(self, design: Design) -> Stage | None:
        """The first stage with a round that is not committed; None when all are."""
        for stage in design.stages:
            if self.done(stage.phase) < stage.first - 1 + stage.rounds:
                return stage
        return None

    def after(self, attempt: Attempt) -> Progress:
        """The progress once `attempt` is recorded, open or closed. Attempts come in the order they were made."""
        if attempt.status is AttemptStatus.OPEN:
            return replace(self, open=attempt)
        absences = dict(self.absences)
        for site in attempt.contributed:
            absences.pop(site, None)
        for site, code in attempt.excluded.items():
            if code not in PASSED_OVER:
                earlier = absences[site].count if site in absences else 0
                absences[site] = Absence(earlier + 1, self.position)
        withheld = dict(self.withheld)
        for site, code in attempt.excluded.items():
            if code == WITHHELD:
                withheld[site] = withheld.get(site, 0) + 1
        committed = attempt.status is AttemptStatus.COMMITTED
        return replace(
            self,
            withheld=MappingProxyType(withheld),
            committed=_counted(self.committed, attempt.phase) if committed else self.committed,
            abandoned=self.abandoned if committed else _counted(self.abandoned, attempt.phase),
            evaluated=attempt.contributed if committed and attempt.phase == EVALUATE else self.evaluated,
            open=None,
            latest=attempt,
            absences=MappingProxyType(absences),
        )


def _counted(counts: Mapping[Phase, int], phase: Phase) -> Mapping[Phase, int]:
    return MappingProxyType({**counts, phase: counts.get(phase, 0) + 1})


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


@dataclass(frozen=True)
class Suspend:
    """Too few sites are connected, and the driver's own patience has ended: the study waits for these, uncharged."""

    sites: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class GiveUp:
    """The optional phase can't be carried out: make the candidate without it, saying why."""

    phase: Phase
    detail: str


Action = Await | EstablishKeys | Begin | Resend | Finish | GiveUp | Suspend | Fail


def next_action(
    design: Design,
    granted: tuple[str, ...],
    progress: Progress,
    present: frozenset[str],
    *,
    patient: bool,
    rejoining: bool = False,
) -> Action:
    """What to do now. granted: the sites whose consent stands, in name order. present: those connected now.
    patient: whether waiting for absent sites is still an option. rejoining: the driver started anew a moment ago, and
    sites that it dropped are on their way back: a round is worth waiting for all of them.

    A site that is not connected is not invited, for its absence would cost everybody's patients a step.
    """
    if len(granted) < design.minimum_sites:
        return _too_few(len(granted), design, "have granted")
    if not progress.established:
        here = tuple(site for site in granted if site in present)
        if patient and len(here) < len(granted):
            return Await(granted, len(granted))
        if len(here) < design.minimum_sites:
            return _suspend(granted, here, design, "are connected for the key set-up")
        return EstablishKeys(here)
    if progress.open is not None:
        asked = tuple(site for site in progress.open.cohort if site in granted)
        return Await(asked, len(asked)) if rejoining and not present.issuperset(asked) else Resend(progress.open)
    stage = progress.stage(design)
    if stage is None:
        return Finish()
    abandoned = progress.abandoned.get(stage.phase, 0)
    if abandoned > design.retries(stage.phase):
        return _or_without(stage.phase, _exhausted(stage.phase, abandoned, design))
    members = tuple(
        site
        for site in progress.established
        if site in granted
        and (site in design.evaluators or not stage.held_out)
        # A site attacks no model that it did not evaluate.
        and (site in progress.evaluated or stage.phase != MEMBERSHIP)
    )
    expected = tuple(site for site in members if site not in progress.absences)
    if rejoining and not present.issuperset(expected):
        return Await(expected, len(expected))
    return _or_without(stage.phase, _begin(design, members, progress, present, patient, stage.phase))


def _or_without(phase: Phase, action: Await | Begin | Suspend | Fail) -> Await | Begin | GiveUp | Suspend | Fail:
    return GiveUp(phase, action.detail) if isinstance(action, Suspend | Fail) and phase in OPTIONAL else action


def _exhausted(phase: Phase, abandoned: int, design: Design) -> Fail:
    if phase in (EVALUATE, CHECK, MEMBERSHIP):
        what = {EVALUATE: "evaluations", CHECK: "checks"}.get(phase, "membership audits")
        needed = design.rounds(phase)
        detail = f"{abandoned} of {design.attempts[phase]} planned {what} missed a site, and {needed} are needed"
        return Fail(FailureCode.EVALUATION_EXHAUSTED, detail)
    detail = f"{abandoned} attempts were abandoned and the noise is calibrated for {design.retries(phase)}"
    return Fail(FailureCode.RETRIES_EXHAUSTED, detail)


def _begin(
    design: Design,
    members: tuple[str, ...],
    progress: Progress,
    present: frozenset[str],
    patient: bool,
    phase: Phase,
) -> Await | Begin | Suspend | Fail:
    latest, round_number, attempt = progress.latest, progress.done(phase) + 1, 1
    where = f"could take part in {phase} round {round_number}"
    if latest is not None and (latest.phase, latest.round) == (phase, round_number):
        attempt = latest.attempt + 1
        keep = {site for site, code in latest.excluded.items() if code in PASSED_OVER} | set(latest.contributed)
        cohort = tuple(site for site in latest.cohort if site in keep and site in members)
        if len(cohort) >= design.minimum_sites:
            return Begin(phase, round_number, attempt, cohort)
        # Who sent something wrong will again; who was not heard may be back.
        members = tuple(site for site in members if latest.excluded.get(site, "no-answer") in NOT_HEARD)
        if len(members) < design.minimum_sites:
            return _too_few(len(members), design, where)
    here = tuple(site for site in members if site in present)
    if len(here) < design.minimum_sites:
        return Await(members, design.minimum_sites) if patient else _suspend(members, here, design, where)
    return Begin(phase, round_number, attempt, due(design, here, progress, progress.position))


def due(design: Design, here: tuple[str, ...], progress: Progress, position: int) -> tuple[str, ...]:
    """Whom of those connected to invite to the first attempt of the round at this place in the study.

    A site that missed one attempt is invited to the next round. After m misses in a row it sits 2^(m-1) - 1 rounds
    out, so that a failing site costs a logarithm of the rounds and not all the retries. With fewer than the agreed
    minimum left, everybody is invited. A site that has withheld MOST_WITHHELD announced vectors, each an attempt that
    everybody was charged for, is not invited any more unless it takes it to reach the minimum.
    """
    ready = tuple(
        site for site in here if _is_due(progress.absences.get(site), position) and not withholds(progress, site)
    )
    return ready if len(ready) >= design.minimum_sites else here


def withholds(progress: Progress, site: str) -> bool:
    """Whether the site has announced and not sent as often as the others put up with."""
    return progress.withheld.get(site, 0) >= MOST_WITHHELD


def _is_due(absence: Absence | None, position: int) -> bool:
    return absence is None or position >= absence.position + 2 ** min(absence.count - 1, 20)


def _too_few(count: int, design: Design, what: str) -> Fail:
    return Fail(FailureCode.TOO_FEW_SITES, f"{count} sites {what}; the study agreed on at least {design.minimum_sites}")


def _suspend(wanted: tuple[str, ...], here: tuple[str, ...], design: Design, what: str) -> Suspend:
    away = tuple(site for site in wanted if site not in here)
    return Suspend(away, f"{_too_few(len(here), design, what).detail}; not connected: {', '.join(away)}")
