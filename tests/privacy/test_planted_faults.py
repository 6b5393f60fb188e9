"""A fault for every way in which privacy code goes wrong silently, and what catches it.

The table FAULTS is the record: each fault is planted in the product's own modules, and its catcher, which passes on the
product as it is, must fail. Catchers are audits (one run of canaries) or the named tests of test_auditing_mechanism;
BLIND says of some faults that the audit does not see them, which is why they have a test of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from sqlmodel import select

from privacy import parameters
from privacy.auditing.canaries import CanaryRecords
from privacy.auditing.one_run import AT_EPSILON_ONE, AuditDesign, audit
from privacy.dpsgd.clipping import clip_gradients
from privacy.dpsgd.per_patient import average_by_patient
from privacy.dpsgd.step import PrivateSum
from privacy.entropy import Float64, KeyStream
from privacy.local import contribution, network, patients
from privacy.local.contribution import private_gradient_sum
from privacy.local.patients import Cohort, Group
from privacy.parameters import Mechanism
from protocol.study import StudySpec
from site_agent.database import transaction
from site_agent.training.architectures.catalogue import local_model
from site_agent.training.budget_store import BudgetStore
from site_agent.training.tables import CohortCharge
from tests.privacy import test_auditing_mechanism as mechanism
from tests.privacy.test_auditing_mechanism import CLIP, LOGISTIC, entropy_of

Plant = Callable[[pytest.MonkeyPatch], None]
Catcher = Callable[[], None]

# 8,000 canaries see a factor of 3 with a power above 0.99, in a fifth of the time that 40,000 need for a factor of 2.
QUICK = replace(AT_EPSILON_ONE, canaries=8_000, block=100, guesses=400)
MANY_RECORDS = replace(QUICK, canaries=4_000, block=50, guesses=200, records=6)
AT_EPSILON_EIGHT = AuditDesign(
    Mechanism(noise_multiplier=1.2346, sampling_rate=0.25, steps=40, delta=1e-5),
    epsilon=8.0,
    canaries=8_000,
    block=100,
    guesses=400,
)


def run_audit(design: AuditDesign, sites: int = 1, tolerated: int = 0) -> None:
    """The product's step under the design; with several sites, the canaries are at the first and the sum is seen."""
    entropy = entropy_of("audit")
    std = parameters.site_noise_std(design.mechanism.noise_multiplier, CLIP, sites, tolerated)

    def step(records: CanaryRecords) -> Float64:
        group = Group(records.features, records.labels, records.patients.astype(np.int64), records.count)
        nobody = Group(np.zeros((0, records.count)), np.zeros(0), np.zeros(0, dtype=np.int64), 0)
        sums = [
            private_gradient_sum(
                here,
                local_model(LOGISTIC, records.count),
                np.zeros(records.count + 1),
                clip=CLIP,
                sampling_rate=design.mechanism.sampling_rate,
                noise_std=std,
                entropy=entropy,
            )
            for here in [group, *[nobody] * (sites - 1)]
        ]
        return np.sum(sums, axis=0)

    result = audit(design, step, clip=CLIP, stream=KeyStream.fresh(entropy_of("coins")))
    assert result.ran, result.reason
    assert result.passes, f"{result.correct} of {design.guesses} guesses right: epsilon over {result.epsilon_lower}"


def audit_of_a_factor_of_two() -> None:
    run_audit(AT_EPSILON_ONE)


def audit_of_a_factor_of_three() -> None:
    run_audit(QUICK)


def audit_of_patients_with_many_records() -> None:
    run_audit(MANY_RECORDS)


def audit_at_epsilon_eight() -> None:
    run_audit(AT_EPSILON_EIGHT)


def audit_of_the_sum_over_four_sites() -> None:
    run_audit(replace(QUICK, canaries=4_000), sites=4, tolerated=1)


# Faults


def sample_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(contribution, "poisson_sample", lambda n, q, stream: np.ones(n, dtype=bool))


def half_the_noise(patch: pytest.MonkeyPatch) -> None:
    true = contribution.add_gaussian
    patch.setattr(contribution, "add_gaussian", lambda values, std, stream: true(values, std / 2, stream))


def twice_the_clip(patch: pytest.MonkeyPatch) -> None:
    true = network.clipped_sum
    patch.setattr(network, "clipped_sum", lambda gradients, clip: true(gradients, 2 * clip))


def thrice_the_clip(patch: pytest.MonkeyPatch) -> None:
    true = network.clipped_sum
    patch.setattr(network, "clipped_sum", lambda gradients, clip: true(gradients, 3 * clip))


def no_clip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network, "clipped_sum", lambda gradients, clip: PrivateSum(gradients.sum(axis=0), clip, 0, None))


def third_of_four_sites_without_noise(patch: pytest.MonkeyPatch) -> None:
    true, calls = contribution.add_gaussian, iter(range(1 << 40))

    def skipping(values: Float64, std: float, stream: KeyStream) -> None:
        if next(calls) % 4 != 2:
            true(values, std, stream)

    patch.setattr(contribution, "add_gaussian", skipping)


def noise_from_a_fixed_seed(patch: pytest.MonkeyPatch) -> None:
    def seeded(values: Float64, std: float, stream: KeyStream) -> None:
        values += np.random.default_rng(1234).normal(0.0, std, values.size)

    patch.setattr(contribution, "add_gaussian", seeded)


def noise_from_a_general_purpose_generator(patch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(99)  # goes on from call to call: every test of the distribution passes

    def drawn(values: Float64, std: float, stream: KeyStream) -> None:
        values += random.normal(0.0, std, values.size)

    patch.setattr(contribution, "add_gaussian", drawn)


def sample_rows(patch: pytest.MonkeyPatch) -> None:
    random, rates = np.random.default_rng(5), []

    def remember(n: int, q: float, stream: KeyStream) -> np.ndarray:
        rates.append(q)
        return np.ones(n, dtype=bool)

    def rows(self: Group, chosen: np.ndarray) -> Group:
        kept = random.random(self.y.size) < rates[-1]
        return Group(self.x[kept], self.y[kept], self.patient[kept], self.patients)

    patch.setattr(contribution, "poisson_sample", remember)
    patch.setattr(patients.Group, "select", rows)


def divide_by_the_actual_batch(patch: pytest.MonkeyPatch) -> None:
    true = network.clipped_sum

    def mean(gradients: Float64, clip: float) -> PrivateSum:
        found = true(gradients, clip)
        return replace(found, total=found.total / max(1, len(gradients)))

    patch.setattr(network, "clipped_sum", mean)


def _rows(weights: Float64, x: Float64, y: Float64) -> Float64:
    inputs = np.c_[x, np.ones(len(x))]
    return (1 / (1 + np.exp(-inputs @ weights)) - y)[:, np.newaxis] * inputs


def average_after_the_clip(patch: pytest.MonkeyPatch) -> None:
    def late(weights: Float64, x: Float64, y: Float64, owners: Any, count: int) -> Float64:
        return average_by_patient(clip_gradients(_rows(weights, x, y), CLIP).gradients, owners, count)

    patch.setattr(network, "logistic_gradients", late)


def clip_each_record(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network, "logistic_gradients", lambda weights, x, y, owners, count: _rows(weights, x, y))


def round_before_the_noise(patch: pytest.MonkeyPatch) -> None:
    true = network.clipped_sum
    step = parameters.plan_grid(CLIP, 4, 1, 600, 6.13).granularity

    def rounded(gradients: Float64, clip: float) -> PrivateSum:
        found = true(gradients, clip)
        return replace(found, total=np.round(found.total / step) * step)

    patch.setattr(network, "clipped_sum", rounded)


def share_for_all_sites(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(parameters, "site_noise_multiplier", lambda sigma, sites, tolerated: sigma / sites**0.5)


def train_on_held_out_patients(patch: pytest.MonkeyPatch) -> None:
    def everybody(x: Float64, y: Float64, patient: np.ndarray, held_out: np.ndarray) -> Cohort:
        whole = Group(x, y, patient, held_out.size)
        return Cohort(whole, whole.select(held_out))

    patch.setattr(patients, "part", everybody)


def no_noise_on_an_empty_sample(patch: pytest.MonkeyPatch) -> None:
    true = contribution.add_gaussian

    def skipping(values: Float64, std: float, stream: KeyStream) -> None:
        if values.any():
            true(values, std, stream)

    patch.setattr(contribution, "add_gaussian", skipping)


def charge_every_other_step(patch: pytest.MonkeyPatch) -> None:
    true, calls = BudgetStore.consume, iter(range(1 << 40))

    def forgetful(self: BudgetStore, key: Any, *, plan_digest: str, **others: Any) -> bytes | None:
        answer = true(self, key, plan_digest=plan_digest, **others)
        if next(calls) % 2:
            with transaction(self._engine) as session:
                for line in session.exec(select(CohortCharge).where(CohortCharge.plan_digest == plan_digest)):
                    line.steps_charged -= 1
                    session.add(line)
        return answer

    patch.setattr(BudgetStore, "consume", forgetful)


def forget_the_retries(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StudySpec, "steps", property(lambda self: self.training.rounds))


@dataclass(frozen=True)
class Fault:
    """What is wrong, how it is planted, what catches it."""

    what: str
    plant: Plant
    catcher: Catcher


FAULTS = (
    # seen by one run of canaries
    Fault("no sub-sampling", sample_everybody, audit_of_a_factor_of_three),
    Fault("half of the noise", half_the_noise, audit_of_a_factor_of_two),
    Fault("clip three times too large", thrice_the_clip, audit_of_a_factor_of_three),
    Fault("no clip", no_clip, audit_of_a_factor_of_three),
    Fault("rows sampled instead of patients", sample_rows, audit_of_patients_with_many_records),
    Fault("each record clipped and summed", clip_each_record, audit_of_patients_with_many_records),
    # seen by a named test
    Fault(
        "one site's missing noise",
        third_of_four_sites_without_noise,
        mechanism.test_every_site_adds_its_own_share_of_the_noise,
    ),
    Fault("half of the noise at epsilon 8", half_the_noise, mechanism.test_the_noise_has_the_planned_variance),
    Fault(
        "noise from a fixed seed", noise_from_a_fixed_seed, mechanism.test_noise_follows_fresh_entropy_and_nothing_else
    ),
    Fault(
        "noise from a general-purpose generator",
        noise_from_a_general_purpose_generator,
        mechanism.test_noise_follows_fresh_entropy_and_nothing_else,
    ),
    Fault(
        "rows sampled instead of patients, by counting",
        sample_rows,
        mechanism.test_patients_are_sampled_at_the_planned_rate_however_many_records_they_have,
    ),
    Fault(
        "division by the actual batch",
        divide_by_the_actual_batch,
        mechanism.test_one_patient_counts_the_same_among_few_and_among_many,
    ),
    Fault(
        "records averaged only after the clip",
        average_after_the_clip,
        mechanism.test_records_are_averaged_before_the_clip,
    ),
    Fault(
        "clip twice too large",
        twice_the_clip,
        mechanism.test_one_patient_weighs_its_clipped_gradient_and_no_more,
    ),
    Fault(
        "rounding before the noise",
        round_before_the_noise,
        mechanism.test_one_patient_weighs_its_clipped_gradient_and_no_more,
    ),
    Fault(
        "noise share of K sites instead of K - t",
        share_for_all_sites,
        mechanism.test_the_sites_that_are_left_carry_the_charged_noise,
    ),
    Fault(
        "held-out patients in training", train_on_held_out_patients, mechanism.test_held_out_patients_never_enter_a_sum
    ),
    Fault(
        "an empty batch without noise",
        no_noise_on_an_empty_sample,
        mechanism.test_an_empty_sample_is_noised_like_any_other,
    ),
    Fault(
        "steps under-counted in the ledger", charge_every_other_step, mechanism.test_the_ledger_counts_every_noisy_step
    ),
    Fault(
        "steps under-counted in the calibration",
        forget_the_retries,
        mechanism.test_noise_is_calibrated_for_every_step_that_may_run,
    ),
)

BLIND = (
    Fault("one site's missing noise", third_of_four_sites_without_noise, audit_of_the_sum_over_four_sites),
    Fault("half of the noise at epsilon 8", half_the_noise, audit_at_epsilon_eight),
    Fault("noise from a fixed seed", noise_from_a_fixed_seed, audit_of_a_factor_of_three),
    Fault("records averaged only after the clip", average_after_the_clip, audit_of_patients_with_many_records),
)


@cache
def passes_on_the_product(catcher: Catcher) -> bool:
    catcher()
    return True


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.what}: {fault.catcher.__name__}")
def test_the_fault_is_caught(fault: Fault) -> None:
    assert passes_on_the_product(fault.catcher)
    with pytest.MonkeyPatch.context() as patch:
        fault.plant(patch)
        with pytest.raises(AssertionError):
            fault.catcher()
    # Nothing of the fault is left behind.
    if fault.catcher.__module__ == mechanism.__name__:
        fault.catcher()


@pytest.mark.parametrize("fault", BLIND, ids=lambda fault: fault.what)
def test_the_audit_does_not_see_what_it_is_said_not_to_see(fault: Fault) -> None:
    """Should it ever, the fault may move to the audits' part of the table."""
    with pytest.MonkeyPatch.context() as patch:
        fault.plant(patch)
        fault.catcher()
    assert any(entry.what == fault.what and entry.catcher is not fault.catcher for entry in FAULTS)


def test_the_audits_state_their_power() -> None:
    assert AT_EPSILON_ONE.power(2.0) > 0.99
    assert QUICK.power(3.0) > 0.99
    assert QUICK.power(2.0) < 0.65
    assert AT_EPSILON_EIGHT.power(2.0) < 0.05
