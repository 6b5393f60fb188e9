"""A study in one process, as it would run: the driver's own decisions, optimiser and evaluation, the sites' own step.

Left out is what changes no number: messages, signatures, and the masks of secure aggregation, which cancel. What each
site would send is rounded onto the plan's grid and summed modulo 2^32, as in a study. Nothing is charged to a ledger
and nothing leaves the machine, so the patients must be the researcher's own or made up. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from coordinator.client.simulated_sites import attack_auc, exact_measure, site_vector
from coordinator.rounds.attempts import grid_of, unmasked_sum
from coordinator.rounds.evaluation import evaluate_histogram
from coordinator.rounds.kept_models import Passed, after_check, last_passed
from coordinator.rounds.membership import membership_report
from coordinator.rounds.optimiser import candidate_weights, next_point
from coordinator.rounds.runs import Run, first_point, is_last, point_after, scored, selection_of
from coordinator.rounds.states import (
    CHECK,
    MEMBERSHIP,
    TRAIN,
    Attempt,
    AttemptStatus,
    Begin,
    Design,
    Fail,
    Finish,
    GiveUp,
    Progress,
    next_action,
)
from coordinator.studies.plan import Papers, build_plan, plan_digest
from privacy.entropy import Entropy, Float64, KeyStream
from privacy.local.patients import Cohort
from privacy.secagg.field import WIRE
from privacy.secagg.quantization import quantize
from protocol.canonical import sha256_hex
from protocol.errors import CloisterError
from protocol.evaluation import EvaluationReport, Interval
from protocol.membership import MembershipReport
from protocol.plan import PlannedSite
from protocol.proposal import MINIMUM_CELL, Proposal
from protocol.release import Selection
from protocol.round import Phase
from protocol.signing import SigningKey
from protocol.study import StudyPlan, StudySpec

_NO_TIME = "1970-01-01T00:00:00Z"


class SimulationRefused(CloisterError):
    """The study can't be simulated with these patients."""

    code = "simulation-refused"


@dataclass(frozen=True)
class SimulatedCheck:
    """One check of the model between rounds. rounds: done before it. against: what its noised score was held against.
    undone: rounds given up, 0 where the model was kept."""

    rounds: int
    score: Interval
    against: float
    undone: int


@dataclass(frozen=True)
class Simulated:
    """How one run ended. failure: why there is no candidate. weights: (P,) the candidate's.

    measured: the first of the report's figures over all held-out patients, from their scores as they are; None where it
    is undefined. report: what the study itself would say, from its noised histogram. selection: of a tuned study.
    checks: in order. membership: what the study's own audit would say, None where it plans none. attacked: how well the
    same attack does without noise, as `attack_auc`.
    """

    rounds: int
    attempts: int
    failure: str | None = None
    weights: Float64 | None = None
    measured: float | None = None
    report: EvaluationReport | None = None
    selection: Selection | None = None
    checks: tuple[SimulatedCheck, ...] = ()
    membership: MembershipReport | None = None
    attacked: float | None = None

    @property
    def undone(self) -> int:
        """Rounds given up after checks, all charged."""
        return sum(check.undone for check in self.checks)


def simulated_plan(spec: StudySpec, counts: Mapping[str, tuple[int, int]]) -> StudyPlan:
    """The plan that the coordinator would make; counts: (patients, held-out ones among them) by invited site.

    Raises SimulationRefused for a site that no plan takes, PlanRefused, PrivacyError.
    """
    papers = simulated_papers(spec, counts)
    evaluators = [name for name, (_, held_out) in counts.items() if held_out]
    if len(evaluators) < spec.minimum_sites:
        raise SimulationRefused(
            f"Only {len(evaluators)} sites would hold patients out for evaluation; minimum_sites is "
            f"{spec.minimum_sites}.",
            "Simulate with more patients: a site holds some out from 41 patients on.",
        )
    return build_plan(spec, papers, ())


def simulated_papers(spec: Proposal, counts: Mapping[str, tuple[int, int]]) -> Papers:
    """What goes into the plan beside the spec and the noise; its keys are nobody's. Raises SimulationRefused for a site
    that no plan takes."""
    for name, (patients, _) in counts.items():
        if patients <= MINIMUM_CELL:
            raise SimulationRefused(
                f"{name} would have {patients} patients; a study takes sites with more than {MINIMUM_CELL}.",
                "Simulate with more patients or fewer sites.",
            )
    sites = tuple(
        PlannedSite(
            name=name,
            identity=_key(name),
            jurisdiction=spec.legal_basis[name].jurisdiction,
            patients=counts[name][0],
            held_out=counts[name][1],
            snapshot=sha256_hex(name.encode()),
        )
        for name in spec.invited
    )
    return Papers(
        proposal_digest=sha256_hex(b"simulation"),
        submitter="simulation",
        sites=sites,
        packs={},
        witness_policy={},
        coordinator=_key("coordinator"),
        created_at=_NO_TIME,
    )


def _key(name: str) -> str:
    seed = hashlib.sha256(b"cloister simulation\0" + name.encode()).digest()
    return SigningKey.from_seed(seed).public.text


def simulate(
    plan: StudyPlan,
    sites: Mapping[str, Cohort],
    entropy: Entropy,
    *,
    answers: Callable[[], bool] = lambda: True,
    noise: bool = True,
    committed: Callable[[], None] = lambda: None,
) -> Simulated:
    """Run the plan to its candidate or its failure: every stage that it has, checks, runs of a grid and membership
    audit among them.

    sites: each planned site's patients. answers: asked once for each site of each attempt, whether its answer arrives.
    committed: called after each round.
    """
    design, progress, work = Design.of(plan), Progress(established=plan.names), _Work(plan)
    while True:
        action = next_action(design, plan.names, progress, frozenset(plan.names), patient=False)
        done, steps = progress.done(TRAIN), progress.steps(TRAIN)
        if isinstance(action, Fail):
            return Simulated(done, steps, failure=f"{action.code}: {action.detail}", checks=tuple(work.checks))
        if isinstance(action, GiveUp):
            work.membership = MembershipReport(ran=False, reason=action.detail)
        if isinstance(action, Finish | GiveUp):
            return work.ended(sites, done, steps)
        if not isinstance(action, Begin):
            raise AssertionError(f"a simulation never has to {type(action).__name__.lower()}")
        attempt = Attempt(action.phase, action.round, action.attempt, action.cohort)
        late = {name: "no-answer" for name in action.cohort if not answers()}
        if late:
            there = tuple(name for name in action.cohort if name not in late)
            closed = replace(attempt, status=AttemptStatus.ABANDONED, contributed=there, excluded=late)
            progress = progress.after(attempt).after(closed)
            continue
        work.take(attempt, _sum(work.plan_now, attempt, sites, work.body(attempt.phase), entropy, noise))
        closed = replace(attempt, status=AttemptStatus.COMMITTED, contributed=attempt.cohort)
        progress = progress.after(attempt).after(closed)
        committed()


class _Work:
    """What becomes of each sum: the decisions of `coordinator.rounds.training_work`, without its database."""

    def __init__(self, plan: StudyPlan) -> None:
        self._plan, self._digest = plan, plan_digest(plan)
        self._point = first_point(plan, self._digest)
        self._runs: tuple[Run, ...] = ()
        self._passed: Passed | None = None
        self._report: EvaluationReport | None = None
        self.checks: list[SimulatedCheck] = []
        self.membership: MembershipReport | None = None

    @property
    def plan_now(self) -> StudyPlan:
        """The plan with the entry of the grid that the run goes by."""
        return self._plan.of_entry(self._point.entry)

    def body(self, phase: Phase) -> Float64:
        """(P,) the weights that a request of the phase brings to the sites."""
        return self._point.weights if phase in (TRAIN, CHECK) else candidate_weights(self._point)

    def take(self, attempt: Attempt, total: Float64) -> None:
        """The next model, a check's verdict, a run's score, the report, or what the attack found."""
        if attempt.phase == TRAIN:
            self._point = next_point(self.plan_now, self._point, total, attempt.cohort)
        elif attempt.phase == CHECK:
            self._check(evaluate_histogram(self._plan, attempt.cohort, total, "check"))
        elif attempt.phase == MEMBERSHIP:
            self.membership = membership_report(self._plan, attempt.cohort, total)
        else:
            self._report = evaluate_histogram(self._plan, attempt.cohort, total)
            if not is_last(self._plan, self._point):
                self._runs = (*self._runs, scored(self._point, self._report))
                self._point = point_after(self._plan, self._digest, self._runs)

    def _check(self, report: EvaluationReport) -> None:
        at = self._point
        verdict, self._point = after_check(self._plan, self._digest, at, report, self._passed)
        self._passed = last_passed(verdict, at, self._passed)
        before = self.checks[-1].rounds if self.checks else 0
        undone = at.rounds - before if verdict.fell else 0
        self.checks.append(SimulatedCheck(at.rounds, verdict.score, verdict.against, undone))

    def ended(self, sites: Mapping[str, Cohort], rounds: int, attempts: int) -> Simulated:
        """With a candidate."""
        weights = candidate_weights(self._point)
        return Simulated(
            rounds,
            attempts,
            weights=weights,
            measured=exact_measure(self._plan, sites, weights),
            report=self._report,
            selection=selection_of(self._plan, self._runs),
            checks=tuple(self.checks),
            membership=self.membership,
            attacked=attack_auc(self._plan, sites, weights),
        )


def _sum(
    plan: StudyPlan, attempt: Attempt, sites: Mapping[str, Cohort], parameters: Float64, entropy: Entropy, noise: bool
) -> Float64:
    planned = plan.secure_sum(attempt.phase, attempt.cohort)
    bodies = {}
    for name in attempt.cohort:
        vector = site_vector(
            plan, attempt.phase, attempt.cohort, sites[name], parameters, entropy, noise=noise, site=name
        )
        words = quantize(vector, grid_of(planned), KeyStream.fresh(entropy))
        bodies[name] = words.astype(WIRE, copy=False).tobytes()
    return unmasked_sum(planned, attempt.cohort, bodies)


def seeded_entropy(*numbers: int) -> Entropy:
    """Bytes that repeat with the numbers, so that a simulation does. They protect nobody."""
    stream = KeyStream(hashlib.sha256(b"cloister simulation\0" + repr(numbers).encode()).digest())
    return stream.bytes
