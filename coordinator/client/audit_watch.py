"""`cloister audit monitor`: a turn of the monitor over TLS, its state on disk, and an alarm's evidence beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from coordinator.client.account import AccountError, open_account
from coordinator.client.audit_monitor import LogAlarm, Turn, Watched, compare, take_turn
from coordinator.client.connection import Connection, pinned_context
from protocol.note import MAX_NOTE_BYTES, VerifierKey
from protocol.tiles import MAX_ENTRY_BYTES, TILE_WIDTH, Tile
from protocol.witness_policy import WitnessPolicy

_TILE_LIMIT = TILE_WIDTH * (2 + MAX_ENTRY_BYTES)


class HttpSource:
    """A LogSource over a connection; no account is needed for what everybody may read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def checkpoint(self) -> bytes:
        return self._connection.download("/v1/log/checkpoint", limit=MAX_NOTE_BYTES)

    def witnessed(self) -> bytes:
        return self._connection.download("/v1/log/witnessed", limit=MAX_NOTE_BYTES)

    def policy(self) -> bytes:
        return self._connection.download("/v1/log/policy", limit=MAX_NOTE_BYTES)

    def tile(self, tile: Tile) -> bytes:
        return self._connection.download(f"/v1/log/{tile.path}", limit=_TILE_LIMIT)


def connect(home: Path | None, address: str | None, ca: Path | None) -> Connection:
    """To the coordinator of the account in `home`, or to `address` with the authority in the file `ca`."""
    if (address is None) != (ca is None):
        raise AccountError("An address needs its certificate authority.", "Give --address and --ca, or neither.")
    if address is None or ca is None:
        account = open_account(home)
        address, ca = account.address, account.ca_path
    return Connection(address, pinned_context(ca))


def load(state: Path, log: VerifierKey | None, policy: WitnessPolicy | None, *, now: int) -> Watched:
    """What was seen before; at the first time what the pins say. Raises AccountError without either."""
    if not state.exists():
        log = log or (policy.log if policy else None)
        if log is None:
            raise AccountError("The monitor has no state yet, and no key to go by.", "Give the log's --log-key.")
        return Watched.fresh(log, policy, now=now)
    held = Watched.from_bytes(state.read_bytes())
    if log is not None and log != held.log:
        raise AccountError(
            "The state is of another log.", "Give the key of the log that is watched, or another --state."
        )
    return held


def watch(
    connection: Connection, state: Path, held: Watched, *, now: int, stall_seconds: int, quiet_seconds: int | None,
    other: bytes | None = None,
) -> Turn:  # fmt: skip
    """One turn. What was seen is on disk before anything is said of it; an alarm leaves the state as it was.

    Raises LogAlarm with its evidence written beside the state, and what the connection raises.
    """
    source = HttpSource(connection)
    try:
        kept, turn = take_turn(source, held, now=now, stall_seconds=stall_seconds, quiet_seconds=quiet_seconds)
        write_durably(state, kept.to_bytes())
        if other is not None:
            compare(source, kept, other)
    except LogAlarm as alarm:
        document = {"alarm": alarm.kind, "message": alarm.message, "at": now, "evidence": alarm.facts["evidence"]}
        write_durably(state.with_name(f"{state.name}.alarm-{now}"), json.dumps(document, indent=2).encode() + b"\n")
        raise
    return turn


def write_durably(path: Path, data: bytes) -> None:
    """Put `data` at `path` whole or not at all, for its owner alone; after a power cut it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
