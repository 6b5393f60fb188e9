"""The engine's self-test: sound as it is, and each of its checks fails on the fault that it is there for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privacy.accounting.calibration import noise_multiplier_for
from privacy.auditing.checks import CHECKS
from privacy.auditing.self_test import NOISE_AND_CLIP, SAMPLING, Check, self_test
from privacy.dpsgd.tensor_noise import TensorNoise
from privacy.entropy import Float64, KeyStream
from privacy.local import contribution, network
from privacy.local.model import CPU, Hardware
from privacy.local.network import Network
from privacy.local.patients import Group
from privacy.local.torch_model import TorchModel

Plant = Callable[[pytest.MonkeyPatch], None]


def engine_checks() -> dict[str, Check]:
    checks = self_test(
        lambda width: Network((width, 1), "logistic"), lambda width: Network((width, 8, 1), "logistic"), os.urandom
    )
    assert tuple(check.name for check in checks) == CHECKS
    return {check.name: check for check in checks}


def half_the_noise(patch: pytest.MonkeyPatch) -> None:
    true = contribution.add_gaussian
    patch.setattr(contribution, "add_gaussian", lambda values, std, stream: true(values, std / 2, stream))


def half_the_noise_in_torch(patch: pytest.MonkeyPatch) -> None:
    true = TensorNoise.add_
    patch.setattr(TensorNoise, "add_", lambda self, values, std: true(self, values, std / 2))


def the_same_noise_again(patch: pytest.MonkeyPatch) -> None:
    def seeded(values: Float64, std: float, stream: KeyStream) -> None:
        values += np.random.default_rng(1234).normal(0.0, std, values.size)

    patch.setattr(contribution, "add_gaussian", seeded)


def everybody_sampled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(contribution, "poisson_sample", lambda n, q, stream: np.ones(n, dtype=bool))


def twice_the_clip(patch: pytest.MonkeyPatch) -> None:
    true = network.clipped_sum
    patch.setattr(network, "clipped_sum", lambda gradients, clip: true(gradients, 2 * clip))


def twice_the_clip_in_torch(patch: pytest.MonkeyPatch) -> None:
    true = TorchModel.gradient_sum

    def doubled(self: TorchModel, parameters: Float64, group: Group, clip: float, hardware: Hardware = CPU) -> Float64:
        return true(self, parameters, group, 2 * clip, hardware)

    patch.setattr(TorchModel, "gradient_sum", doubled)


def a_mean_for_a_sum_in_torch(patch: pytest.MonkeyPatch) -> None:
    true = TorchModel.gradient_sum

    def mean(self: TorchModel, parameters: Float64, group: Group, clip: float, hardware: Hardware = CPU) -> Float64:
        return true(self, parameters, group, clip, hardware) / max(1, group.patients)

    patch.setattr(TorchModel, "gradient_sum", mean)


def test_the_engine_passes_and_its_audits_have_power() -> None:
    assert all(check.passed for check in engine_checks().values())
    assert NOISE_AND_CLIP.power(2.0) > 0.99
    assert SAMPLING.power(3.0) > 0.99
    assert max(NOISE_AND_CLIP.power(1.0), SAMPLING.power(1.0)) < 1e-6
    for design in (NOISE_AND_CLIP, replace(SAMPLING)):
        charged = design.mechanism
        calibrated = noise_multiplier_for(design.epsilon, charged.delta, charged.sampling_rate, charged.steps)
        assert charged.noise_multiplier == pytest.approx(calibrated, rel=1e-3)


@pytest.mark.parametrize(
    ("plant", "caught"),
    [
        (half_the_noise, {"noise-and-clip", "noise-spread"}),
        (half_the_noise_in_torch, {"noise-spread"}),
        (the_same_noise_again, {"noise-spread"}),
        (everybody_sampled, {"sampling"}),
        (twice_the_clip, {"noise-and-clip", "clip-bound"}),
        (twice_the_clip_in_torch, {"networks"}),
        (a_mean_for_a_sum_in_torch, {"networks"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_fault_fails_its_check(plant: Plant, caught: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    found = engine_checks()
    assert caught <= {name for name, check in found.items() if not check.passed}
