"""Privacy auditing with one training run (Steinke, Nasr and Jagielski 2023, arXiv:2305.08846).

m canaries are included by independent fair coins; the auditor sees all that leaves, guesses some coins and abstains on
the others. Under (epsilon, delta)-DP, r guesses are right no oftener than r biased coins of e^eps / (1 + e^eps), up to
delta (Theorem 5.2). More right guesses than that refute the promise.

What it can see as a gate on the software, at `AT_EPSILON_ONE` (epsilon 1, delta 1e-5, 40 steps at q = 1/4, 40,000
canaries, 1,200 guesses, 95 % confidence): noise that is half of what was charged, or patients that weigh twice the
clip, with a power above 0.99; a factor of 1.75 with a power of 0.69; 1.5 hardly ever. `AuditDesign.power` computes it.
Sound code is accused with a probability under 1e-4, since the coins' worst case is not reached by Gaussian noise.

What it cannot see: a fault that stays inside the promise (one site's missing noise while others' suffices), a factor
below these, faults at a large epsilon, and a generator that an attacker can predict. Those have deterministic tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import binom, norm

from privacy.auditing.canaries import Included, ScoreSpread, Step, expected_spread, include_coins, score_canaries
from privacy.entropy import Float64, KeyStream
from privacy.errors import ParameterError
from privacy.parameters import Mechanism, require_count, require_positive, require_probability

Guesses = npt.NDArray[np.int8]
BOUND_STEP = 0.01
LARGEST_BOUND = 20.0
_SHARES = (0.025, 0.05, 0.1, 0.2)
_FEWEST = 40
FACTOR = 2.0
"""The fault that a design states its power against: the noise is so many times too small."""


def guess_extremes(scores: Float64, guesses: int) -> Guesses:
    """(m,) -> (m,) in {1, 0, -1}: "included" for the guesses/2 highest scores, "left out" for as many lowest, 0 for
    abstaining. The number is fixed beforehand, as the theorem asks. Raises ParameterError unless even and <= m."""
    require_count("the number of guesses", guesses, 0)
    if guesses % 2 or guesses > scores.size:
        raise ParameterError(f"{guesses} guesses on {scores.size} canaries are odd or too many.", "Guess fewer.")
    made = np.zeros(scores.size, dtype=np.int8)
    if guesses:
        order = np.argsort(scores, kind="stable")
        made[order[: guesses // 2]] = -1
        made[order[-(guesses // 2) :]] = 1
    return made


def count_correct(made: Guesses, included: Included) -> int:
    """How many of the guesses that were made are right."""
    return int(((made == 1) & included).sum() + ((made == -1) & ~included).sum())


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The largest probability that an (epsilon, delta)-DP mechanism lets an auditor be right `correct` times or oftener
    in `guesses` of `canaries` (Theorem 5.2): a binomial tail, plus 2 m delta max_i P[v - i <= W < v] / i.

    Raises ParameterError unless 0 <= correct <= guesses <= canaries, epsilon >= 0 and 0 <= delta < 1.
    """
    _check_counts(canaries, guesses, correct)
    if not (math.isfinite(epsilon) and epsilon >= 0 and 0 <= delta < 1):
        raise ParameterError("An audit needs epsilon >= 0 and 0 <= delta < 1.", "Take both from the plan.")
    right = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, right))
    if delta == 0 or correct == 0:
        return min(1.0, tail)
    below = np.arange(1, correct + 1)
    windows = np.cumsum(binom.pmf(correct - below, guesses, right))
    return min(1.0, tail + 2 * canaries * delta * float((windows / below).max()))


def epsilon_lower_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """The epsilon, a multiple of 0.01 and at most 20, below which (epsilon, delta)-DP is refuted at `confidence`.

    0 where nothing is. Scanned upwards to the first epsilon that is not refuted, so that the bound exceeds the true
    epsilon with a probability of at most 1 - confidence.
    """
    _check_counts(canaries, guesses, correct)
    require_probability("the confidence", confidence, allow_one=False)
    bound = 0.0
    for tick in range(round(LARGEST_BOUND / BOUND_STEP) + 1):
        if p_value(canaries, guesses, correct, tick * BOUND_STEP, delta) > 1 - confidence:
            break
        bound = tick * BOUND_STEP
    return bound


def fewest_correct(canaries: int, guesses: int, epsilon: float, delta: float, confidence: float) -> int:
    """The fewest right guesses that refute the promise; guesses + 1 where none do."""
    low, high = 0, guesses + 1
    while low < high:
        middle = (low + high) // 2
        if p_value(canaries, guesses, middle, epsilon, delta) <= 1 - confidence:
            high = middle
        else:
            low = middle + 1
    return low


@dataclass(frozen=True)
class AuditDesign:
    """What is fixed before an audit runs. mechanism: as charged, its delta included. epsilon: the promise for it.

    canaries: m. block: canaries to a cohort, a divisor of m. guesses: even, at most m. records: of each canary; above
    1 they tell sampling rows from sampling patients. Raises ParameterError.
    """

    mechanism: Mechanism
    epsilon: float
    canaries: int = 40_000
    block: int = 200
    guesses: int = 1_200
    records: int = 1
    confidence: float = 0.95

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_count("the number of canaries", self.canaries, 1)
        require_count("the canaries of a block", self.block, 1)
        require_count("the records of a canary", self.records, 1)
        require_probability("the confidence", self.confidence, allow_one=False)
        _check_counts(self.canaries, self.guesses, 0)
        if self.canaries % self.block or self.guesses % 2:
            raise ParameterError(
                "The canaries are not whole blocks, or the number of guesses is odd.", "Correct the audit's design."
            )

    def power(self, factor: float = FACTOR) -> float:
        """The chance that the audit refutes the promise when the noise is `factor` > 0 times smaller than charged.

        By the normal approximation of both scores; at 1, the chance that sound code is accused.
        """
        require_positive("the factor", factor)
        if self.guesses == 0:
            return 0.0
        spread = expected_spread(self.mechanism, noise_divided_by=factor)
        right = _share_correct(spread, self.guesses / 2 / self.canaries)
        needed = fewest_correct(self.canaries, self.guesses, self.epsilon, self.mechanism.delta, self.confidence)
        return float(binom.sf(needed - 1, self.guesses, right))


@dataclass(frozen=True)
class AuditResult:
    """What an audit found. ran: False with a `reason` where it could not be carried out, and then it does not pass.

    correct: right guesses of design.guesses. epsilon_lower: a lower bound on the true epsilon at design.confidence.
    factor, power: the audit sees noise `factor` times too small with this probability; false_alarm: it accuses sound
    code with this one.
    """

    design: AuditDesign
    ran: bool
    reason: str | None
    correct: int
    p_value: float
    epsilon_lower: float
    factor: float
    power: float
    false_alarm: float

    @property
    def passes(self) -> bool:
        """Whether the promise stands: the audit ran and did not refute it. Everything else blocks."""
        return self.ran and self.p_value > 1 - self.design.confidence

    @classmethod
    def not_run(cls, design: AuditDesign, reason: str) -> AuditResult:
        """An audit that did not take place, which blocks as one that failed does."""
        return cls(design, False, reason, 0, math.nan, 0.0, FACTOR, 0.0, 0.0)


def judge(design: AuditDesign, included: Included, scores: Float64) -> AuditResult:
    """Guess from the scores and hold the promise against the coins. Raises ParameterError for other lengths."""
    if included.shape != (design.canaries,) or scores.shape != included.shape:
        raise ParameterError(f"The audit needs {design.canaries} coins and scores.", "Score every canary.")
    if not bool(np.isfinite(scores).all()):
        return AuditResult.not_run(design, "A canary's score is not finite.")
    correct = count_correct(guess_extremes(scores, design.guesses), included)
    delta = design.mechanism.delta
    return AuditResult(
        design=design,
        ran=True,
        reason=None,
        correct=correct,
        p_value=p_value(design.canaries, design.guesses, correct, design.epsilon, delta),
        epsilon_lower=epsilon_lower_bound(design.canaries, design.guesses, correct, delta, design.confidence),
        factor=FACTOR,
        power=design.power(),
        false_alarm=design.power(1.0),
    )


def audit(design: AuditDesign, step: Step, *, clip: float, stream: KeyStream) -> AuditResult:
    """Toss the coins with `stream`, run the step under audit over all blocks, and judge.

    clip: the unit of scores only; the step takes its own. What the step raises is not caught: the caller records
    `AuditResult.not_run`.
    """
    included = include_coins(design.canaries, stream)
    scores = score_canaries(
        included, step, steps=design.mechanism.steps, clip=clip, block=design.block, records=design.records
    )
    return judge(design, included, scores)


def best_guesses(mechanism: Mechanism, canaries: int, confidence: float = 0.95) -> int:
    """The number of guesses, of some that are tried, at which sound code is expected to give the largest lower bound.

    It follows from the mechanism alone, so it is fixed before anything runs, as the theorem asks.
    """
    require_count("the number of canaries", canaries, _FEWEST)
    spread = expected_spread(mechanism)
    found = []
    for share in _SHARES:
        guesses = max(2, round(canaries * share / 2) * 2)
        right = int(guesses * _share_correct(spread, guesses / 2 / canaries))
        found.append((_refuted_up_to(canaries, guesses, right, mechanism.delta, confidence), guesses))
    return max(found)[1]


def _refuted_up_to(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    low, high = 0.0, LARGEST_BOUND
    for _ in range(12):
        middle = (low + high) / 2
        refuted = p_value(canaries, guesses, correct, middle, delta) <= 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


def _share_correct(spread: ScoreSpread, share: float) -> float:
    """How many of the guesses are right when the `share` of canaries at each end is guessed."""
    reach = 40.0 * (spread.std + spread.std_out)

    def above(cut: float) -> tuple[float, float]:
        return 0.5 * float(norm.sf(cut, spread.mean, spread.std)), 0.5 * float(norm.sf(cut, 0.0, spread.std_out))

    def below(cut: float) -> tuple[float, float]:
        return 0.5 * float(norm.cdf(cut, 0.0, spread.std_out)), 0.5 * float(norm.cdf(cut, spread.mean, spread.std))

    shares = []
    for tail in (above, below):
        cut = brentq(lambda value, tail=tail: sum(tail(value)) - share, -reach, spread.mean + reach)
        shares.append(tail(float(cut))[0] / share)
    return sum(shares) / 2


def _check_counts(canaries: int, guesses: int, correct: int) -> None:
    require_count("the number of right guesses", correct, 0)
    require_count("the number of guesses", guesses, correct)
    require_count("the number of canaries", canaries, guesses)


AT_EPSILON_ONE = AuditDesign(
    mechanism=Mechanism(noise_multiplier=6.1301, sampling_rate=0.25, steps=40, delta=1e-5), epsilon=1.0
)
"""The gate on the software. The multiplier is what calibration gives for these numbers; a test says so."""
