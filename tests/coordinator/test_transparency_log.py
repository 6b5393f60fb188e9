"""The log: what a crash leaves, what tampering shows, what witnesses' signatures are worth, what receipts prove."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import col, select, update

from coordinator.appliance import Appliance
from coordinator.audit import sequencer
from coordinator.audit.append import append, person_label, site_label
from coordinator.audit.repository import CheckpointConflict, LogRepository
from coordinator.audit.sequencer import (
    LogTampered,
    SequencerThread,
    integrate_once,
    log_key,
    rebuild_tiles,
    tile_store,
    verify_log,
)
from coordinator.audit.tables import LogCheckpoint, LogCosignature, LogEntry, LogHead
from coordinator.audit.tile_store import LogDamaged, TileStore
from coordinator.audit.witnessing import (
    StaleCosignature,
    accept_cosignatures,
    latest_note,
    policy_in_force,
    proof_for,
    quorum_note,
)
from coordinator.database import reading, transaction
from coordinator.errors import Unavailable
from coordinator.sites import enrolment
from protocol.audit_event import AuditEvent, EventType, payload_hash
from protocol.checkpoint import TreeHead, cosigner_key, open_checkpoint
from protocol.enrolment import witness_name
from protocol.errors import BadSignature, Malformed, VerificationFailed
from protocol.merkle import Frontier, Tree, consistency_proof, inclusion_proof, leaf_hash
from protocol.note import Note
from protocol.tiles import Tile, decode_bundle
from protocol.tlog_proof import TlogProof
from tests.coordinator.appliances import Made, TestSite


def put(appliance: Appliance, count: int = 1) -> int:
    """Append some events; the last one's id."""
    entry = 0
    with transaction(appliance.engine) as session:
        for number in range(count):
            entry = append(
                session, appliance, EventType.DATASET_REGISTERED, actor="site:a", subject=f"dataset:d{number}"
            )
    return entry


def head(appliance: Appliance) -> tuple[int, bytes]:
    with reading(appliance.engine) as session:
        row = LogRepository(session, appliance.settings.origin).head()
        return row.size, row.root


def leaves(appliance: Appliance) -> list[bytes]:
    with reading(appliance.engine) as session:
        return list(session.exec(select(LogEntry.leaf).order_by(col(LogEntry.id))))


def federation(made: Made, folder: Path, count: int) -> list[TestSite]:
    sites = [TestSite(f"site-{number}", folder) for number in range(count)]
    for site in sites:
        site.enrol_in(made.appliance)
    integrate_once(made.appliance)
    return sites


def cosign(made: Made, site: TestSite, note: bytes | None = None) -> int:
    with transaction(made.appliance.engine) as session:
        data = site.cosign(note or latest_note(session, made.appliance), made.clock())
        key = cosigner_key(witness_name(site.name), site.witness).text
        return accept_cosignatures(session, made.appliance, key, data)


def test_an_event_is_appended_with_its_transaction_or_not_at_all(local: Made) -> None:
    def fail() -> None:
        with transaction(local.appliance.engine) as session:
            append(session, local.appliance, EventType.PACKS_ACTIVATED, actor="coordinator", subject="x")
            raise KeyError

    before = leaves(local.appliance)
    with pytest.raises(KeyError):
        fail()
    assert leaves(local.appliance) == before


def test_the_leaf_holds_pseudonyms_and_a_salted_hash_only(local: Made) -> None:
    with transaction(local.appliance.engine) as session:
        append(
            session, local.appliance, EventType.PERSON_SIGNED_IN, actor=person_label(local.appliance, "ada"),
            subject=site_label("site-a"), payload={"name": "ada", "reason": "a reason"},
        )  # fmt: skip
        row = session.exec(select(LogEntry).order_by(col(LogEntry.id).desc())).first()
    assert row is not None
    assert b"ada" not in row.leaf
    assert b"reason" not in row.leaf
    event = AuditEvent.model_validate_json(row.leaf)
    assert row.salt is not None
    assert row.payload is not None
    assert event.payload == payload_hash(row.salt, row.payload)
    assert event.actor == person_label(local.appliance, "ada")


@pytest.mark.parametrize("field", [{"subject": "free text"}, {"numbers": {"x": float("nan")}}, {"digests": {"d": "x"}}])
def test_what_is_not_of_the_closed_forms_is_not_logged(local: Made, field: dict[str, object]) -> None:
    fields: dict[str, object] = {"actor": "coordinator", "subject": "x", **field}
    with transaction(local.appliance.engine) as session, pytest.raises(Malformed):
        append(session, local.appliance, EventType.PACKS_ACTIVATED, **fields)  # type: ignore[arg-type]


def test_tiles_hold_the_log_across_their_boundaries(local: Made) -> None:
    for count in (1, 200, 53, 2, 300, 1):
        put(local.appliance, count)
        size = integrate_once(local.appliance)
        entries = leaves(local.appliance)
        assert size == len(entries)
        tree = Tree(leaf_hash(leaf) for leaf in entries)
        assert head(local.appliance) == (size, tree.root())
        store = tile_store(local.appliance)
        assert store.frontier(size, tree.root()).root == tree.root()
        last = Tile(None, (size - 1) // 256, size - (size - 1) // 256 * 256)
        assert list(decode_bundle(last, store.read(last))) == entries[last.index * 256 :]
    narrow = Tile(0, 0, 7)
    assert store.read(narrow) == b"".join(leaf_hash(leaf) for leaf in entries[:7]), "a prefix of the wider tile"


def test_more_than_a_batch_is_integrated_in_turn(local: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.audit.sequencer.BATCH", 10)
    put(local.appliance, 25)
    sizes = [integrate_once(local.appliance) for _ in range(4)]
    assert sizes == [13, 23, 28, 28]
    assert verify_log(local.appliance) == 28


def test_a_crash_between_tiles_and_head_is_harmless(local: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    put(local.appliance, 300)
    before = head(local.appliance)

    def crash(*_: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(LogRepository, "advance", crash)
        with pytest.raises(InterruptedError):
            integrate_once(local.appliance)
    assert head(local.appliance) == before
    store = tile_store(local.appliance)
    assert store.frontier(*before).root == before[1], "the published log is still there"
    put(local.appliance, 5)
    while head(local.appliance)[0] < 308:
        integrate_once(local.appliance)
    assert verify_log(local.appliance) == 308


def test_a_crash_after_indices_or_within_a_tile_is_harmless(local: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    put(local.appliance, 20)
    with transaction(local.appliance.engine) as session:
        LogRepository(session, local.appliance.settings.origin).assign(7)

    writes = 0
    write = TileStore._write

    def tear(self: TileStore, tile: Tile, data: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes == 2:
            path = self._path(tile)
            path.with_name(path.name + ".new").write_bytes(data[:3])
            raise InterruptedError
        write(self, tile, data)

    with monkeypatch.context() as patch:
        patch.setattr(TileStore, "_write", tear)
        with pytest.raises(InterruptedError):
            integrate_once(local.appliance)
    assert integrate_once(local.appliance) == 23
    assert verify_log(local.appliance) == 23


def test_two_heads_cannot_follow_one(local: Made) -> None:
    put(local.appliance)
    with reading(local.appliance.engine) as session:
        old = LogRepository(session, local.appliance.settings.origin).head()
    integrate_once(local.appliance)
    with transaction(local.appliance.engine) as session, pytest.raises(CheckpointConflict):
        LogRepository(session, local.appliance.settings.origin).advance(old, 9, bytes(32), b"fork", "now")
    with reading(local.appliance.engine) as session:
        assert session.exec(select(LogCheckpoint).where(LogCheckpoint.note == b"fork")).first() is None


@pytest.mark.processes
def test_appends_from_processes_are_all_in_the_log(local: Made) -> None:
    """Four processes of the command line beside a sequencer at work."""
    home = str(local.appliance.home)
    command = (sys.executable, "-m", "coordinator.cli", "sites", "invite")
    local.appliance.engine.dispose()
    running = [
        subprocess.Popen((*command, f"site-{number}", "--home", home), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in range(4)
    ]
    while any(process.poll() is None for process in running):
        integrate_once(local.appliance)
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0] * 4, outputs
    integrate_once(local.appliance)
    assert verify_log(local.appliance) == 3 + 4
    assert len(set(leaves(local.appliance))) == 7


def test_lost_or_damaged_tiles_are_seen_and_rebuilt(local: Made) -> None:
    put(local.appliance, 40)
    integrate_once(local.appliance)
    store, path = tile_store(local.appliance), local.appliance.settings.log_folder / "tile/0/000"
    for damage in (
        lambda: path.write_bytes(path.read_bytes()[:-40]),
        lambda: path.write_bytes(bytes(42 * 32)),
        path.unlink,
    ):
        damage()
        with pytest.raises(LogDamaged):
            store.frontier(*head(local.appliance))
        put(local.appliance)
        integrate_once(local.appliance)
        assert store.frontier(*head(local.appliance)).size == head(local.appliance)[0]
    rebuild_tiles(local.appliance)
    assert verify_log(local.appliance) == head(local.appliance)[0]


@pytest.mark.parametrize("tamper", ["leaf", "order", "missing", "root", "shorter", "note"])
def test_tampering_with_the_database_is_seen(local: Made, tamper: str) -> None:
    put(local.appliance, 10)
    integrate_once(local.appliance)
    with transaction(local.appliance.engine) as session:
        entry = session.exec(select(LogEntry).where(LogEntry.log_index == 4)).one()
        if tamper == "leaf":
            entry.leaf = entry.leaf.replace(b"site:a", b"site:b")
        elif tamper == "order":
            other = session.exec(select(LogEntry).where(LogEntry.log_index == 5)).one()
            entry.leaf, other.leaf = other.leaf, entry.leaf
        elif tamper == "missing":
            session.delete(entry)
        elif tamper == "root":
            session.exec(update(LogHead).values(root=bytes(32)))
        elif tamper == "shorter":
            tree = Tree(leaf_hash(leaf) for leaf in leaves(local.appliance)[:9])
            session.exec(update(LogHead).values(size=9, root=tree.root()))
        else:
            row = session.exec(select(LogCheckpoint).order_by(col(LogCheckpoint.size).desc())).first()
            assert row is not None
            row.note = row.note.replace(b"\n13\n", b"\n14\n")
    with pytest.raises((LogTampered, BadSignature)):
        verify_log(local.appliance)


def test_a_sequencer_that_fails_says_so_and_recovers(local: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    thread = SequencerThread(local.appliance)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    put(local.appliance)
    with monkeypatch.context() as patch:
        patch.setattr(TileStore, "_write", full)
        thread._step()
        assert thread.failure is not None
        assert thread.failure.startswith("OSError at coordinator.audit")
    thread._step()
    assert thread.failure is None
    assert verify_log(local.appliance) == 4


def test_a_quorum_is_what_the_policy_says(local: Made, tmp_path: Path) -> None:
    sites = federation(local, tmp_path, 4)
    with reading(local.appliance.engine) as session:
        policy = policy_in_force(session, local.appliance)
        assert policy is not None
        assert (len(policy.witnesses), policy.quorum) == (4, 3)
    for site, enough in zip(sites, (False, False, True, True), strict=True):
        cosign(local, site)
        cosign(local, site)  # twice by one site counts once
        with reading(local.appliance.engine) as session:
            note = quorum_note(session, local.appliance, 1)
        assert (note is not None) == enough
        if note is not None:
            assert policy.accept(note).size == head(local.appliance)[0]


def test_cosignatures_are_by_the_caller_over_our_own_heads(local: Made, tmp_path: Path) -> None:
    first, second = federation(local, tmp_path, 2)
    size, _ = head(local.appliance)
    forked = Note(
        TreeHead(local.appliance.settings.origin, size, bytes(32)).text, Note.parse(_latest(local)).signatures
    )
    with pytest.raises(StaleCosignature):
        cosign(local, first, forked.to_bytes())
    elsewhere = Note(TreeHead("another/log", size, bytes(32)).text, forked.signatures)
    with pytest.raises(StaleCosignature):
        cosign(local, first, elsewhere.to_bytes())
    theirs = second.cosign(_latest(local), local.clock())
    key = cosigner_key(witness_name(first.name), first.witness).text
    with transaction(local.appliance.engine) as session, pytest.raises(BadSignature):
        accept_cosignatures(session, local.appliance, key, theirs)
    with transaction(local.appliance.engine) as session, pytest.raises(Malformed):
        accept_cosignatures(session, local.appliance, key, b"no signature\n")
    with reading(local.appliance.engine) as session:
        assert session.exec(select(LogCosignature)).first() is None


def test_a_cosignature_may_come_late(local: Made, tmp_path: Path) -> None:
    sites = federation(local, tmp_path, 2)
    old, size = _latest(local), head(local.appliance)[0]
    put(local.appliance)
    integrate_once(local.appliance)
    assert [cosign(local, site, old) for site in sites] == [size, size]
    with reading(local.appliance.engine) as session:
        assert quorum_note(session, local.appliance, size + 1) is None
        note = quorum_note(session, local.appliance, size)
    assert note is not None


def test_a_revoked_sites_cosignature_counts_no_more(local: Made, tmp_path: Path) -> None:
    sites = federation(local, tmp_path, 3)
    for site in sites[:2]:
        cosign(local, site)
    with reading(local.appliance.engine) as session:
        assert quorum_note(session, local.appliance, 1) is not None
    with transaction(local.appliance.engine) as session:
        enrolment.revoke(session, local.appliance, sites[0].name)
    with reading(local.appliance.engine) as session:
        policy = policy_in_force(session, local.appliance)
        assert policy is not None
        assert [key.name for key in policy.witnesses] == [witness_name(site.name) for site in sites[1:]]
        assert quorum_note(session, local.appliance, 1) is None, "the policy's own entry is not witnessed yet"
    integrate_once(local.appliance)
    for site in sites[1:]:
        cosign(local, site)
    with reading(local.appliance.engine) as session:
        note = quorum_note(session, local.appliance, 1)
        assert note is not None
        assert set(policy.accept(note).cosigners) == {witness_name(site.name) for site in sites[1:]}
    with transaction(local.appliance.engine) as session:
        for site in sites[1:]:
            enrolment.revoke(session, local.appliance, site.name)
    with reading(local.appliance.engine) as session:
        assert policy_in_force(session, local.appliance) is None
        assert quorum_note(session, local.appliance, 1) is None


def test_a_receipt_proves_its_entry_to_whoever_holds_the_policy(local: Made, tmp_path: Path) -> None:
    sites = federation(local, tmp_path, 4)
    entry = put(local.appliance, 30)
    with reading(local.appliance.engine) as session, pytest.raises(Unavailable):
        proof_for(session, local.appliance, entry)
    integrate_once(local.appliance)
    for site in sites[:3]:
        cosign(local, site)
    put(local.appliance, 3)
    integrate_once(local.appliance)
    with reading(local.appliance.engine) as session:
        receipt = TlogProof.from_bytes(proof_for(session, local.appliance, entry))
        policy = policy_in_force(session, local.appliance)
        row = session.get(LogEntry, entry)
        assert row is not None
        assert policy is not None
        with pytest.raises(Unavailable):
            proof_for(session, local.appliance, 10_000)
    checkpoint = receipt.verify(leaf_hash(row.leaf), policy)
    assert checkpoint.size == head(local.appliance)[0] - 3
    assert receipt.index == row.log_index


def test_the_latest_note_is_the_logs_own(local: Made) -> None:
    opened = open_checkpoint(_latest(local), log_key(local.appliance))
    assert (opened.size, opened.root) == head(local.appliance)
    local.clock.offset = timedelta(days=1)
    assert integrate_once(local.appliance) == opened.size, "nothing new, nothing signed"


def _latest(made: Made) -> bytes:
    with reading(made.appliance.engine) as session:
        return latest_note(session, made.appliance)


def test_every_proof_from_the_files_is_the_tree_s_own(tmp_path: Path) -> None:
    """Of a log that grew in uneven steps, at every size of it, read from the inner hashes that the files keep."""
    store, frontier, entries = TileStore(tmp_path), Frontier(), [b"%d" % number for number in range(1100)]
    for end in (1, 3, 200, 256, 257, 600, 1023, 1100):
        frontier = store.extend(frontier, entries[frontier.size : end])
    tree = Tree(leaf_hash(entry) for entry in entries)
    for size in (1, 2, 255, 256, 257, 511, 700, 1024, 1100):
        reader = store.reader(size)
        for index in {0, min(1, size - 1), size // 3, size // 2, size - 1}:
            assert inclusion_proof(index, size, reader) == inclusion_proof(index, size, tree.read)
            old = index + 1
            assert consistency_proof(old, size, reader) == consistency_proof(old, size, tree.read)
        with pytest.raises(ValueError, match="beyond"):
            reader(0, size)


def test_a_damaged_inner_hash_proves_nothing(local: Made, tmp_path: Path) -> None:
    sites = federation(local, tmp_path, 1)
    put(local.appliance, 40)
    size = integrate_once(local.appliance)
    cosign(local, sites[0])
    path = local.appliance.settings.log_folder / "tile/0/000"
    data = bytearray(path.read_bytes())
    data[(size + 1) * 32] ^= 1  # the hash over the leaves 2 and 3
    with reading(local.appliance.engine) as session:
        assert proof_for(session, local.appliance, 1)
        path.write_bytes(bytes(data))
        sequencer._store.cache_clear()  # as after a restart: what the store keeps in memory is whole
        with pytest.raises(VerificationFailed):
            proof_for(session, local.appliance, 1)
