"""An auditor as a witness of the log: it follows every entry, keeps what it saw, then cosigns that and nothing else.

A folder holds the witness: its key, which log it follows, and what it saw last (a monitor's state). Each turn a monitor
reads every new entry and refuses a log that goes back, forks or lies; the new head is flushed to disk before the key
signs anything, and what is signed is read from there. Source: https://c2sp.org/tlog-witness.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.client.account import AccountError
from coordinator.client.audit_monitor import Turn, Watched
from coordinator.client.audit_watch import load, watch, write_durably
from coordinator.client.connection import Connection
from protocol.canonical import canonical, parse_canonical
from protocol.checkpoint import cosign, cosigner_key, open_checkpoint
from protocol.enrolment import auditor_witness_name
from protocol.errors import Malformed
from protocol.identifiers import require_name
from protocol.note import VerifierKey
from protocol.signing import MlDsa44SigningKey, SigningKey
from protocol.witness_policy import WitnessPolicy

PATIENT = 1 << 62
"""Seconds: that others have not cosigned yet is no reason for a witness not to."""
_KEY, _STATE, _NAME, _LOCK = "witness.pem", "state.json", "witness.json", ".lock"
_KINDS: dict[str, type[SigningKey] | type[MlDsa44SigningKey]] = {"ml-dsa-44": MlDsa44SigningKey, "ed25519": SigningKey}


@dataclass(frozen=True)
class AuditWitness:
    """The witness in a folder. `name`: the auditor's; `key` cosigns checkpoints and nothing else."""

    folder: Path
    name: str
    key: SigningKey | MlDsa44SigningKey = field(repr=False)

    @property
    def vkey(self) -> VerifierKey:
        """What the coordinator's administrator is given."""
        return cosigner_key(auditor_witness_name(self.name), self.key)

    @property
    def state(self) -> Path:
        """What was seen last."""
        return self.folder / _STATE


@dataclass(frozen=True)
class Cosigned:
    """A turn of the monitor, and the size that was cosigned; 0 for a log without entries."""

    turn: Turn
    size: int


def make_witness(folder: Path, name: str, kind: str) -> AuditWitness:
    """A new witness in a new folder; kind: ml-dsa-44 or ed25519.

    Raises AccountError where there is something already, Malformed for a name or a kind of key that is none.
    """
    require_name(name, "The auditor's name")
    if kind not in _KINDS:
        raise Malformed(f"{kind[:40]!r} is no kind of key.", f"Use {' or '.join(_KINDS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AccountError(f"{folder} is not empty.", "Choose another folder: a witness has its own.")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = _KINDS[kind].generate()
    write_durably(folder / _NAME, canonical({"version": 1, "name": name, "key": kind}))
    write_durably(folder / _KEY, key.to_pem())  # last: without a key there is no witness
    return AuditWitness(folder, name, key)


def open_witness(folder: Path) -> AuditWitness:
    """The witness in a folder. Raises AccountError when there is none, or others may read its key."""
    try:
        said, pem = (folder / _NAME).read_bytes(), (folder / _KEY).read_bytes()
        exposed = (folder / _KEY).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    except FileNotFoundError:
        raise AccountError(f"{folder} holds no witness.", "Run `cloister audit witness init` first.") from None
    if exposed:
        raise AccountError(f"{folder / _KEY} is accessible to other users.", f"Run: chmod 600 {folder / _KEY}")
    match parse_canonical(said):
        case {"version": 1, "name": str(name), "key": "ml-dsa-44" | "ed25519" as kind, **rest} if not rest:
            return AuditWitness(folder, name, _KINDS[kind].from_pem(pem))
    raise Malformed(f"{folder / _NAME} is damaged.", "Restore the folder from a backup, or make a new witness.")


def take_part(
    witness: AuditWitness, connection: Connection, *, log: VerifierKey | None, policy: WitnessPolicy | None,
    clock: Callable[[], int],
) -> Cosigned:  # fmt: skip
    """One turn: look, keep, cosign, send.

    log, policy: pins, the first time. clock: POSIX seconds. Raises LogAlarm (nothing is signed; the evidence lies
    beside the state), AccountError without a pin, OSError when the state can't be kept (nothing is signed), and what
    the connection raises.
    """
    with _alone(witness.folder):
        held = load(witness.state, log, policy, now=clock())
        turn = watch(connection, witness.state, held, now=clock(), stall_seconds=PATIENT, quiet_seconds=None)
        kept = Watched.from_bytes(witness.state.read_bytes())
        if not kept.frontier.size:
            return Cosigned(turn, 0)
        head = open_checkpoint(kept.note, kept.log).head
        line = cosign(head, witness.vkey.name, witness.key, timestamp=clock())
    connection.post_bytes(
        f"/v1/log/auditor-cosignatures?size={head.size}", line.line.encode(), kind="text/plain; charset=utf-8"
    )
    return Cosigned(turn, head.size)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process of this witness looks or signs meanwhile."""
    with open(os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
