"""A one-run audit of a planned study's own sum: made-up patients, half of them left out by coins, go through the plan's
sampling, clipping, noise, grid and modular sum, and an attacker guesses who was in.

The attacker is the one that the plan's epsilon is for: it colludes with the t sites that the plan tolerates, so their
noise is not in what it sees, and it sees the sum of every step that the noise is calibrated for. In local mode it sees
each private step of one site. A canary is the worst patient that the accounting allows for, of a logistic regression
(`privacy.auditing.canaries`): the study's own model is not in it, since the accounting knows none. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from coordinator.rounds.attempts import grid_of, unmasked_sum
from privacy.auditing.canaries import CanaryRecords
from privacy.auditing.one_run import AuditDesign, AuditResult, audit, best_guesses
from privacy.entropy import Entropy, Float64, KeyStream
from privacy.local.contribution import private_gradient_sum
from privacy.local.network import Network
from privacy.local.patients import Group
from privacy.parameters import Mechanism, plan_grid
from privacy.secagg.field import WIRE
from privacy.secagg.quantization import quantize
from protocol.study import StudyPlan

CANARIES, BLOCK = 4_000, 200


def audit_design(plan: StudyPlan) -> AuditDesign:
    """What is fixed beforehand: the mechanism as it is charged, the epsilon as it is claimed, the number of guesses."""
    spec = plan.spec
    mechanism = Mechanism(plan.noise_multiplier, spec.training.sampling_rate, spec.steps, spec.privacy.delta)
    return AuditDesign(
        mechanism, plan.epsilon, canaries=CANARIES, block=BLOCK, guesses=best_guesses(mechanism, CANARIES)
    )


def audit_blocks() -> int:
    """How many cohorts of canaries one audit takes, each through every step."""
    return CANARIES // BLOCK


def audit_plan(plan: StudyPlan, entropy: Entropy, *, done: Callable[[], None] = lambda: None) -> AuditResult:
    """Audit the plan's sum. done: called after each block of canaries. Raises PrivacyError."""
    design, step = audit_design(plan), _own_step if plan.spec.privacy.mode == "local" else _summed_step
    taken = 0

    def one(records: CanaryRecords) -> Float64:
        nonlocal taken
        noisy = step(plan, records, entropy)
        taken += 1
        if taken % design.mechanism.steps == 0:
            done()
        return noisy

    return audit(design, one, clip=plan.spec.training.clip, stream=KeyStream.fresh(entropy))


def _gradients(group: Group, plan: StudyPlan, noise_std: float, entropy: Entropy) -> Float64:
    model = Network((group.x.shape[1], 1), "logistic")
    training = plan.spec.training
    return private_gradient_sum(
        group, model, np.zeros(model.parameters), clip=training.clip, sampling_rate=training.sampling_rate,
        noise_std=noise_std, entropy=entropy,
    )  # fmt: skip


def _own_step(plan: StudyPlan, records: CanaryRecords, entropy: Entropy) -> Float64:
    group = Group(records.features, records.labels, records.patients.astype(np.int64), records.count)
    return _gradients(group, plan, plan.noise_multiplier * plan.spec.training.clip, entropy)


def _summed_step(plan: StudyPlan, records: CanaryRecords, entropy: Entropy) -> Float64:
    """What is left of the sum of all planned sites for who colludes with as many as are tolerated. A canary belongs to
    one of the others."""
    planned = plan.secure_sum("train", plan.names)
    length = records.features.shape[1] + 1
    planned = planned.model_copy(update={"length": length, "largest_batch": max(planned.largest_batch, records.count)})
    assert planned.noise_multiplier is not None
    std = plan_grid(
        planned.clip, planned.sites, planned.tolerated, planned.largest_batch, planned.noise_multiplier
    ).site_std
    honest = plan.names[: planned.sites - planned.tolerated]
    bodies = {}
    for index, name in enumerate(honest):
        here = records.patients % len(honest) == index
        patients = records.patients[here].astype(np.int64) // len(honest)
        count = len(range(index, records.count, len(honest)))
        group = Group(records.features[here], records.labels[here], patients, count)
        words = quantize(_gradients(group, plan, std, entropy), grid_of(planned), KeyStream.fresh(entropy))
        bodies[name] = words.astype(WIRE, copy=False).tobytes()
    return unmasked_sum(planned, honest, bodies)
