"""Mask keys and pair roots depend on each thing they must bind, and masks are AES-CTR that cancels."""

import dataclasses
import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privacy.secagg.key_agreement import PairRoots, SetupKeys, pair_root
from privacy.secagg.masking import Mask, cohort_digest, mask_buffer, mask_key

BASE: dict = {
    "study": "s",
    "plan_digest": b"p" * 32,
    "purpose": "training",
    "round_number": 1,
    "attempt": 2,
    "cohort": ["a", "b", "c"],
    "model_digest": b"m" * 32,
    "length": 7,
    "modulus": 2**32,
}
OTHER: dict = {
    "study": "t",
    "plan_digest": b"q" * 32,
    "purpose": "evaluation",
    "round_number": 2,
    "attempt": 3,
    "cohort": ["a", "b"],
    "model_digest": b"n" * 32,
    "length": 8,
    "modulus": 2**31,
}


@pytest.mark.parametrize("field", sorted(BASE))
def test_a_mask_key_depends_on(field: str) -> None:
    assert mask_key(b"r" * 32, **BASE) != mask_key(b"r" * 32, **{**BASE, field: OTHER[field]})


def test_a_mask_key_depends_on_the_root_and_not_on_the_cohorts_order() -> None:
    assert mask_key(b"r" * 32, **BASE) != mask_key(b"x" * 32, **BASE)
    assert mask_key(b"r" * 32, **BASE) == mask_key(b"r" * 32, **{**BASE, "cohort": ["c", "a", "b"]})
    assert mask_key(b"r" * 32, **BASE) != mask_key(b"r" * 32, **{**BASE, "round_number": 2, "attempt": 1})
    assert cohort_digest(["ab", "c"]) != cohort_digest(["a", "bc"])


@pytest.mark.parametrize("field", ["study", "plan_digest", "site", "x25519_public", "mlkem_public"])
def test_a_pair_root_depends_on_every_field_of_either_advert(field: str) -> None:
    first, second = (
        SetupKeys.generate(os.urandom).advert(study="s", plan_digest=b"p" * 32, site=name) for name in ("a", "b")
    )
    value = getattr(second, field)
    changed = dataclasses.replace(second, **{field: "b2" if isinstance(value, str) else bytes(len(value))})
    arguments = (b"x" * 32, b"k" * 32, b"c" * 1088)
    assert pair_root(*arguments, first, second) == pair_root(*arguments, second, first)
    assert pair_root(*arguments, first, second) != pair_root(*arguments, first, changed)


def test_a_pair_root_depends_on_both_secrets_and_the_ciphertext() -> None:
    first, second = (
        SetupKeys.generate(os.urandom).advert(study="s", plan_digest=b"p" * 32, site=name) for name in ("a", "b")
    )
    roots = {
        pair_root(x, k, c, first, second)
        for x, k, c in (
            (b"x" * 32, b"k" * 32, b"c" * 1088),
            (b"y" * 32, b"k" * 32, b"c" * 1088),
            (b"x" * 32, b"l" * 32, b"c" * 1088),
            (b"x" * 32, b"k" * 32, b"d" * 1088),
        )
    }
    assert len(roots) == 4


def test_ratcheting_step_by_step_or_at_once_is_the_same() -> None:
    start = PairRoots(0, {"b": b"r" * 32})
    assert start.ratchet().ratchet().ratchet() == start.advanced_to(3)
    assert start.advanced_to(0) == start
    assert len({start.advanced_to(n).roots["b"] for n in range(5)}) == 5


@pytest.mark.parametrize("parts", [[1], [7, 7, 3], [1 << 15, 1 << 15, 5], [(1 << 17) + 1]])
def test_a_mask_is_the_aes_stream_of_its_key_laid_on_in_parts_and_cancels(parts: list[int]) -> None:
    key, size = bytes(range(32)), sum(parts)
    # The first counter block is 2: what AES-256-GCM encrypts zeros with under a nonce of zeros.
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(15) + b"\2")).encryptor().update(bytes(4 * size))
    words = np.zeros(size, dtype=np.uint32)
    buffer = mask_buffer(max(parts))
    for add in (True, False):
        mask, start = Mask(key, add=add), 0
        for part in parts:
            mask.apply(words[start : start + part], buffer)
            start += part
        if add:
            np.testing.assert_array_equal(words, np.frombuffer(stream, dtype="<u4"))
    assert not words.any()
