"""Uploads in chunks: any order, any number of breaks, and only what the manifest names is ever added."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import MissingContributors, ProtocolViolation
from privacy.parameters import Grid
from privacy.secagg.framing import LARGEST_CHUNK, SMALLEST_CHUNK, Manifest, chunked
from privacy.secagg.server import SecureSum

LENGTH = 5000
SITES = ("ana", "bo", "cy")
GRID = Grid(1.0)


def vector(seed: int, length: int = LENGTH) -> bytes:
    return np.random.default_rng(seed).integers(0, 2**32, length, dtype=np.uint32).tobytes()


def words(total: SecureSum) -> np.ndarray:
    return total.result(GRID).astype(np.int64).astype(np.uint32)


@settings(max_examples=40, deadline=None)
@given(order=st.randoms(use_true_random=False), breaks=st.integers(0, 4))
def test_an_upload_that_breaks_and_resumes_in_any_order_sums_as_if_whole(order: object, breaks: int) -> None:
    vectors = {site: vector(index) for index, site in enumerate(SITES)}
    whole, total = SecureSum(SITES, LENGTH), SecureSum(SITES, LENGTH)
    for site, data in vectors.items():
        whole.add(site, data)
        manifest = Manifest.from_dict(json.loads(json.dumps(Manifest.of(data, SMALLEST_CHUNK).to_dict())))
        for _ in range(breaks):
            wanted = list(total.expect(site, manifest))
            order.shuffle(wanted)  # type: ignore[attr-defined]
            for index, chunk in chunked(data, manifest, wanted[:1]):
                total.add_chunk(site, index, chunk)
                total.add_chunk(site, index, chunk)  # its acknowledgement was lost
            if site not in total.missing:
                break
        if site in total.missing:
            with pytest.raises(MissingContributors):
                total.result(GRID)
            for index, chunk in chunked(data, manifest, total.expect(site, manifest)):
                total.add_chunk(site, index, chunk)
    np.testing.assert_array_equal(words(total), words(whole))


def test_damaged_swapped_short_and_unknown_chunks_change_nothing() -> None:
    data = vector(1)
    manifest = Manifest.of(data, SMALLEST_CHUNK)
    total = SecureSum(SITES, LENGTH)
    with pytest.raises(ProtocolViolation) as caught:
        total.add_chunk("ana", 0, data[:SMALLEST_CHUNK])
    assert caught.value.code == "secagg-out-of-order"
    assert total.expect("ana", manifest) == tuple(range(5))
    first = data[:SMALLEST_CHUNK]
    flipped = bytes([first[0] ^ 1]) + first[1:]
    for index, chunk in ((0, flipped), (1, first), (0, first[:-4]), (0, b""), (5, first), (-1, first), (True, first)):
        with pytest.raises(ProtocolViolation) as caught:
            total.add_chunk("ana", index, chunk)
        assert caught.value.code == "secagg-damaged-chunk"
    assert total.expect("ana", manifest) == tuple(range(5))
    for index, chunk in chunked(data, manifest):
        total.add_chunk("ana", index, chunk)
    for site in ("bo", "cy"):
        total.add(site, bytes(4 * LENGTH))
    assert words(total).tobytes() == data


def test_a_site_that_offers_two_vectors_is_held_to_its_first() -> None:
    total = SecureSum(SITES, LENGTH)
    one, other = vector(1), vector(2)
    total.expect("ana", Manifest.of(one))
    for second in (lambda: total.expect("ana", Manifest.of(other)), lambda: total.add("ana", other)):
        with pytest.raises(ProtocolViolation) as caught:
            second()
        assert caught.value.code == "secagg-equivocation"
    # The same vector cut otherwise is another manifest too: chunks already in would be added twice.
    with pytest.raises(ProtocolViolation, match="second vector"):
        total.expect("ana", Manifest.of(one, SMALLEST_CHUNK))
    total.add("bo", one)
    with pytest.raises(ProtocolViolation) as caught:
        total.expect("bo", Manifest.of(other))
    assert caught.value.code == "secagg-repeated-site"


@pytest.mark.parametrize("size", [4 * LENGTH - 4, 4 * LENGTH + 4, 4])
def test_a_manifest_of_another_length_is_refused(size: int) -> None:
    total = SecureSum(SITES, LENGTH)
    with pytest.raises(ProtocolViolation) as caught:
        total.expect("ana", Manifest.of(bytes(size)))
    assert caught.value.code == "secagg-wrong-length"
    with pytest.raises(ProtocolViolation) as caught:
        total.expect("mallory", Manifest.of(bytes(4 * LENGTH)))
    assert caught.value.code == "secagg-not-in-cohort"


@pytest.mark.parametrize(
    "change",
    [
        {"length": 0},
        {"length": -4},
        {"length": 4 * LENGTH + 1},
        {"length": 10**15},
        {"length": True},
        {"length": "20000"},
        {"chunk_bytes": SMALLEST_CHUNK + 2},
        {"chunk_bytes": 4},
        {"chunk_bytes": 2 * LARGEST_CHUNK},
        {"digests": []},
        {"digests": "x"},
        {"digests": [None] * 5},
        {"digests": ["AAAA"] * 5},
        {"type": "other"},
        {"more": 1},
    ],
)
def test_a_malformed_manifest_is_refused(change: dict) -> None:
    good = Manifest.of(vector(1), SMALLEST_CHUNK).to_dict()
    assert Manifest.from_dict(good).to_dict() == good
    with pytest.raises(ProtocolViolation) as caught:
        Manifest.from_dict({**good, **change})
    assert caught.value.code == "secagg-malformed"


def test_the_digest_covers_length_cut_and_every_chunk() -> None:
    data = vector(1)
    cuts = {Manifest.of(data, size).digest() for size in (SMALLEST_CHUNK, 2 * SMALLEST_CHUNK, LARGEST_CHUNK)}
    assert len(cuts | {Manifest.of(data[:-4]).digest(), Manifest.of(data[:-1] + b"x").digest()}) == 5


def test_a_stored_vector_that_rotted_is_not_sent() -> None:
    data = bytearray(vector(1))
    manifest = Manifest.of(data, SMALLEST_CHUNK)
    data[SMALLEST_CHUNK + 3] ^= 1
    sent = chunked(data, manifest)
    assert next(sent)[0] == 0
    with pytest.raises(ProtocolViolation, match="Chunk 1"):
        next(sent)


def test_a_manifest_for_no_bytes_or_odd_chunks_is_refused() -> None:
    for data, chunk in ((b"", SMALLEST_CHUNK), (b"abc", SMALLEST_CHUNK), (bytes(8), 8), (bytes(8), 0)):
        with pytest.raises(ProtocolViolation):
            Manifest.of(data, chunk)


def test_the_sum_takes_the_same_memory_for_many_sites_as_for_few() -> None:
    length = 500_000
    peaks = []
    data = vector(1, length)
    manifest = Manifest.of(data)
    for count in (3, 40):
        names = [f"s{i}" for i in range(count)]
        tracemalloc.start()
        total = SecureSum(names, length)
        for index, name in enumerate(names):
            if index % 2:
                total.add(name, data)
            else:
                total.expect(name, manifest)
                for at, chunk in chunked(data, manifest):
                    total.add_chunk(name, at, chunk)
        total.result(GRID)
        peaks.append(tracemalloc.get_traced_memory()[1] / (4 * length))
        tracemalloc.stop()
    assert max(peaks) <= 3.05
    assert peaks[1] - peaks[0] < 0.05
