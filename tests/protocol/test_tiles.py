"""Tiles: paths, the published test log, bundles, and proofs that come from tiles alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.checkpoint import Checkpoint, open_checkpoint
from protocol.errors import Malformed, VerificationFailed
from protocol.merkle import (
    MAX_SIZE,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root,
    verify_consistency,
    verify_inclusion,
)
from protocol.note import VerifierKey
from protocol.tiles import (
    Tile,
    decode_bundle,
    decode_tile,
    encode_bundle,
    encode_tile,
    tile_reader,
    touched_bundles,
    touched_tiles,
)

LOG = Path(__file__).parents[2].parent / "shared/vectors/tessera_tiles_testlog/log"
needs_log = pytest.mark.skipif(not LOG.is_dir(), reason="the test log is not beside the checkout")
# The published verifier key of that test log (transparency-dev/tessera, testdata/build_log.sh).
LOG_KEY = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"

TREE = Tree(leaf_hash(n.to_bytes(4, "big")) for n in range(70_000))


def published(size: int) -> Checkpoint:
    return open_checkpoint((LOG / f"checkpoint.{size}").read_bytes(), VerifierKey.parse(LOG_KEY))


def fetch(tile: Tile) -> bytes:
    return (LOG / tile.path).read_bytes()


@needs_log
def test_published_roots_come_from_tiles_and_from_entries() -> None:
    for size in range(16):
        checkpoint = published(size)
        assert root(size, tile_reader(size, fetch)) == checkpoint.root
        if size:
            (bundle,) = touched_bundles(0, size)
            entries = decode_bundle(bundle, fetch(bundle))
            assert encode_bundle(entries) == fetch(bundle)
            assert Tree(map(leaf_hash, entries)).root() == checkpoint.root


@needs_log
def test_published_checkpoints_are_consistent_and_hold_their_entries() -> None:
    bundle = Tile(None, 0, 15)
    leaves = [leaf_hash(entry) for entry in decode_bundle(bundle, fetch(bundle))]
    for new in range(1, 16):
        reader, newer = tile_reader(new, fetch), published(new)
        for old in range(1, new + 1):
            verify_consistency(old, new, consistency_proof(old, new, reader), published(old).root, newer.root)
        for index in range(new):
            proof = inclusion_proof(index, new, reader)
            verify_inclusion(leaves[index], index, new, proof, newer.root)
            with pytest.raises(VerificationFailed):
                verify_inclusion(leaf_hash(b"forged"), index, new, proof, newer.root)


@needs_log
def test_the_published_files_are_the_ones_that_growing_touches() -> None:
    expected = {tile.path for size in range(15) for tile in touched_tiles(size, size + 1)}
    expected |= {tile.path for size in range(15) for tile in touched_bundles(size, size + 1)}
    assert {path.relative_to(LOG).as_posix() for path in (LOG / "tile").rglob("*") if path.is_file()} == expected


def test_the_specification_s_examples() -> None:
    assert Tile(0, 1234067).path == "tile/0/x001/x234/067"
    assert Tile(None, 999, 3).path == "tile/entries/999.p/3"
    tiles = touched_tiles(0, 70_000)
    assert tiles[:273] == tuple(Tile(0, index) for index in range(273))
    assert tiles[273:] == (Tile(0, 273, 112), Tile(1, 0), Tile(1, 1, 17), Tile(2, 0, 1))
    assert touched_tiles(0, 256) == (Tile(0, 0), Tile(1, 0, 1))


@given(st.none() | st.integers(0, 63), st.integers(0, MAX_SIZE), st.integers(1, 256))
def test_paths_round_trip(level: int | None, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    assert re.fullmatch(r"tile/(entries|\d+)/(x\d{3}/)*\d{3}(\.p/\d+)?", tile.path)
    assert Tile.parse(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile/0",
        "tile/0/",
        "tile/0/0",
        "tile/0/0000",
        "tile/64/000",
        "tile/00/000",
        "tile/-1/000",
        "tile/0/x000/001",
        "tile/0/x001",
        "tile/0/001/001",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/01",
        "tile/0/000.p/",
        "tile/0/000.p/257",
        "/tile/0/000",
        "tile/0/000\n",
        "tile/0/../000",
        "tile/data/000",
        "tile/0/٠٠٠",
        "tile/0/" + "x999/" * 9 + "999",
    ],
)
def test_paths_that_are_no_tile(path: str) -> None:
    with pytest.raises(Malformed):
        Tile.parse(path)


@settings(max_examples=40)
@given(st.integers(0, 70_000), st.integers(0, 2000))
def test_what_growing_touches_is_what_changes(old: int, growth: int) -> None:
    new = min(old + growth, 70_000)
    before, after = set(touched_tiles(0, old)), set(touched_tiles(0, new))
    assert set(touched_tiles(old, new)) == after - before
    assert set(touched_bundles(old, new)) == set(touched_bundles(0, new)) - set(touched_bundles(0, old))


@settings(max_examples=30)
@given(st.data())
def test_proofs_from_tiles_are_the_tree_s(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 70_000) | st.sampled_from([255, 256, 257, 65_535, 65_536, 65_537]))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    exists = set(touched_tiles(0, size))
    asked: set[Tile] = set()

    def from_tree(tile: Tile) -> bytes:
        assert tile in exists
        asked.add(tile)
        return encode_tile(tile, TREE.read)

    reader = tile_reader(size, from_tree)
    assert root(size, reader) == TREE.root(size)
    assert inclusion_proof(index, size, reader) == inclusion_proof(index, size, TREE.read)
    assert consistency_proof(old, size, reader) == consistency_proof(old, size, TREE.read)
    assert len(asked) <= 9


def test_a_reader_stays_within_its_size_and_refuses_short_tiles() -> None:
    with pytest.raises(ValueError, match="beyond"):
        tile_reader(5, lambda tile: b"")(2, 1)
    with pytest.raises(Malformed, match="has 31 bytes"):
        tile_reader(1, lambda tile: bytes(31))(0, 0)
    with pytest.raises(Malformed):
        decode_tile(Tile(0, 0, 2), bytes(32))
    with pytest.raises(ValueError, match="holds entries"):
        encode_tile(Tile(None, 0, 1), TREE.read)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=256))
def test_bundles_round_trip(entries: list[bytes]) -> None:
    data = encode_bundle(entries)
    tile = Tile(None, 0, len(entries))
    assert decode_bundle(tile, data) == tuple(entries)
    for wrong in (data[:-1], data + b"\0", data + b"\0\0", b""):
        with pytest.raises(Malformed):
            decode_bundle(tile, wrong)
    if len(entries) < 256:
        with pytest.raises(Malformed, match="does not hold"):
            decode_bundle(Tile(None, 0, len(entries) + 1), data)


def test_bundle_limits() -> None:
    largest = encode_bundle([bytes(65_535)])
    assert decode_bundle(Tile(None, 0, 1), largest) == (bytes(65_535),)
    for entries in ([], [b""] * 257, [bytes(65_536)]):
        with pytest.raises(Malformed):
            encode_bundle(entries)


@pytest.mark.parametrize(("level", "index", "width"), [(-1, 0, 1), (64, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257)])
def test_tiles_out_of_range(level: int, index: int, width: int) -> None:
    with pytest.raises(Malformed):
        Tile(level, index, width)


@pytest.mark.parametrize(("old", "new"), [(-1, 1), (2, 1), (0, 2**63)])
def test_a_log_only_grows(old: int, new: int) -> None:
    with pytest.raises(ValueError):
        touched_tiles(old, new)
    with pytest.raises(ValueError):
        touched_bundles(old, new)
