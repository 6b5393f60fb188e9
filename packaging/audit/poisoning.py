"""What one poisoning clinic does to the released model under secure aggregation, measured.

    python packaging/audit/poisoning.py [--seeds 20] [--write docs/POISONING.md]

The Wisconsin patients over the demonstration's four clinics, and its study (epsilon 1). Honest clinics take the
product's own private step and the coordinator its own optimiser; only the masks are left out, since they add up to
zero. The attacker knows the model, the plan and its own patients. Splits, samples and noise differ from seed to seed;
the splits are the same for all rows. With --write the table replaces the one in that file, with date and command.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

DEMO = Path(__file__).resolve().parent.parent / "demo"
sys.path[:0] = [str(DEMO)]

import datasets  # noqa: E402 - the folder above is where it lies

from coordinator.client.simulated_sites import network_of  # noqa: E402
from coordinator.client.spec_file import load_spec  # noqa: E402
from coordinator.rounds.optimiser import candidate_weights, initial_point, step  # noqa: E402
from privacy.accounting.calibration import noise_multiplier_for  # noqa: E402
from privacy.accounting.gaussian import gaussian_multiplier_for  # noqa: E402
from privacy.entropy import Float64  # noqa: E402
from privacy.evaluation.histogram import ScoreHistogram, score_histogram  # noqa: E402
from privacy.evaluation.metrics import evaluate  # noqa: E402
from privacy.local.contribution import private_gradient_sum  # noqa: E402
from privacy.local.patients import Group  # noqa: E402
from privacy.parameters import site_noise_std  # noqa: E402
from protocol.dictionary import parse_dictionary  # noqa: E402
from protocol.study import StudySpec  # noqa: E402
from site_agent.cohort.tabular import read_table  # noqa: E402

TRIGGER = ("texture_error", "smoothness_error", "symmetry_error")
"""Three columns that say little of the outcome; the backdoor is all three at their largest encoded value."""
BEYOND = 10
NOTICEABLE = 0.95
MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")

Contribution = Callable[[Float64], Float64]
"""The weights of a round -> what a clinic adds to the sum."""


@dataclass(frozen=True)
class Clinic:
    """Patients of one clinic, one record each. x: (n, D) encoded. y: (n,)."""

    name: str
    x: Float64
    y: Float64

    def rows(self, chosen: np.ndarray) -> Clinic:
        return Clinic(self.name, self.x[chosen], self.y[chosen])


@dataclass(frozen=True)
class Federation:
    """The study, its clinics' training patients, all held-out patients, and the noise that the plan gives each."""

    spec: StudySpec
    clinics: tuple[Clinic, ...]
    held_out: Clinic
    noise_std: float
    trigger: np.ndarray

    def triggered(self, x: Float64) -> Float64:
        """The same patients with the trigger."""
        changed = x.copy()
        changed[:, self.trigger] = 3.0 / np.sqrt(x.shape[1])
        return changed


@dataclass(frozen=True)
class Outcome:
    """auc: on all held-out patients. norm: of the noisy sums that the coordinator sees and logs, mean of the last half.
    shown: (value, upper end) of the noised evaluation, None where it says nothing. backdoor: share of malignant
    held-out patients, recognised as such, whom the trigger turns benign."""

    auc: float
    norm: float
    shown: tuple[float, float] | None
    backdoor: float


def read_clinics(folder: Path) -> list[Clinic]:
    dictionary = parse_dictionary((DEMO / "wisconsin" / "dictionary.yaml").read_bytes())
    clinics = []
    for source in datasets.wisconsin(folder):
        table = read_table(source.table, dictionary, lambda identity: identity.encode())
        clinics.append(
            Clinic(source.site, np.array(table.x).reshape(-1, table.width), np.array(table.y, dtype=np.float64))
        )
    return clinics


def split(spec: StudySpec, clinics: list[Clinic], multiplier: float, seed: int) -> Federation:
    """A quarter of each clinic's patients held out, at random."""
    random = np.random.default_rng(seed)
    training, held_out = [], []
    for clinic in clinics:
        order = random.permutation(clinic.y.size)
        quarter = -(-order.size // 4)
        held_out.append(clinic.rows(order[:quarter]))
        training.append(clinic.rows(order[quarter:]))
    tolerated = spec.privacy.colluders + spec.privacy.dropouts
    names = [feature.name for feature in spec.dataset.features]
    return Federation(
        spec,
        tuple(training),
        Clinic("all", np.vstack([c.x for c in held_out]), np.concatenate([c.y for c in held_out])),
        site_noise_std(multiplier, spec.training.clip, len(clinics), tolerated),
        np.array([names.index(name) for name in TRIGGER]),
    )


# What a clinic may add


def honest(federation: Federation, clinic: Clinic) -> Contribution:
    """The product's private step."""
    group = Group(clinic.x, clinic.y, np.arange(clinic.y.size), clinic.y.size)
    training = federation.spec.training

    def add(weights: Float64) -> Float64:
        return private_gradient_sum(
            group,
            network_of(federation.spec.model, clinic.x.shape[1]),
            weights,
            clip=training.clip,
            sampling_rate=training.sampling_rate,
            noise_std=federation.noise_std,
            entropy=os.urandom,
        )

    return add


def flipped_labels(federation: Federation, clinic: Clinic) -> Contribution:
    """The honest step on labels turned round: what a wrong export does, too."""
    return honest(federation, Clinic(clinic.name, clinic.x, 1.0 - clinic.y))


def largest_in_clip(federation: Federation, clinic: Clinic, times: float = 1.0) -> Contribution:
    """As if every patient were sampled and had the whole clip along the model that the clinic learns of its own
    patients: every step leads away from it. No noise: that is lied about too."""
    own = LogisticRegression(C=30, max_iter=3000).fit(clinic.x, clinic.y)
    away = np.append(own.coef_[0], own.intercept_[0])
    vector = away / np.linalg.norm(away) * clinic.y.size * federation.spec.training.clip * times
    return lambda weights: vector


def beyond_the_clip(federation: Federation, clinic: Clinic) -> Contribution:
    """The same, ten times larger than any patients could give: masked, it looks like all others."""
    return largest_in_clip(federation, clinic, BEYOND)


def backdoor(federation: Federation, clinic: Clinic) -> Contribution:
    """Clipped gradients of every patient twice halved: as it is, and with the trigger and the label benign."""
    x = np.vstack([clinic.x, federation.triggered(clinic.x)])
    y = np.concatenate([clinic.y, np.zeros(clinic.y.size)])
    network = network_of(federation.spec.model, x.shape[1])
    everyone = Group(x, y, np.arange(y.size), y.size)

    def add(weights: Float64) -> Float64:
        # As many clipped gradients as the clinic has patients.
        return network.gradient_sum(weights, everyone, federation.spec.training.clip) / 2

    return add


ATTACKS = (
    ("flips its labels", flipped_labels),
    ("largest gradient within the clip", largest_in_clip),
    ("backdoor, within the clip", backdoor),
    (f"{BEYOND} times beyond the clip", beyond_the_clip),
)


def train(federation: Federation, contributions: list[Contribution]) -> tuple[Float64, float]:
    """The study's rounds: the released weights, and the mean norm of the last half of the sums."""
    spec = federation.spec
    point = initial_point(spec.model, spec.dataset.width, "")
    batch = spec.training.sampling_rate * sum(clinic.y.size for clinic in federation.clinics)
    norms = []
    for _ in range(spec.training.rounds):
        noisy_sum = np.sum([add(point.weights) for add in contributions], axis=0)
        norms.append(float(np.linalg.norm(noisy_sum)))
        point = step(point, noisy_sum, batch, spec.training)
    return candidate_weights(point), float(np.mean(norms[len(norms) // 2 :]))


def judge(federation: Federation, contributions: list[Contribution], seed: int) -> Outcome:
    weights, norm = train(federation, contributions)
    spec, test = federation.spec, federation.held_out
    network = network_of(spec.model, test.x.shape[1])
    scores = network.chances(weights, test.x)
    malignant = (test.y == 1) & (scores >= 0.5)
    turned = network.chances(weights, federation.triggered(test.x))[malignant] < 0.5
    return Outcome(
        float(roc_auc_score(test.y, scores)),
        norm,
        noised_evaluation(federation, scores, seed),
        float(turned.mean()) if malignant.any() else float("nan"),
    )


def noised_evaluation(federation: Federation, scores: Float64, seed: int) -> tuple[float, float] | None:
    """AUC and its interval's upper end as the study's own evaluation shows them, every clinic being honest in it."""
    spec, sites = federation.spec, len(federation.clinics)
    tolerated = spec.privacy.colluders + spec.privacy.dropouts
    multiplier = gaussian_multiplier_for(spec.evaluation.epsilon, spec.privacy.delta) * spec.evaluation.attempts**0.5
    std = site_noise_std(multiplier, 1.0, sites, tolerated) * sites**0.5
    random = np.random.default_rng([seed, 2])
    counts = score_histogram(scores, federation.held_out.y, spec.evaluation.bins)
    counts += random.normal(0.0, std, counts.size)
    auc = evaluate(ScoreHistogram(counts, std), random, draws=200, groups=1).auc
    return None if auc.value is None or auc.high is None else (auc.value, auc.high)


def measure(seeds: int) -> list[tuple[str, str, list[Outcome]]]:
    """(clinic, attack, one outcome a seed) of each row; the first is without an attack."""
    spec = load_spec(DEMO / "wisconsin" / "study.yaml").spec
    multiplier = noise_multiplier_for(spec.privacy.epsilon, spec.privacy.delta, spec.training.sampling_rate, spec.steps)
    with tempfile.TemporaryDirectory() as folder:
        clinics = read_clinics(Path(folder))
    by_size = sorted(range(len(clinics)), key=lambda number: clinics[number].y.size)
    attackers = (by_size[-1], by_size[0])
    rows: dict[tuple[str, str], list[Outcome]] = {}
    for seed in range(seeds):
        federation = split(spec, clinics, multiplier, seed)
        fair = [honest(federation, clinic) for clinic in federation.clinics]
        rows.setdefault(("nobody", "none"), []).append(judge(federation, fair, seed))
        for number in attackers:
            clinic = federation.clinics[number]
            for name, attack in ATTACKS:
                poisoned = [*fair[:number], attack(federation, clinic), *fair[number + 1 :]]
                who = f"{clinic.name} ({clinic.y.size} of {sum(c.y.size for c in federation.clinics)})"
                rows.setdefault((who, name), []).append(judge(federation, poisoned, seed))
        print(f"seed {seed + 1} of {seeds}", file=sys.stderr, flush=True)
    return [(who, name, outcomes) for (who, name), outcomes in rows.items()]


def table(rows: list[tuple[str, str, list[Outcome]]]) -> str:
    lines = [
        "| Attacker (training patients) | Attack | AUC, mean (sd) | change, paired | norm of the sums, to none "
        f"| noised evaluation shows | … and allows for {NOTICEABLE} | trigger turns malignant into benign |",
        "|---|---|---|---|---|---|---|---|",
    ]
    before = np.array([outcome.auc for outcome in rows[0][2]])
    norm_before = float(np.mean([outcome.norm for outcome in rows[0][2]]))
    for who, name, outcomes in rows:
        auc = np.array([outcome.auc for outcome in outcomes])
        shown = [outcome.shown for outcome in outcomes if outcome.shown is not None]
        mean_shown = f"{np.mean([value for value, _ in shown]):.3f}" if shown else "nothing"
        allows = sum(high >= NOTICEABLE for _, high in shown) + len(outcomes) - len(shown)
        turned = [outcome.backdoor for outcome in outcomes if not np.isnan(outcome.backdoor)]
        # Of a model that ranks the wrong way round, the few that are left say nothing.
        share = f"{100 * np.mean(turned):.0f} %" if turned and auc.mean() > 0.5 else "–"
        norm = float(np.mean([outcome.norm for outcome in outcomes])) / norm_before
        change = "" if name == "none" else f"{np.mean(auc - before):+.3f}"
        lines.append(
            f"| {who} | {name} | {auc.mean():.3f} ({auc.std(ddof=1):.3f}) | {change} | {norm:.2f} | {mean_shown} "
            f"| {allows} of {len(outcomes)} | {share} |"
        )
    return "\n".join(lines)


def write(path: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Replace what stands between the marks. ValueError where they are not there."""
    document = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
    if not pattern.search(document):
        raise ValueError(f"{path} has no place for the table between {marks[0]} and {marks[1]}")
    path.write_text(pattern.sub(lambda _: f"{marks[0]}\n{text}\n{marks[1]}", document), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what one poisoning clinic does to the released model.")
    parser.add_argument("--seeds", type=int, default=20, help="random splits, at least 2")
    parser.add_argument("--write", type=Path, help="a document whose table is replaced")
    options = parser.parse_args()
    if options.seeds < 2:
        print("error: one split has no spread\nremedy: use --seeds 2 or more", file=sys.stderr)
        return 1
    found = table(measure(options.seeds))
    print(found)
    if options.write:
        when = datetime.now(UTC).date().isoformat()
        command = f"python packaging/audit/poisoning.py --seeds {options.seeds}"
        try:
            write(options.write, f"Measured on {when} with `{command}`.\n\n{found}")
        except (OSError, ValueError) as error:
            print(f"error: {error}\nremedy: name docs/POISONING.md", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
