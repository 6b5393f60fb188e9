"""Merkle trees: the published vectors, RFC 6962's recursive definition, and every proof of small trees."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import VerificationFailed
from protocol.merkle import (
    EMPTY_ROOT,
    Frontier,
    RootHasher,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
    verify_consistency,
    verify_inclusion,
)

VECTORS = Path(__file__).parents[2].parent / "shared/vectors/rfc6962_merkle"
needs_vectors = pytest.mark.skipif(not VECTORS.is_dir(), reason="the Merkle vectors are not beside the checkout")

LEAVES = [leaf_hash(b"entry %d" % n) for n in range(65)]
TREE = Tree(LEAVES)


@cache
def by_definition(start: int, end: int) -> bytes:
    """RFC 6962 2.1, word for word."""
    if end - start == 0:
        return EMPTY_ROOT
    if end - start == 1:
        return LEAVES[start]
    k = 1
    while k * 2 < end - start:
        k *= 2
    return node_hash(by_definition(start, start + k), by_definition(start + k, end))


def vectors(kind: str) -> list[tuple[str, dict[str, Any]]]:
    return [(str(path), json.loads(path.read_bytes())) for path in sorted((VECTORS / kind).rglob("*.json"))]


def hashes(texts: list[str] | None) -> list[bytes]:
    return [unpacked(text) for text in texts or []]


def unpacked(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def holds(verify: Any, *arguments: Any) -> bool:
    try:
        verify(*arguments)
    except VerificationFailed:
        return False
    return True


@needs_vectors
def test_inclusion_vectors() -> None:
    found = vectors("inclusion")
    assert len(found) == 98
    assert sum(vector["wantErr"] for _, vector in found) == 92
    for path, vector in found:
        held = holds(
            verify_inclusion,
            unpacked(vector["leafHash"]),
            vector["leafIdx"],
            vector["treeSize"],
            hashes(vector["proof"]),
            unpacked(vector["root"]),
        )
        assert held is not vector["wantErr"], path


@needs_vectors
def test_consistency_vectors() -> None:
    found = vectors("consistency")
    assert len(found) == 98
    assert sum(vector["wantErr"] for _, vector in found) == 92
    for path, vector in found:
        held = holds(
            verify_consistency,
            vector["size1"],
            vector["size2"],
            hashes(vector["proof"]),
            unpacked(vector["root1"]),
            unpacked(vector["root2"]),
        )
        assert held is not vector["wantErr"], path


@needs_vectors
def test_subtree_vectors_that_begin_at_the_first_leaf_are_whole_trees() -> None:
    inclusion = [(path, vector) for path, vector in vectors("subtreeinclusion") if vector["start"] == 0]
    consistency = [(path, v) for path, v in vectors("subtreeconsistency") if v["start"] == 0 < v["end"]]
    assert len(inclusion) > 90
    assert len(consistency) > 10
    for path, vector in inclusion:
        held = holds(
            verify_inclusion,
            unpacked(vector["leafHash"]),
            vector["leafIdx"],
            vector["end"],
            hashes(vector["proof"]),
            unpacked(vector["root"]),
        )
        assert held is not vector["wantErr"], path
    for path, vector in consistency:
        held = holds(
            verify_consistency,
            vector["end"],
            vector["size"],
            hashes(vector["proof"]),
            unpacked(vector["root1"]),
            unpacked(vector["root2"]),
        )
        assert held is not vector["wantErr"], path


@needs_vectors
def test_hash_vectors() -> None:
    vector = json.loads((VECTORS / "rfc6962_leaf_vectors.json").read_bytes())
    assert EMPTY_ROOT.hex() == vector["empty_root"] == Frontier().root.hex() == Tree().root().hex()
    assert leaf_hash(b"").hex() == vector["empty_leaf"]
    assert leaf_hash(b"L123456").hex() == vector["leaf_L123456"]
    assert node_hash(b"N123", b"N456").hex() == vector["node_N123_N456"]


def test_roots_are_the_definition_s() -> None:
    for size in range(66):
        assert root(size, TREE.read) == TREE.root(size) == by_definition(0, size)


def test_every_inclusion_proof_up_to_64() -> None:
    for size in range(1, 65):
        whole = TREE.root(size)
        for index in range(size):
            proof = inclusion_proof(index, size, TREE.read)
            verify_inclusion(LEAVES[index], index, size, proof, whole)
            assert not holds(verify_inclusion, LEAVES[64], index, size, proof, whole)
            assert not holds(verify_inclusion, LEAVES[index], index, size, (*proof, LEAVES[64]), whole)
            assert not holds(verify_inclusion, LEAVES[index], index, size, proof, LEAVES[64])
            if proof:
                assert not holds(verify_inclusion, LEAVES[index], index, size, proof[:-1], whole)
                assert not holds(verify_inclusion, LEAVES[index], index ^ 1, size, proof, whole)


def test_every_consistency_proof_up_to_64() -> None:
    for new in range(1, 65):
        for old in range(1, new + 1):
            proof = consistency_proof(old, new, TREE.read)
            verify_consistency(old, new, proof, TREE.root(old), TREE.root(new))
            assert not holds(verify_consistency, old, new, proof, LEAVES[64], TREE.root(new))
            assert not holds(verify_consistency, old, new, proof, TREE.root(old), LEAVES[64])
            assert not holds(verify_consistency, old, new, (*proof, LEAVES[64]), TREE.root(old), TREE.root(new))
            if proof:
                assert not holds(verify_consistency, old, new, proof[:-1], TREE.root(old), TREE.root(new))


def test_a_rewritten_log_has_no_consistency_proof() -> None:
    forked = Tree([*LEAVES[:3], LEAVES[64], *LEAVES[4:64]])
    for old in range(4, 64):
        proof = consistency_proof(old, 64, forked.read)
        assert not holds(verify_consistency, old, 64, proof, TREE.root(old), forked.root())


@given(st.data())
def test_any_flipped_bit_of_a_proof_is_refused(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 64))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size - 1))
    cases: list[tuple[tuple[bytes, ...], Callable[[tuple[bytes, ...]], None]]] = [
        (
            inclusion_proof(index, size, TREE.read),
            lambda p: verify_inclusion(LEAVES[index], index, size, p, TREE.root(size)),
        ),
        (
            consistency_proof(old, size, TREE.read),
            lambda p: verify_consistency(old, size, p, TREE.root(old), TREE.root(size)),
        ),
    ]
    for proof, check in cases:
        at = data.draw(st.integers(0, len(proof) - 1))
        bit = data.draw(st.integers(0, 255))
        changed = (int.from_bytes(proof[at], "big") ^ 1 << bit).to_bytes(32, "big")
        check(proof)
        assert not holds(check, (*proof[:at], changed, *proof[at + 1 :]))


@given(st.lists(st.integers(0, 20), max_size=5))
def test_a_frontier_grows_in_any_batches_and_is_rebuilt_from_what_it_finished(batches: list[int]) -> None:
    frontier, stored, done = Frontier(), {}, 0
    for batch in batches:
        batch = min(batch, 65 - done)
        frontier, finished = frontier.extend(LEAVES[done : done + batch])
        stored.update({(level, index): digest for level, index, digest in finished})
        done += batch
        assert frontier.size == done
        assert frontier.root == TREE.root(done)
        assert frontier == Frontier.read(done, lambda level, index: stored[level, index])


def test_proofs_read_few_hashes() -> None:
    big = Tree(leaf_hash(n.to_bytes(2, "big")) for n in range(5000))
    reads = []

    def reader(level: int, index: int) -> bytes:
        reads.append((level, index))
        return big.read(level, index)

    verify_inclusion(big.read(0, 1234), 1234, 5000, inclusion_proof(1234, 5000, reader), big.root())
    verify_consistency(3333, 5000, consistency_proof(3333, 5000, reader), big.root(3333), big.root())
    assert len(reads) < 60


@pytest.mark.parametrize("index", [-1, 2**63, 2**64 - 1])
def test_absurd_integers_are_refused(index: int) -> None:
    assert not holds(verify_inclusion, LEAVES[0], index, 1, [], LEAVES[0])
    assert not holds(verify_inclusion, LEAVES[0], 0, index, [], LEAVES[0])
    assert not holds(verify_consistency, index, 5, [], LEAVES[0], LEAVES[0])
    with pytest.raises(ValueError):
        inclusion_proof(index, 1, TREE.read)


def test_nothing_is_proved_of_an_empty_tree() -> None:
    assert not holds(verify_consistency, 0, 0, [], EMPTY_ROOT, EMPTY_ROOT)
    assert not holds(verify_consistency, 0, 5, [], EMPTY_ROOT, TREE.root(5))
    with pytest.raises(ValueError):
        consistency_proof(0, 5, TREE.read)
    with pytest.raises(ValueError):
        consistency_proof(6, 5, TREE.read)


def test_hashes_of_another_length_are_refused() -> None:
    assert not holds(verify_inclusion, b"", 0, 1, [], b"")
    assert not holds(verify_consistency, 1, 2, [LEAVES[0]], b"", node_hash(b"", LEAVES[0]))


def test_a_frontier_must_fit_its_size() -> None:
    with pytest.raises(ValueError):
        Frontier(3, (EMPTY_ROOT,))


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 1000, 2049])
def test_a_root_from_leaves_that_come_one_by_one(size: int) -> None:
    hashes = [leaf_hash(b"%d" % number) for number in range(size)]
    hasher, subtrees = RootHasher(), []
    for number, digest in enumerate(hashes):
        assert hasher.size == number
        if subtree := hasher.add(digest):
            subtrees.append(subtree)
    whole = Tree(hashes)
    assert (hasher.size, hasher.root) == (size, whole.root())
    assert subtrees == [whole.read(8, index) for index in range(size // 256)]
