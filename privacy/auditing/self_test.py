"""Does the engine on this machine keep its promise? Made-up patients through the private step itself, in seconds.

Two audits with one run of canaries (`one_run`) and three checks of what such an audit cannot see:

- `noise-and-clip`: everybody sampled, one step. Noise half of what was charged, or patients of twice the clip, are seen
  with a power above 0.99.
- `sampling`: 40 steps at q = 1/4. No sub-sampling, or a factor of three, is seen with a power above 0.99.
- `noise-spread`: the spread of the noise on a step of nobody, within 6 %, and never the same noise twice; of both
  families, since torch draws its own.
- `clip-bound`: the weight of one patient of many records is the clip and no more.
- `networks`: the same of a network that goes through torch, and the sum over patients is the sum of each alone.

No patient is in it, so what it finds may be told. It proves nothing about an attacker who can replace this code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from privacy.auditing.canaries import CanaryRecords
from privacy.auditing.checks import CHECKS, Check
from privacy.auditing.one_run import AT_EPSILON_ONE, AuditDesign, audit
from privacy.entropy import Entropy, Float64, KeyStream
from privacy.local.contribution import private_gradient_sum
from privacy.local.model import CPU, Hardware, LocalModel
from privacy.local.patients import Group
from privacy.parameters import Mechanism

CLIP = 0.25
NOISE_AND_CLIP = AuditDesign(Mechanism(noise_multiplier=3.7307, sampling_rate=1.0, steps=1, delta=1e-5), epsilon=1.0)
"""Calibrated to epsilon 1; a test says so."""
SAMPLING = replace(AT_EPSILON_ONE, canaries=8_000, block=100, guesses=400)
SPREAD_COUNT = 20_000
SPREAD_MARGIN = 0.06
"""Twelve standard errors of the spread of so many draws: sound noise never fails, a tenth too little always does."""
_TINY = 1e-12
_WIDTH = 8

Family = Callable[[int], LocalModel]
"""From a record's width to a model of it."""


def self_test(linear: Family, network: Family, entropy: Entropy, hardware: Hardware = CPU) -> tuple[Check, ...]:
    """All CHECKS in order. linear: a logistic regression; network: one that trains through torch. What the engine
    raises is not caught: an engine that fails here has not passed."""
    step, in_torch = _Step(linear, entropy, hardware), _Step(network, entropy, hardware)
    return (
        _audited(CHECKS[0], NOISE_AND_CLIP, step),
        _audited(CHECKS[1], SAMPLING, step),
        _noise_spread(step, in_torch),
        _clip_bound(CHECKS[3], step, 1e-9),
        _networks(in_torch),
    )


@dataclass(frozen=True)
class _Step:
    """The private step that sites take, at a model of zeros, or at `parameters`."""

    family: Family
    entropy: Entropy
    hardware: Hardware

    def __call__(self, group: Group, rate: float, std: float, parameters: Float64 | None = None) -> Float64:
        model = self.family(group.x.shape[1])
        return private_gradient_sum(
            group,
            model,
            np.zeros(model.parameters) if parameters is None else parameters,
            clip=CLIP,
            sampling_rate=rate,
            noise_std=std,
            entropy=self.entropy,
            hardware=self.hardware,
        )


def _audited(name: str, design: AuditDesign, step: _Step) -> Check:
    def canary_step(records: CanaryRecords) -> Float64:
        group = Group(records.features, records.labels, records.patients.astype(np.int64), records.count)
        return step(group, design.mechanism.sampling_rate, design.mechanism.noise_multiplier * CLIP)

    found = audit(design, canary_step, clip=CLIP, stream=KeyStream.fresh(step.entropy))
    # What is shown is the p-value: small where the promise is refuted.
    return Check(name, found.passes, found.p_value if found.ran else 0.0, 1 - design.confidence)


def _noise_spread(*steps: _Step) -> Check:
    nobody = Group(np.zeros((0, SPREAD_COUNT)), np.zeros(0), np.zeros(0, dtype=np.int64), 0)
    off = 0.0
    for step in steps:
        first, second = step(nobody, 1.0, CLIP), step(nobody, 1.0, CLIP)
        # The difference of two draws is sqrt(2) of one; the same draw twice has none.
        apart = float((first - second).std()) / math.sqrt(2) / CLIP
        off = max(off, abs(float(first.std()) / CLIP - 1), abs(apart - 1))
    return Check(CHECKS[2], off <= SPREAD_MARGIN, off, SPREAD_MARGIN)


def _made_up(entropy: Entropy, patients: int, records: int) -> Group:
    random = np.random.default_rng(int.from_bytes(entropy(16), "big"))
    x = random.normal(size=(patients * records, _WIDTH)) * 10.0
    y = random.integers(0, 2, patients * records).astype(np.float64)
    return Group(x, y, np.repeat(np.arange(patients), records), patients)


def _clip_bound(name: str, step: _Step, margin: float, parameters: Float64 | None = None) -> Check:
    one = _made_up(step.entropy, 1, 5)
    weight = float(np.linalg.norm(step(one, 1.0, _TINY, parameters))) / CLIP
    return Check(name, weight <= 1 + margin, weight, 1 + margin)


def _networks(step: _Step) -> Check:
    """The larger of: what one patient weighs beyond the clip, and how far the sum is from the patients' own."""
    width = step.family(_WIDTH).parameters
    random = np.random.default_rng(int.from_bytes(step.entropy(16), "big"))
    parameters: Float64 = random.normal(size=width) * 0.3
    weight = _clip_bound(CHECKS[4], step, 1e-4, parameters).measured
    several = _made_up(step.entropy, 6, 3)
    whole = step(several, 1.0, _TINY, parameters)
    alone = sum(step(several.block(number, 1), 1.0, _TINY, parameters) for number in range(several.patients))
    off = max(weight - 1, float(np.linalg.norm(whole - alone)) / CLIP)
    return Check(CHECKS[4], off <= 1e-3, off, 1e-3)
