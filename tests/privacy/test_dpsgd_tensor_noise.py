"""Noise drawn with torch: its distribution, its independence from chunk and thread, its refusals."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.dpsgd.tensor_noise import BLOCK_AHEAD, CHUNK, CHUNK_AHEAD, NoiseAhead, TensorNoise
from privacy.entropy import KeyStream
from privacy.errors import ParameterError

torch.set_num_threads(1)
SEED = bytes(range(32))


def draw(count: int, std: float = 1.0, seed: bytes = SEED) -> np.ndarray:
    values = torch.zeros(count, dtype=torch.float64)
    TensorNoise(KeyStream(seed)).add_(values, std)
    return values.numpy()


def test_the_distribution_is_gaussian() -> None:
    values = draw(400_001, 3.0)
    assert stats.kstest(values / 3.0, "norm").pvalue > 1e-3
    assert abs(values.mean()) < 5 * 3.0 / math.sqrt(values.size)
    assert abs(values.std() / 3.0 - 1) < 5 / math.sqrt(2 * values.size)
    assert abs(stats.kurtosis(values)) < 5 * math.sqrt(24 / values.size)
    # The tail that matters to delta.
    beyond = (np.abs(values) > 4 * 3.0).sum()
    assert stats.binomtest(int(beyond), values.size, 2 * stats.norm.sf(4)).pvalue > 1e-3


def test_entries_are_independent_across_pairs_and_chunks() -> None:
    values = draw(8 * CHUNK)
    assert np.unique(values).size == values.size
    for lag in (1, 2, CHUNK // 2, CHUNK, 3 * CHUNK // 2):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 5 / math.sqrt(values.size - lag)
        assert abs(np.corrcoef(values[:-lag] ** 2, values[lag:] ** 2)[0, 1]) < 5 / math.sqrt(values.size - lag)


def test_uniforms_at_both_ends_give_finite_noise() -> None:
    class Ends(KeyStream):
        def __init__(self, word: int) -> None:
            super().__init__(SEED)
            self._word = word

        def fill(self, buffer: np.ndarray) -> None:
            buffer[:] = self._word

    for word in (0, -1):
        values = torch.zeros(4, dtype=torch.float64)
        TensorNoise(Ends(word)).add_(values, 1.0)
        assert bool(torch.isfinite(values).all())
        assert float(values.abs().max()) < 8.6


def test_the_same_stream_gives_the_same_noise_and_another_another() -> None:
    np.testing.assert_array_equal(draw(100), draw(100))
    assert not np.isin(draw(100, seed=bytes(32)), draw(100)).any()
    np.testing.assert_allclose(draw(CHUNK + 5, 2.0), 2.0 * draw(CHUNK + 5), rtol=1e-12)


def test_float32_sums_are_taken_in_float64() -> None:
    start = torch.linspace(-1, 1, 1001)
    values = start.clone()
    TensorNoise(KeyStream(SEED)).add_(values, 0.5)
    np.testing.assert_array_equal(values.numpy(), (start.double().numpy() + draw(1001, 0.5)).astype(np.float32))


@pytest.mark.parametrize("length", [BLOCK_AHEAD // 2 - 1, BLOCK_AHEAD + 3])
def test_noise_ahead_is_the_streams_own_and_never_used_twice(length: int) -> None:
    steps = max(1, BLOCK_AHEAD // length)
    noise = TensorNoise(KeyStream(SEED), CHUNK_AHEAD)
    blocks = [torch.empty(steps * length, dtype=torch.float64) for _ in range(3)]
    for block in blocks:
        noise.fill_(block, 1.5)
    inline = torch.cat(blocks).view(-1, length)
    ahead = torch.zeros_like(inline)
    with NoiseAhead(length, 1.5, KeyStream(SEED)) as thread:
        for row in ahead:
            thread.add_(row)
    assert torch.equal(ahead, inline)


def test_noise_ahead_passes_on_what_failed() -> None:
    class Broken(KeyStream):
        def fill(self, buffer: np.ndarray) -> None:
            raise OSError("no entropy")

    with NoiseAhead(10, 1.0, Broken(SEED)) as thread:
        for _ in range(2):
            values = torch.zeros(10, dtype=torch.float64)
            with pytest.raises(OSError, match="no entropy"):
                thread.add_(values)
            assert not values.any()


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_no_noise_is_refused(std: float) -> None:
    with pytest.raises(ParameterError, match="standard deviation"):
        TensorNoise(KeyStream(SEED)).add_(torch.zeros(3), std)
    with pytest.raises(ParameterError, match="standard deviation"):
        NoiseAhead(3, std, KeyStream(SEED))


def test_vectors_that_do_not_fit_are_refused() -> None:
    noise = TensorNoise(KeyStream.fresh(os.urandom))
    for bad in (torch.zeros(2, 2), torch.zeros(6)[::2], torch.zeros(3, dtype=torch.int64), torch.zeros(3).half()):
        with pytest.raises(ParameterError):
            noise.add_(bad, 1.0)
    with NoiseAhead(3, 1.0, KeyStream(SEED)) as thread, pytest.raises(ParameterError, match="length"):
        thread.add_(torch.zeros(4))
