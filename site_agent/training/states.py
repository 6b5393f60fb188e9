"""Whether an attempt is computed, answered from disk or refused: decided from facts alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from privacy.accounting.ledger import CohortLedger
from protocol.round import Phase, RefusalCode


class AttemptRefused(Exception):
    """The request is not answered with a contribution; `code` is all that is told."""

    def __init__(self, code: RefusalCode) -> None:
        super().__init__(code.value)
        self.code = code


@dataclass(frozen=True, order=True)
class AttemptKey:
    """One attempt of one round: what is consumed at most once."""

    study: str
    phase: Phase
    round: int
    attempt: int


@dataclass(frozen=True)
class Prior:
    """What is on disk for exactly this attempt. `stored`: whether the answer's bytes are there."""

    plan_digest: str
    request_digest: str
    stored: bool


@dataclass(frozen=True)
class Place:
    """Where an attempt stands in its study. position: its round's place in the whole plan, from 1."""

    position: int
    phase: Phase
    attempt: int


@dataclass(frozen=True)
class Progress:
    """Where the study stands at this site: the last attempt of all, the model that this round's evaluation was asked
    about (for a membership audit, the plan's last evaluation), and how many more steps the phase's charges allow."""

    latest: Place | None
    evaluated: str | None
    steps_left: int


class Verdict(StrEnum):
    """What to do with a request that is not refused."""

    COMPUTE = "compute"
    RESEND = "resend"


def decide_attempt(
    key: AttemptKey,
    *,
    position: int,
    plan_digest: str,
    request_digest: str,
    model: str,
    expired: bool,
    prior: Prior | None,
    progress: Progress,
    steps: int = 1,
) -> Verdict:
    """COMPUTE: charge the attempt's noisy steps, then compute. RESEND: the stored bytes. Raises AttemptRefused.

    Expiry bears on new attempts only: a coordinator that was down may collect what was paid for. An evaluation
    is of one model: with two, a coordinator could ask about one and release the other; and a membership audit is of
    the model that this site evaluated last, hence of one as well. position: the round's place in
    the plan; a study goes through it forwards only.
    """
    if prior is not None:
        if (prior.plan_digest, prior.request_digest) != (plan_digest, request_digest):
            raise AttemptRefused(RefusalCode.ALREADY_CONSUMED)
        if not prior.stored:
            raise AttemptRefused(RefusalCode.CONSUMED)
        return Verdict.RESEND
    if expired:
        raise AttemptRefused(RefusalCode.EXPIRED)
    latest = progress.latest
    if latest is not None and (position, key.attempt) <= (latest.position, latest.attempt):
        raise AttemptRefused(RefusalCode.ROUND_OVER if key.phase == latest.phase else RefusalCode.PHASE_OVER)
    if key.phase == "membership" and progress.evaluated is None:
        raise AttemptRefused(RefusalCode.MODEL_NOT_EVALUATED)
    if key.phase in ("evaluate", "membership") and progress.evaluated not in (None, model):
        raise AttemptRefused(RefusalCode.MODEL_CHANGED)
    if progress.steps_left < steps:
        raise AttemptRefused(RefusalCode.LEDGER_EXHAUSTED)
    return Verdict.COMPUTE


@dataclass(frozen=True)
class Charge:
    """What one phase of a study, or several that share one epsilon, ask of one group of patients, all steps together.
    also: the phases besides the first. exact: outside the guarantee, epsilon 0."""

    phase: Phase
    held_out: bool
    epsilon: float
    delta: float
    steps: int
    exact: bool = False
    also: tuple[Phase, ...] = ()


@dataclass(frozen=True)
class Budget:
    """Sums over studies: what may be spent, or what is."""

    epsilon: float
    delta: float


def admit(study: str, spent: Budget, charge: Charge, cap: Budget) -> Budget:
    """What is spent after the charge. Raises BudgetExceeded, naming what remains, when a sum would pass its cap."""
    if charge.exact:
        return spent
    patients = "held-out" if charge.held_out else "training"
    held = CohortLedger(cap.epsilon, cap.delta, inherited_epsilon=spent.epsilon, inherited_delta=spent.delta)
    after = held.reserve(f"{study} ({patients} patients)", charge.epsilon, charge.delta)
    return Budget(after.epsilon_spent, after.delta_spent)
