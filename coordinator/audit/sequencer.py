"""Integrates pending entries: indices, tiles, then the head and its signed checkpoint by compare-and-swap.

Each step may be interrupted. Indices once assigned stay; tiles written ahead of the head are only longer files; the
head moves in one statement together with the checkpoint's row, so a checkpoint is never signed for a log that a
restart would contradict. Two sequencers on one log do no harm: one of them loses the swap.
"""

from __future__ import annotations

import logging
import threading
from functools import lru_cache
from pathlib import Path

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from coordinator.appliance import Appliance
from coordinator.audit.repository import CheckpointConflict, Head, LogRepository
from coordinator.audit.tile_store import LogDamaged, TileStore
from coordinator.database import reading, transaction
from coordinator.errors import place_of
from protocol.checkpoint import TreeHead, open_checkpoint, sign_checkpoint
from protocol.errors import CloisterError, VerificationFailed
from protocol.merkle import EMPTY_ROOT, Frontier, RootHasher, leaf_hash
from protocol.note import KeyType, VerifierKey
from protocol.timestamp import timestamp

BATCH = 4096
_log = logging.getLogger("cloister.sequencer")


class LogTampered(VerificationFailed):
    """The database's leaves, its head and the signed checkpoint contradict each other."""

    code = "log-tampered"


def log_key(appliance: Appliance) -> VerifierKey:
    """The key that verifies this log's checkpoints; its name is the log's origin."""
    return VerifierKey(appliance.settings.origin, KeyType.ED25519, appliance.keys.log.public.raw)


def tile_store(appliance: Appliance) -> TileStore:
    """The log's tiles; one store for a folder, which keeps what nearly every proof reads."""
    return _store(appliance.settings.log_folder)


@lru_cache(maxsize=16)
def _store(folder: Path) -> TileStore:
    return TileStore(folder)


def integrate_once(appliance: Appliance) -> int:
    """Publish what is pending, at most 4096 entries; the published size after.

    Raises CheckpointConflict when another sequencer was faster, LogTampered when the log contradicts itself.
    """
    origin = appliance.settings.origin
    with reading(appliance.engine) as session:
        repository = LogRepository(session, origin)
        head, waiting = repository.head(), repository.pending()
    if waiting:
        with transaction(appliance.engine) as session:
            LogRepository(session, origin).assign(BATCH)
    elif head.assigned == head.size:
        return head.size
    store = tile_store(appliance)
    with store.writing():
        with reading(appliance.engine) as session:
            repository = LogRepository(session, origin)
            head = repository.head()
            leaves = list(repository.leaves(head.size, min(head.assigned, head.size + BATCH)))
        return _publish(appliance, store, head, leaves) if leaves else head.size


def _publish(appliance: Appliance, store: TileStore, head: Head, leaves: list[bytes]) -> int:
    try:
        frontier = store.frontier(head.size, head.root)
    except LogDamaged:
        _rebuild(appliance, store)
        frontier = store.frontier(head.size, head.root)
    after = store.extend(frontier, leaves)
    note = sign_checkpoint(TreeHead(appliance.settings.origin, after.size, after.root), appliance.keys.log)
    with transaction(appliance.engine) as session:
        LogRepository(session, appliance.settings.origin).advance(
            head, after.size, after.root, note.to_bytes(), timestamp(appliance.clock())
        )
    return after.size


def verify_log(appliance: Appliance) -> int:
    """Recompute the published log from the database and compare it with the head and the signed checkpoint.

    Returns its size. Raises LogTampered at the first contradiction.
    """
    with reading(appliance.engine) as session:
        repository = LogRepository(session, appliance.settings.origin)
        head, checkpoint = repository.head(), repository.latest_checkpoint()
        from_leaves = RootHasher()
        for leaf in repository.leaves(0, head.size):
            from_leaves.add(leaf_hash(leaf))
    if checkpoint is None:
        agreed = head.size == 0 and head.root == EMPTY_ROOT
    else:
        signed = open_checkpoint(checkpoint.note, log_key(appliance))
        agreed = (signed.size, signed.root) == (head.size, head.root) == (from_leaves.size, from_leaves.root)
    if not agreed:
        raise LogTampered(
            "The transparency log in the database is not the one that was signed.",
            "Stop, keep the evidence, and compare with the sites' mirrors; restore the database from a backup.",
        )
    return head.size


def rebuild_tiles(appliance: Appliance) -> None:
    """Write every tile anew from the database, after `verify_log` has found it true."""
    store = tile_store(appliance)
    with store.writing():
        _rebuild(appliance, store)


def _rebuild(appliance: Appliance, store: TileStore) -> None:
    verify_log(appliance)
    frontier = Frontier()
    with reading(appliance.engine) as session:
        repository = LogRepository(session, appliance.settings.origin)
        size = repository.head().size
        while frontier.size < size:
            frontier = store.extend(frontier, list(repository.leaves(frontier.size, min(size, frontier.size + BATCH))))
    _log.warning("the log's tiles were rebuilt from the database")


class SequencerThread:
    """Integrates at the set interval until stopped. `failure` says why it can't, while it can't."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sequencer", daemon=True)
        self.failure: str | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Integrate what is left, then end the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            last = self._stop.is_set()
            self._step()
            if last:
                return
            self._stop.wait(self._appliance.settings.sequencer_interval)

    def _step(self) -> None:
        try:
            integrate_once(self._appliance)
        except (CheckpointConflict, IntegrityError):
            return  # another sequencer published the same entries
        except CloisterError as error:
            self._note(error.code)
        except (SQLAlchemyError, OSError) as error:
            self._note(f"{type(error).__name__} at {place_of(error)}")
        else:
            self._note(None)

    def _note(self, failure: str | None) -> None:
        if failure != self.failure and failure is not None:
            _log.error("the log can't be integrated: %s", failure)
        self.failure = failure
