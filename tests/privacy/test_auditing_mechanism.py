"""What one run of canaries cannot see, checked outright: variance, clip, share, sampling, charges.

Each test takes no argument and reads the product through its modules, so that test_planted_faults can break the product
and call it again.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np

from coordinator.studies.plan import calibrate
from privacy import parameters
from privacy.accounting.epsilon import epsilon
from privacy.entropy import Float64
from privacy.local import patients
from privacy.local.contribution import private_gradient_sum
from privacy.local.patients import Group
from privacy.parameters import Mechanism
from protocol.model import LogisticRegression
from site_agent.database import create_database
from site_agent.training.architectures.catalogue import local_model
from site_agent.training.budget_store import BudgetStore
from tests.simulator.federation import study_spec
from tests.site_agent.test_budget_store import add_snapshot, charged, consume, grant, train
from tests.tested_engine import mark_tested

LOGISTIC = LogisticRegression(architecture="logistic_regression")
CLIP = 0.25
TINY = 1e-13
MULTIPLIERS = (6.1301, 1.2346)
"""Of 40 steps at q = 1/4: epsilon 1, and 8."""

Entropy = Callable[[int], bytes]


def entropy_of(seed: object) -> Entropy:
    """Repeatable bytes, for comparing two computations."""
    counter = iter(range(1 << 30))
    return lambda n: hashlib.shake_256(f"{seed}/{next(counter)}".encode()).digest(n)


def cohort(seed: int, count: int = 30, width: int = 12, records: int = 1) -> Group:
    """Patients with `records` records each, whose gradients at the model of zeros lie around the clip."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count * records, width)) / math.sqrt(width) * random.uniform(0.2, 2.0, (count * records, 1))
    y = random.integers(0, 2, count * records).astype(np.float64)
    return Group(x, y, np.repeat(np.arange(count), records), count)


def total(group: Group, *, entropy: Entropy, rate: float = 1.0, std: float = TINY) -> Float64:
    """The site's own step at the model of zeros: (width + 1,)."""
    return private_gradient_sum(
        group,
        local_model(LOGISTIC, group.x.shape[1]),
        np.zeros(group.x.shape[1] + 1),
        clip=CLIP,
        sampling_rate=rate,
        noise_std=std,
        entropy=entropy,
    )


def by_hand(group: Group) -> Float64:
    """(patients, width + 1): each patient's clipped gradient, record by record."""
    rows = []
    for number in range(group.patients):
        mine = group.patient == number
        x = np.c_[group.x[mine], np.ones(mine.sum())]
        gradient = ((0.5 - group.y[mine])[:, np.newaxis] * x).mean(axis=0)
        rows.append(gradient * min(1.0, CLIP / np.linalg.norm(gradient)))
    return np.array(rows)


def test_the_noise_has_the_planned_variance() -> None:
    for multiplier in MULTIPLIERS:
        group = cohort(1, width=6000)
        noise = total(group, entropy=entropy_of(multiplier), std=multiplier * CLIP) - by_hand(group).sum(axis=0)
        # 6001 draws: five standard errors of the variance are 9 %.
        assert abs(noise.var() / (multiplier * CLIP) ** 2 - 1) < 0.09


def test_every_site_adds_its_own_share_of_the_noise() -> None:
    sites, tolerated, multiplier = 4, 1, MULTIPLIERS[0]
    std = parameters.site_noise_std(multiplier, CLIP, sites, tolerated)
    for site in range(sites):
        group = cohort(10 + site, width=6000)
        noise = total(group, entropy=entropy_of(site), std=std) - by_hand(group).sum(axis=0)
        assert abs(noise.var() / std**2 - 1) < 0.09, f"site {site}"


def test_the_sites_that_are_left_carry_the_charged_noise() -> None:
    """With t of K sites absent, or subtracting their own noise, the others still add up to sigma C."""
    for sites in range(3, 20):
        for tolerated in range(1, sites - 1):
            std = parameters.site_noise_std(2.0, CLIP, sites, tolerated)
            assert (sites - tolerated) * std**2 >= (2.0 * CLIP) ** 2 * (1 - 1e-12)
            planned = parameters.plan_grid(CLIP, sites, tolerated, 1000, 2.0)
            assert planned.site_std >= std * (1 - 1e-12)


def test_one_patient_weighs_its_clipped_gradient_and_no_more() -> None:
    """Before the noise the sum is exact: sensitivity is the clip, with nothing rounded or scaled on the way."""
    for seed in range(20):
        group = cohort(seed, records=3)
        exact = by_hand(group)
        whole = total(group, entropy=entropy_of(seed))
        np.testing.assert_allclose(whole, exact.sum(axis=0), rtol=0, atol=1e-8)
        for one in (0, 7):
            left = group.select(np.arange(group.patients) != one)
            moved = whole - total(left, entropy=entropy_of(seed))
            assert np.linalg.norm(moved) <= CLIP * (1 + 1e-9)


def test_one_patient_counts_the_same_among_few_and_among_many() -> None:
    """The sum is never divided by the batch that happened to be drawn."""
    one = cohort(3, count=1)
    for count in (2, 40, 300):
        crowd = cohort(4, count=count)
        together = Group(np.r_[one.x, crowd.x], np.r_[one.y, crowd.y], np.arange(count + 1), count + 1)
        moved = total(together, entropy=entropy_of(1)) - total(crowd, entropy=entropy_of(2))
        np.testing.assert_allclose(moved, by_hand(one)[0], rtol=0, atol=1e-8)


def test_records_are_averaged_before_the_clip() -> None:
    """One record far over the clip, one small and opposed: clipping them apart gives another direction."""
    group = Group(np.array([[100.0, 0.0], [0.0, 1.0]]), np.array([1.0, 0.0]), np.array([0, 0]), 1)
    mean = np.array([-50.0, 0.5, 0.0]) / 2
    expected = mean * CLIP / np.linalg.norm(mean)
    np.testing.assert_allclose(total(group, entropy=entropy_of(1)), expected, rtol=0, atol=1e-8)


def test_patients_are_sampled_at_the_planned_rate_however_many_records_they_have() -> None:
    for records in (1, 8):
        group = cohort(5, count=400, records=records)
        # Equal records with a gradient on the intercept beyond the clip: the sum counts the sample.
        group = Group(np.zeros_like(group.x), np.ones(400 * records), group.patient, 400)
        drawn = [-total(group, rate=0.25, entropy=entropy_of(number))[-1] / CLIP for number in range(60)]
        assert abs(np.mean(drawn) - 100) < 5 * math.sqrt(400 * 0.25 * 0.75 / 60)
        assert 5 < np.std(drawn) < 13  # binomial: 8.7


def test_noise_follows_fresh_entropy_and_nothing_else() -> None:
    """Repeatable from the same bytes, so nothing else is drawn on; different from others in every coordinate."""
    group = cohort(6)
    asked: list[int] = []

    def counted(entropy: Entropy) -> Entropy:
        def draw(count: int) -> bytes:
            asked.append(count)
            return entropy(count)

        return draw

    first, again, other = (total(group, std=1.0, entropy=counted(entropy_of(seed))) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert (first != other).all()
    assert abs(np.corrcoef(first - by_hand(group).sum(0), other - by_hand(group).sum(0))[0, 1]) < 0.95
    assert asked == [32] * 6  # a seed for the sample and one for the noise, each time


def test_an_empty_sample_is_noised_like_any_other() -> None:
    nobody = Group(np.zeros((0, 6000)), np.zeros(0), np.zeros(0, dtype=np.int64), 0)
    unlucky = cohort(7, width=6000)
    for group, rate in ((nobody, 0.25), (unlucky, 1e-12)):
        noise = total(group, rate=rate, std=1.5, entropy=entropy_of(8))
        assert abs(noise.var() / 1.5**2 - 1) < 0.09


def test_held_out_patients_never_enter_a_sum() -> None:
    group = cohort(9, records=2)
    held_out = np.arange(group.patients) % 3 == 0
    training = patients.part(group.x, group.y, group.patient, held_out).training
    expected = by_hand(group)[~held_out].sum(axis=0)
    np.testing.assert_allclose(total(training, entropy=entropy_of(1)), expected, rtol=0, atol=1e-8)


def test_the_ledger_counts_every_noisy_step() -> None:
    """Steps that were computed against steps that are charged, counted apart."""
    with tempfile.TemporaryDirectory() as folder:
        engine = create_database(Path(folder) / "site.db")
        mark_tested(engine)
        plan = grant(engine, "study-a", add_snapshot(engine, "one", range(30)), (train(steps=7),))
        store, computed = BudgetStore(engine), 0
        for number in range(1, 6):
            if consume(store, plan, number) is None:
                total(cohort(number), rate=0.25, std=1.0, entropy=entropy_of(number))
                computed += 1
        assert computed == 5
        assert charged(engine) == computed
        engine.dispose()


def test_noise_is_calibrated_for_every_step_that_may_run() -> None:
    spec = study_spec()
    sigma = calibrate(spec, 4).noise_multiplier
    steps = spec.training.rounds + spec.privacy.retries
    assert epsilon(Mechanism(sigma, spec.training.sampling_rate, steps, spec.privacy.delta)) <= spec.privacy.epsilon


def test_two_sites_noises_are_unrelated() -> None:
    draws = [total(cohort(1, width=4000), std=50.0, entropy=entropy_of(site)) for site in range(3)]
    for one, other in combinations(draws, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.08  # five standard errors
