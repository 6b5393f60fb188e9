"""The random stream against AES itself, and the Gaussian against its distribution."""

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from privacy.dpsgd.noise import add_gaussian, standard_gaussian
from privacy.entropy import CHUNK_BYTES, KeyStream
from privacy.errors import ParameterError

SEED = bytes(range(32))


def test_stream_is_aes_256_ctr_over_zeros_across_chunks() -> None:
    size = CHUNK_BYTES * 2 + 13
    counter = bytes(15) + b"\2"  # as AES-GCM begins under a nonce of zeros
    expected = Cipher(algorithms.AES(SEED), modes.CTR(counter)).encryptor().update(bytes(size))
    stream = KeyStream(SEED)
    assert stream.bytes(7) + stream.bytes(size - 7) == expected


def test_first_block_is_the_published_aes_256_vector_shape() -> None:
    # FIPS 197 appendix C.3: key 00..1f, plaintext 00112233445566778899aabbccddeeff.
    key = bytes(range(32))
    block = (
        Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(bytes.fromhex("00112233445566778899aabbccddeeff"))
    )
    assert block.hex() == "8ea2b7ca516745bfeafc49904b496089"
    counter_two = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(bytes(15) + b"\2")
    assert KeyStream(key).bytes(16) == counter_two


def test_seed_of_wrong_length_is_refused() -> None:
    with pytest.raises(ParameterError, match="32 bytes"):
        KeyStream(b"short")


def test_uniform_is_open_and_uniform() -> None:
    draws = KeyStream(SEED).uniform53(200_000)
    assert draws.min() > 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-4


def test_uniform_never_reaches_its_ends_for_extreme_words() -> None:
    class Extreme(KeyStream):
        def fill(self, buffer: np.ndarray) -> None:
            buffer[0] = np.uint64(2**64 - 1)
            buffer[1:] = 0

    draws = Extreme(SEED).uniform53(2)
    assert draws[0] < 1
    assert draws[1] == 2.0**-54


@pytest.mark.parametrize("count", [1, 2, 3, 1 << 15, (1 << 15) + 1])
def test_gaussian_has_the_asked_length(count: int) -> None:
    draws = standard_gaussian(count, KeyStream(SEED))
    assert draws.shape == (count,)
    assert np.isfinite(draws).all()


def test_gaussian_distribution_and_independence() -> None:
    draws = standard_gaussian(400_000, KeyStream(SEED))
    assert stats.kstest(draws, "norm").pvalue > 1e-4
    assert abs(draws.var() - 1) < 0.012
    # Both halves of a Box-Muller pair, and neighbours, are uncorrelated.
    half = 1 << 14
    assert abs(np.corrcoef(draws[:half], draws[half : 2 * half])[0, 1]) < 0.035
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.008


def test_added_noise_has_its_standard_deviation_and_keeps_the_values() -> None:
    values = np.full(300_000, 5.0)
    add_gaussian(values, 2.5, KeyStream.fresh(os.urandom))
    assert values.mean() == pytest.approx(5.0, abs=0.03)
    assert values.std() == pytest.approx(2.5, rel=0.01)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_forgotten_noise_does_not_pass(std: float) -> None:
    with pytest.raises(ParameterError):
        add_gaussian(np.zeros(3), std, KeyStream(SEED))
