"""What checks between rounds and shutting the site out save of a poisoned study, measured.

    python packaging/audit/rollback.py [--seeds 20] [--write docs/POISONING.md]

The attacks of poisoning.py on the same study with `training.checks`: every 20 of 60 rounds, epsilon 2 for both checks,
no retry, tolerance 0.1. The check's histogram, its noise, its interval and the decision are the product's own. The
attacker begins at once and goes on; or it begins in round 31 and people shut it out after the first roll-back.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parent))

import poisoning as attacks

from coordinator.client.simulated_sites import network_of
from coordinator.rounds.checks import judge_check
from coordinator.rounds.optimiser import candidate_weights, initial_point, step
from privacy.accounting.calibration import noise_multiplier_for
from privacy.accounting.gaussian import gaussian_multiplier_for
from privacy.evaluation.histogram import ScoreHistogram, score_histogram
from privacy.evaluation.metrics import evaluate
from privacy.parameters import site_noise_std
from protocol.checks import Checks
from protocol.evaluation import ClassificationReport, Interval

CHECKS = Checks(every=20, epsilon=2.0, tolerance=0.1, retries=0)
LATE = 31
MARKS = ("<!-- checks: begin -->", "<!-- checks: end -->")


@dataclass(frozen=True)
class Outcome:
    """auc: of the released model on all held-out patients. undone: rounds given up. tripped: whether any check fell."""

    auc: float
    undone: int

    @property
    def tripped(self) -> bool:
        return self.undone > 0


def checked(federation: attacks.Federation, weights: attacks.Float64, seed: tuple[int, ...]) -> ClassificationReport:
    """What a check says of these weights, every clinic being honest in it."""
    spec, sites = federation.spec, len(federation.clinics)
    count = (spec.training.rounds - 1) // CHECKS.every + CHECKS.retries
    multiplier = gaussian_multiplier_for(CHECKS.epsilon, spec.privacy.delta) * count**0.5
    tolerated = spec.privacy.colluders + spec.privacy.dropouts
    std = site_noise_std(multiplier, 1.0, sites, tolerated) * sites**0.5
    random = np.random.default_rng(seed)
    scores = network_of(spec.model, federation.held_out.x.shape[1]).chances(weights, federation.held_out.x)
    counts = score_histogram(scores, federation.held_out.y, spec.evaluation.bins)
    counts += random.normal(0.0, std, counts.size)
    auc = evaluate(ScoreHistogram(counts, std), random, draws=200, groups=1).auc
    nothing = Interval(value=None)
    return ClassificationReport(
        mode="noised",
        outside_guarantee=False,
        held_out=federation.held_out.y.size,
        bins=spec.evaluation.bins,
        auc=Interval(value=auc.value, low=auc.low, high=auc.high, reason=auc.reason),
        accuracy=nothing,
        calibration_error=nothing,
    )


def train(
    federation: attacks.Federation,
    fair: list[attacks.Contribution],
    attacker: int | None,
    attack: attacks.Contribution | None,
    seed: int,
    *,
    begins: int,
    shut_out: bool,
) -> Outcome:
    """The study's rounds with checks. A clinic that is shut out leaves the sum and the expected batch."""
    spec = federation.spec
    point = first = initial_point(spec.model, spec.dataset.width, "")
    passed: tuple[float, object] | None = None
    good, undone, since, gone = first, 0, 0, False
    for number in range(1, spec.training.rounds + 1):
        members = [clinic for clinic in range(len(fair)) if not (gone and clinic == attacker)]
        adding = [
            attack if attack is not None and clinic == attacker and number >= begins else fair[clinic]
            for clinic in members
        ]
        batch = spec.training.sampling_rate * sum(federation.clinics[clinic].y.size for clinic in members)
        point = step(point, np.sum([add(point.weights) for add in adding], axis=0), batch, spec.training)
        if number % CHECKS.every or number == spec.training.rounds:
            continue
        found = judge_check(
            checked(federation, point.weights, (seed, 7, number)), passed[0] if passed else None, CHECKS.tolerance
        )
        if found.fell:
            undone, point = undone + number - since, replace(good, rounds=number)
            gone = shut_out
        elif found.score.value is not None:
            passed, good = (found.score.value, point), point
        since = number
    scores = network_of(spec.model, federation.held_out.x.shape[1]).chances(
        candidate_weights(point), federation.held_out.x
    )
    return Outcome(float(roc_auc_score(federation.held_out.y, scores)), undone)


def measure(seeds: int) -> list[tuple[str, str, list[Outcome], list[Outcome]]]:
    """(clinic, attack, outcomes when it goes on, outcomes when it begins late and is shut out)."""
    spec = attacks.load_spec(attacks.DEMO / "wisconsin" / "study.yaml").spec
    multiplier = noise_multiplier_for(spec.privacy.epsilon, spec.privacy.delta, spec.training.sampling_rate, spec.steps)
    with tempfile.TemporaryDirectory() as folder:
        clinics = attacks.read_clinics(Path(folder))
    by_size = sorted(range(len(clinics)), key=lambda number: clinics[number].y.size)
    rows: dict[tuple[str, str], tuple[list[Outcome], list[Outcome]]] = {}
    for seed in range(seeds):
        federation = attacks.split(spec, clinics, multiplier, seed)
        fair = [attacks.honest(federation, clinic) for clinic in federation.clinics]
        kept = rows.setdefault(("nobody", "none"), ([], []))
        kept[0].append(train(federation, fair, None, None, seed, begins=1, shut_out=False))
        for number in (by_size[-1], by_size[0]):
            clinic = federation.clinics[number]
            for name, attack in attacks.ATTACKS:
                made = attack(federation, clinic)
                who = f"{clinic.name} ({clinic.y.size} of {sum(c.y.size for c in federation.clinics)})"
                kept = rows.setdefault((who, name), ([], []))
                kept[0].append(train(federation, fair, number, made, seed, begins=1, shut_out=False))
                kept[1].append(train(federation, fair, number, made, seed, begins=LATE, shut_out=True))
        print(f"seed {seed + 1} of {seeds}", file=sys.stderr, flush=True)
    return [(who, name, going_on, late) for (who, name), (going_on, late) in rows.items()]


def table(rows: list[tuple[str, str, list[Outcome], list[Outcome]]]) -> str:
    lines = [
        "| Attacker (training patients) | Attack | goes on: AUC, mean (sd) | a check fell in | rounds undone "
        f"| from round {LATE}, shut out after a roll-back: AUC, mean (sd) | a check fell in |",
        "|---|---|---|---|---|---|---|",
    ]
    for who, name, going_on, late in rows:
        cells = [who, name, _auc(going_on), _fell(going_on), f"{np.mean([o.undone for o in going_on]):.0f}"]
        lines.append("| " + " | ".join([*cells, _auc(late), _fell(late)]) + " |")
    return "\n".join(lines)


def _auc(outcomes: list[Outcome]) -> str:
    values = [outcome.auc for outcome in outcomes]
    return f"{np.mean(values):.3f} ({np.std(values, ddof=1):.3f})" if values else ""


def _fell(outcomes: list[Outcome]) -> str:
    return f"{sum(outcome.tripped for outcome in outcomes)} of {len(outcomes)}" if outcomes else ""


def main(arguments: list[str] | None = None, *, measured: Callable[[int], list] = measure) -> int:  # type: ignore[type-arg]
    parser = argparse.ArgumentParser(description="Measure what checks and shutting a clinic out save.")
    parser.add_argument("--seeds", type=int, default=20, help="random splits, at least 2")
    parser.add_argument("--write", type=Path, help="a document whose table is replaced")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        print("error: one split has no spread\nremedy: use --seeds 2 or more", file=sys.stderr)
        return 1
    found = table(measured(options.seeds))
    print(found)
    if options.write:
        when = attacks.datetime.now(attacks.UTC).date().isoformat()
        command = f"python packaging/audit/rollback.py --seeds {options.seeds}"
        try:
            attacks.write(options.write, f"Measured on {when} with `{command}`.\n\n{found}", MARKS)
        except (OSError, ValueError) as error:
            print(f"error: {error}\nremedy: name docs/POISONING.md", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
