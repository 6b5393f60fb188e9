"""Noise on a grid: exact arithmetic, the noise's law, the sensitivity that is charged, and Mironov's attack."""

from __future__ import annotations

import math
import os
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn import functional

from privacy.dpsgd.noise import add_gaussian
from privacy.dpsgd.noise_grid import MOST_PRICE, REACH, NoiseGrid, noise_grid
from privacy.dpsgd.private_gradients import PrivateGradients
from privacy.dpsgd.tensor_noise import BLOCK_AHEAD, CHUNK_AHEAD, NoiseAhead, TensorNoise
from privacy.entropy import KeyStream
from privacy.errors import ParameterError
from privacy.local.contribution import private_gradient_sum
from privacy.local.model import LocalModel
from privacy.local.network import Network
from privacy.local.patients import Group
from privacy.local.torch_model import TorchModel

torch.set_num_threads(1)
SEED = bytes(range(32))


def grid_of(length: int, clip: float, std: float, dtype: type = np.float32) -> NoiseGrid:
    grid = noise_grid(length, clip, std, dtype)
    assert grid is not None
    return grid


def noised(values: np.ndarray, std: float, grid: NoiseGrid, seed: bytes = SEED) -> np.ndarray:
    """float32 values as the drawing thread noises them."""
    out = torch.from_numpy(values.astype(np.float32))
    with NoiseAhead(out.numel(), std, KeyStream(seed), grid) as ahead:
        ahead.add_(out)
    return out.numpy()


def awkward(count: int, grid: NoiseGrid, random: np.random.Generator) -> np.ndarray:
    """Ties, neighbours of ties, zeros of both signs, subnormals, far beyond the noise and beyond 2^24 steps."""
    whole = random.integers(-(1 << 22), 1 << 22, count)
    halves = ((whole + 0.5) * grid.step).astype(np.float32)
    parts = [
        halves,
        np.nextafter(halves, np.float32(np.inf)),
        np.nextafter(halves, np.float32(-np.inf)),
        np.array([0.0, -0.0, 1e-42, -1e-42, grid.step / 2, -grid.step / 2], dtype=np.float32),
        (random.normal(size=count) * grid.step * 2.0**26).astype(np.float32),
        (random.normal(size=count) * 1e6).astype(np.float32),
        random.normal(size=count).astype(np.float32),
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize(("clip", "std"), [(1.0, 1.0), (0.37, 0.9), (1e-3, 2e-2), (50.0, 11.0)])
def test_every_result_is_the_exact_rational_sum_rounded_once_and_lies_on_the_grid(clip: float, std: float) -> None:
    random = np.random.default_rng(1)
    values = awkward(400, grid_of(3000, clip, std), random)
    grid = grid_of(values.size, clip, std)
    result = noised(values, std, grid)

    draws = torch.empty(BLOCK_AHEAD // values.size * values.size, dtype=torch.float64)
    TensorNoise(KeyStream(SEED), CHUNK_AHEAD).fill_(draws, std / grid.step)
    step, beyond = Fraction(grid.step), 0
    for x, draw, out in zip(values.tolist(), draws.tolist(), result.tolist(), strict=False):
        steps = round(Fraction(x) / step) + round(Fraction(draw))
        assert (Fraction(out) / step).denominator == 1
        if abs(steps) <= 1 << 24:
            assert Fraction(out) == steps * step
        else:
            beyond += 1
            assert Fraction(out) == Fraction(float(np.float32(steps))) * step
    assert beyond > 100


def test_the_largest_draws_are_exact_in_float32() -> None:
    class Ends(KeyStream):
        def __init__(self, word: int) -> None:
            super().__init__(SEED)
            self._word = word

        def fill(self, buffer: np.ndarray) -> None:
            buffer[:] = self._word

    for std in (1.0, 0.9, 1.7, 8 / REACH, 7.3e-5):
        grid = grid_of(4, std, std)
        exact, kept = torch.empty(4, dtype=torch.float64), torch.empty(4)
        TensorNoise(Ends(0)).fill_(exact, std / grid.step)
        TensorNoise(Ends(0)).fill_on_grid_(kept, std, grid)
        assert float(exact.abs().max()) > 0.9 * 8.5 * std / grid.step
        assert float(exact.abs().max()) < REACH * std / grid.step <= 2**24
        assert torch.equal(kept.double(), exact.round() * grid.step)


def test_the_noise_is_a_rounded_gaussian() -> None:
    # A step of half a standard deviation, to see the cells; a float32 sum's own is a millionth.
    grid, std = NoiseGrid(0.5, 0.9, 1.0), 1.0
    for values in (np.zeros(300_000, dtype=np.float32), np.full(300_000, 3.2, dtype=np.float32)):
        steps = np.rint(noised(values, std, grid) / grid.step) - np.rint(values / np.float32(grid.step))
        edges = (np.arange(-8, 9) - 0.5) * grid.step / std
        expected = np.diff(np.concatenate([[0.0], stats.norm.cdf(edges), [1.0]]))
        counts = np.bincount((np.clip(steps, -9, 8) + 9).astype(int), minlength=18)
        assert stats.chisquare(counts, expected * steps.size).pvalue > 1e-3
    fine = noised(np.zeros(300_000, dtype=np.float32), 2.5, grid_of(300_000, 1.0, 2.5))
    assert stats.kstest(fine / 2.5, "norm").pvalue > 1e-3


def distance(x: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(x.astype(np.float64) - other.astype(np.float64)))


def rounded(values: np.ndarray, grid: NoiseGrid) -> np.ndarray:
    """What the mechanism sees of a sum: results that share their noise differ by no more than these do."""
    copy = values.copy()
    grid.round_(copy)
    return copy


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1), st.sampled_from([0.25, 1.0, 3.0]), st.floats(1e-3, 4.0))
@settings(max_examples=60, deadline=None)
def test_rounding_moves_no_neighbours_beyond_the_sensitivity(length: int, seed: int, clip: float, std: float) -> None:
    random = np.random.default_rng(seed)
    coarse = NoiseGrid(clip / 1024, clip - clip / 1024 * math.sqrt(length), clip)
    found = noise_grid(length, clip, std)
    for grid in [coarse, *([found] if found else [])]:
        if grid.clip <= 0:
            continue
        # Sums just below a tie, which the patient's gradient, all of whose entries have one sign, lifts over it; in
        # float64, so that the neighbours are exactly what they are meant to be.
        base = (random.integers(-50, 50, length) + 0.5) * grid.step - grid.step * 1e-6
        lift = random.random(length) * random.integers(0, 2, length)
        lift *= grid.clip * (1 - 1e-12) / max(float(np.linalg.norm(lift)), 1e-300)
        for x, other in ((base, base + lift), (base + lift, base), (base, random.normal(size=length) * lift + base)):
            if distance(x, other) <= grid.clip:
                assert distance(rounded(x, grid), rounded(other, grid)) <= clip * (1 + 1e-12)


def test_the_worst_neighbours_reach_the_sensitivity_and_would_exceed_it_without_the_lowered_clip() -> None:
    length, clip = 10_000, 1.0
    grid = NoiseGrid(2.0**-12, clip - 2.0**-12 * 100, clip)
    # Every coordinate lies just under a tie and moves by a whole number of steps and a little.
    moved = math.floor(grid.clip / 100 / grid.step) * grid.step
    base = np.full(length, 0.5 * grid.step - grid.step * 1e-6)
    other = base + moved + grid.step * 2e-6
    assert distance(base, other) <= grid.clip
    reached = distance(rounded(base, grid), rounded(other, grid))
    assert reached == pytest.approx(distance(base, other) + grid.step * 100, rel=1e-6)
    assert 0.97 * clip < reached <= clip
    unlowered = math.floor(clip / 100 / grid.step) * grid.step + grid.step * 2e-6
    assert clip < distance(rounded(base, grid), rounded(base + unlowered, grid))


def cancelling_batch(random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of the same record with opposite labels: at weights of zero their gradients cancel."""
    x = torch.from_numpy(random.normal(size=(64, 30)).astype(np.float32) * 5)
    return x.repeat_interleave(2, dim=0), torch.arange(128) % 2


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_a_patient_changes_the_noised_sum_by_at_most_the_clip(start: float) -> None:
    random = np.random.default_rng(5)
    inputs, targets = cancelling_batch(random)
    module = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(random.normal(size=tuple(parameter.shape))).float() * (start or 0.2))
        if start == 0.0:
            for parameter in module[2].parameters():
                parameter.zero_()
    clip = 0.8
    length = sum(p.numel() for p in module.parameters())
    grid = grid_of(length, clip, 1.0)
    gradients = PrivateGradients(
        module, lambda out, y: functional.cross_entropy(out, y, reduction="none"), clip=grid.clip
    )

    def result(mask: torch.Tensor) -> np.ndarray:
        return gradients.clipped_sum(inputs, targets, mask=mask).total.numpy()

    everybody = torch.ones(128, dtype=torch.bool)
    whole, reached = rounded(result(everybody), grid), 0.0
    for patient in range(24):
        mask = everybody.clone()
        mask[patient] = False
        reached = max(reached, distance(whole, rounded(result(mask), grid)))
    assert 0.99 * clip < reached <= clip


def low_bits_guess(outputs: np.ndarray) -> bool:
    """Mironov's observation: near 0, 1 and float32 noise add up to a multiple of 2^-24; the noise alone is none."""
    near = outputs[np.abs(outputs) < 1 / 16].astype(np.float64)
    assert near.size > 100
    return bool(np.all(near * 2.0**24 == np.rint(near * 2.0**24)))


def test_low_bits_tell_the_sum_of_float32_noise_and_nothing_on_the_grid() -> None:
    grid, seen = grid_of(20_000, 1.0, 1.0), []
    for true in (0.0, 1.0):
        values = np.full(20_000, true, dtype=np.float32)
        # What the attack is on: float32 noise added in float32.
        draws = torch.empty(20_000, dtype=torch.float64)
        TensorNoise(KeyStream(SEED)).fill_(draws, 1.0)
        assert low_bits_guess(values + draws.numpy().astype(np.float32)) is (true == 1.0)
        on_grid = noised(values + np.float32(1e-7), 1.0, grid)
        seen.append(low_bits_guess(on_grid))
        assert np.array_equal(on_grid / grid.step, np.rint(on_grid / grid.step))
        # The last place is a fair coin whatever the sum.
        odd = int((np.rint(on_grid / grid.step).astype(np.int64) & 1).sum())
        assert stats.binomtest(odd, on_grid.size).pvalue > 1e-3
    assert seen[0] == seen[1]


def test_results_are_those_of_zero_moved_by_the_rounded_sum() -> None:
    values = (np.random.default_rng(2).normal(size=4000) * 0.3).astype(np.float32)
    grid = grid_of(values.size, 1.0, 1.0)
    apart = noised(values, 1.0, grid).astype(np.float64) - noised(np.zeros_like(values), 1.0, grid)
    np.testing.assert_array_equal(apart, rounded(values, grid).astype(np.float64))


@pytest.mark.parametrize("family", ["regression", "network"])
def test_a_site_s_sum_lies_on_its_grid(family: str) -> None:
    random = np.random.default_rng(3)
    group = Group(random.normal(size=(40, 6)), random.integers(0, 2, 40).astype(np.float64), np.arange(40), 40)
    model: LocalModel = Network((6, 1), "logistic")
    if family == "network":
        model = TorchModel(
            lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0)),
            lambda out, y: functional.binary_cross_entropy_with_logits(out, y, reduction="none"),
            torch.sigmoid,
        )
    parameters = random.normal(size=model.parameters) * 0.1
    common = {"clip": 0.7, "sampling_rate": 1.0, "entropy": os.urandom}
    grid = grid_of(model.parameters, 0.7, 0.9, np.float64)
    assert grid.price < 1e-9
    sums = [private_gradient_sum(group, model, parameters, noise_std=0.9, **common) for _ in range(3)]
    off = np.concatenate(sums) / grid.step
    np.testing.assert_array_equal(off, np.rint(off))
    assert not np.array_equal(sums[0], sums[1])
    # Without the grid, hardly an entry would lie on it.
    bare = np.zeros(500)
    add_gaussian(bare, 0.9, KeyStream(SEED))
    assert np.mean(bare / grid.step == np.rint(bare / grid.step)) < 0.1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [1, 99_000, 11_200_000, 4_000_000_000])
@pytest.mark.parametrize("std", [1e-6, 0.5, 1.0, 7.0, 1e4])
def test_the_sensitivity_is_what_was_asked_for(length: int, std: float, dtype: type) -> None:
    clip = 1.3
    grid = noise_grid(length, clip, std, dtype)
    bits = 24 if dtype is np.float32 else 53
    if grid is None:
        assert dtype is np.float32 or std == 1e4
        coarsest = 2.0 ** math.ceil(math.log2(REACH * std) - bits)
        assert 2 * coarsest * math.sqrt(length) / clip > MOST_PRICE
        return
    assert grid.sensitivity == clip
    # Exactly: (C - C')^2 >= D g^2.
    assert (Fraction(clip) - Fraction(grid.clip)) ** 2 >= length * Fraction(grid.step) ** 2
    assert math.frexp(grid.step)[0] == 0.5
    assert Fraction(REACH) * Fraction(std) <= Fraction(grid.step) * 2**bits
    assert 0 < grid.price <= MOST_PRICE


def test_the_prices_that_are_told() -> None:
    assert grid_of(99_000, 1.0, 1.0).price == pytest.approx(0.0003, rel=0.05)
    assert grid_of(11_200_000, 1.0, 1.0).price == pytest.approx(0.0032, rel=0.05)
    assert grid_of(11_200_000, 1.0, 1.0, np.float64).price < 1e-9


def test_a_grid_that_costs_too_much_or_nears_the_end_of_float32_is_none() -> None:
    assert noise_grid(11_200_000, 1.0, 100.0) is None
    assert noise_grid(10, 1e-38, 1e-38) is None
    assert noise_grid(10, 1e37, 9e37) is None
    assert noise_grid(10, 1.0, 1e300, np.float64) is None


@pytest.mark.parametrize(
    ("length", "clip", "std"), [(0, 1.0, 1.0), (5, 0.0, 1.0), (5, math.nan, 1.0), (5, 1.0, 0.0), (5, 1.0, math.inf)]
)
def test_numbers_that_make_no_grid_are_refused(length: int, clip: float, std: float) -> None:
    with pytest.raises(ParameterError):
        noise_grid(length, clip, std)


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ParameterError, match="float16"):
        noise_grid(5, 1.0, 1.0, np.float16)
    fine = grid_of(5, 1.0, 1.0)
    with pytest.raises(ParameterError, match="not exact"):
        NoiseAhead(5, 3.0, KeyStream(SEED), fine)
    with NoiseAhead(5, 1.0, KeyStream(SEED), fine) as ahead:
        with pytest.raises(ParameterError, match="float32"):
            ahead.add_(torch.zeros(5, dtype=torch.float64))
        ahead.add_(torch.zeros(5))


@pytest.mark.parametrize("length", [BLOCK_AHEAD // 2 - 1, BLOCK_AHEAD + 3])
def test_noise_ahead_on_a_grid_is_the_streams_own_and_never_used_twice(length: int) -> None:
    grid = grid_of(length, 1.0, 1.0)
    noise = TensorNoise(KeyStream(SEED), CHUNK_AHEAD)
    blocks = [torch.empty(max(1, BLOCK_AHEAD // length) * length) for _ in range(3)]
    for block in blocks:
        noise.fill_on_grid_(block, 1.0, grid)
    inline = torch.cat(blocks).view(-1, length)
    assert not torch.equal(inline[0], inline[1])
    ahead = torch.zeros_like(inline)
    with NoiseAhead(length, 1.0, KeyStream(SEED), grid) as thread:
        for row in ahead:
            thread.add_(row)
    assert torch.equal(ahead, inline)
