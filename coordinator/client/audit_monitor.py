"""A monitor of the log: whoever runs it, anywhere, keeps what it saw and finds out what the coordinator takes back.

Each turn reads every new entry: its own frontier, extended by them, must give the root that the log signed, so nothing
it ever saw can be changed, dropped or put in another order, nor can entries be kept from it. A quorum of hospitals must
have cosigned what it sees, or the history that is shown to it may be one made for it alone. What contradicts is
evidence: two notes that the log signed.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import Any, Protocol

from protocol.canonical import canonical, parse, parse_canonical
from protocol.checkpoint import Checkpoint, TreeHead, open_checkpoint
from protocol.errors import CloisterError, Malformed, VerificationFailed
from protocol.merkle import HASH_BYTES, Frontier, consistency_proof, leaf_hash, verify_consistency
from protocol.note import VerifierKey, strict_base64
from protocol.tiles import TILE_WIDTH, Tile, decode_bundle, tile_reader, touched_bundles
from protocol.witness_policy import WitnessPolicy

_STATE_LIMIT = 4 << 20


class LogAlarm(VerificationFailed):
    """The log contradicts what it showed before, or nobody vouches for what it shows. `notes`: the evidence."""

    code = "log-alarm"

    def __init__(self, kind: str, message: str, notes: tuple[bytes, ...]) -> None:
        super().__init__(
            message, "Keep the evidence, tell the federation's auditor and the sites, and trust no release until then."
        )
        self.kind = kind
        self.notes = notes
        self.facts = {"alarm": kind, "evidence": [note.decode("utf-8", "replace") for note in notes]}


class LogSource(Protocol):
    """What the coordinator serves to anyone. Each raises CloisterError where there is nothing."""

    def checkpoint(self) -> bytes:
        """The latest checkpoint."""

    def witnessed(self) -> bytes:
        """The latest checkpoint that a quorum cosigned, with its cosignatures."""

    def policy(self) -> bytes:
        """The witness policy in force."""

    def tile(self, tile: Tile) -> bytes:
        """A hash tile or an entry bundle."""


@dataclass(frozen=True)
class Watched:
    """What a monitor keeps: the log's key, the frontier it verified and the note over it, the policy that it goes by.

    told: the digest of the policy that the log named last. grown_at: POSIX seconds when it last saw new entries.
    """

    log: VerifierKey
    frontier: Frontier
    note: bytes
    policy: WitnessPolicy | None
    told: str
    grown_at: int

    @classmethod
    def fresh(cls, log: VerifierKey, policy: WitnessPolicy | None, *, now: int) -> Watched:
        """Nothing seen yet."""
        return cls(log, Frontier(), b"", policy, "", now)

    def to_bytes(self) -> bytes:
        """Canonical JSON, which `from_bytes` reads."""
        return canonical(
            {
                "version": 1,
                "log": self.log.text,
                "size": self.frontier.size,
                "peaks": [base64.b64encode(peak).decode("ascii") for peak in self.frontier.peaks],
                "note": self.note.decode("utf-8"),
                "policy": self.policy.to_document() if self.policy else None,
                "told": self.told,
                "grown_at": self.grown_at,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Watched:
        """Raises Malformed for anything but a state whose frontier and note agree."""
        match parse_canonical(data, limit=_STATE_LIMIT):
            case {
                "version": 1, "log": str(log), "size": int(size), "peaks": list(peaks), "note": str(note),
                "policy": policy, "told": str(told), "grown_at": int(grown_at), **rest,
            } if not rest:  # fmt: skip
                pass
            case _:
                raise _bad_state()
        hashes = tuple(strict_base64(str(peak), "peak") for peak in peaks)
        if size.bit_count() != len(hashes) or size < 0 or any(len(peak) != HASH_BYTES for peak in hashes):
            raise _bad_state()
        key, frontier = VerifierKey.parse(log), Frontier(size, hashes)
        if size:
            head = open_checkpoint(note.encode("utf-8"), key).head
            if (head.size, head.root) != (size, frontier.root):
                raise _bad_state()
        trusted = WitnessPolicy.from_document(policy) if isinstance(policy, dict) else None
        return cls(key, frontier, note.encode("utf-8"), trusted, told, grown_at)


@dataclass(frozen=True)
class Turn:
    """What a turn saw: the size, entries that were new, the size that a quorum vouches for, by whom, policy changes."""

    size: int
    new_entries: int
    witnessed: int
    cosigners: tuple[str, ...]
    witnesses_added: tuple[str, ...]
    witnesses_removed: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """JSON."""
        return {
            "size": self.size, "new_entries": self.new_entries, "witnessed": self.witnessed,
            "cosigners": list(self.cosigners), "witnesses_added": list(self.witnesses_added),
            "witnesses_removed": list(self.witnesses_removed),
        }  # fmt: skip


def take_turn(
    source: LogSource, held: Watched, *, now: int, stall_seconds: int, quiet_seconds: int | None = None
) -> tuple[Watched, Turn]:
    """Look at the log once; what to keep from now on. `now`: POSIX seconds.

    Raises LogAlarm: "rollback", "fork", "inconsistent", "policy", "unwitnessed" (no quorum for entries for longer than
    `stall_seconds`), "quiet" (no new entry for longer than `quiet_seconds`); BadSignature for a checkpoint that is not
    the log's, and what the source raises. Then nothing is to be kept.
    """
    witnessed_note = _witnessed(source)
    note = source.checkpoint()
    served = open_checkpoint(note, held.log).head
    _require_after(held, served, note)
    frontier, told = _extend(source, held, served, note)
    fresh = served.size - held.frontier.size
    kept = replace(held, frontier=frontier, told=told, note=note if fresh else held.note or note)
    kept = replace(kept, grown_at=now if fresh else held.grown_at)
    if quiet_seconds is not None and now - kept.grown_at > quiet_seconds:
        raise LogAlarm("quiet", f"The log has not grown for {now - kept.grown_at} seconds.", (note,))
    kept = _follow_policy(source, kept, note)
    witnessed = None
    if witnessed_note is not None and kept.policy is not None:
        witnessed = _vouched(source, kept.policy, witnessed_note, served, note)
    _require_witnessed(kept, witnessed, served, note, now=now, stall_seconds=stall_seconds)
    return kept, Turn(
        size=served.size,
        new_entries=fresh,
        witnessed=witnessed.size if witnessed else 0,
        cosigners=tuple(sorted(witnessed.cosigners)) if witnessed else (),
        witnesses_added=_difference(kept.policy, held.policy),
        witnesses_removed=_difference(held.policy, kept.policy),
    )


def compare(source: LogSource, held: Watched, other: bytes) -> int:
    """Whether a checkpoint that somebody else was served is of the same history as ours; its size.

    Raises LogAlarm "fork" where it is not: the log showed the two of us different histories; BadSignature where it is
    not the log's.
    """
    theirs, ours = open_checkpoint(other, held.log).head, open_checkpoint(held.note, held.log).head
    old, new = sorted((theirs, ours), key=lambda head: head.size)
    if old.size == 0:
        return theirs.size
    try:
        _consistent(source, old, new)
    except VerificationFailed:
        raise LogAlarm(
            "fork", f"The log showed two histories: of {ours.size} entries here, of {theirs.size} elsewhere.",
            (held.note, other),
        ) from None  # fmt: skip
    return theirs.size


def _require_after(held: Watched, served: TreeHead, note: bytes) -> None:
    if served.size < held.frontier.size:
        raise LogAlarm(
            "rollback", f"The log went back from {held.frontier.size} entries to {served.size}.", (held.note, note)
        )
    if held.frontier.size and served.size == held.frontier.size and served.root != held.frontier.root:
        raise LogAlarm("fork", f"The log shows two histories of {served.size} entries.", (held.note, note))


def _extend(source: LogSource, held: Watched, served: TreeHead, note: bytes) -> tuple[Frontier, str]:
    """Read the new entries, a bundle at a time; they must lead from what was held to what is signed."""
    frontier, told = held.frontier, held.told
    for bundle in touched_bundles(frontier.size, served.size):
        known = max(0, frontier.size - bundle.index * TILE_WIDTH)
        fresh = decode_bundle(bundle, source.tile(bundle))[known:]
        frontier, _ = frontier.extend(leaf_hash(entry) for entry in fresh)
        for entry in fresh:
            told = _told(entry) or told
    if served.size and frontier.root != served.root:
        raise LogAlarm(
            "inconsistent",
            f"The {served.size} entries do not lead from the {held.frontier.size} seen before to the signed root.",
            (held.note, note) if held.note else (note,),
        )
    return frontier, told


def _told(entry: bytes) -> str:
    """The digest of the witness policy that an entry puts in force; "" for nearly all."""
    if b'"witness_policy":' not in entry:
        return ""
    match parse(entry):
        case {"digests": {"witness_policy": str(found)}}:
            return found
    return ""


def _follow_policy(source: LogSource, held: Watched, note: bytes) -> Watched:
    """Go by the policy that the log named last; only the log's entries may change it."""
    if not held.told or (held.policy is not None and held.policy.digest == held.told):
        return held
    served = WitnessPolicy.from_bytes(source.policy())
    if served.log != held.log or served.digest != held.told:
        raise LogAlarm("policy", "The witness policy served is not the one that the log named last.", (note,))
    return replace(held, policy=served)


def _witnessed(source: LogSource) -> bytes | None:
    try:
        return source.witnessed()
    except CloisterError as error:
        if error.code in ("not-found", "unavailable"):
            return None  # nobody has cosigned yet: whether that is too long, is said below
        raise


def _vouched(
    source: LogSource, policy: WitnessPolicy, note: bytes, served: TreeHead, latest: bytes
) -> Checkpoint | None:
    """The cosigned checkpoint, which must be of the history that was read; None where no quorum stands on it."""
    try:
        found = policy.accept(note)
    except VerificationFailed:
        return None
    if found.size > served.size:
        raise LogAlarm("rollback", f"{found.size} entries were cosigned, and {served.size} are served.", (note, latest))
    try:
        _consistent(source, found.head, served)
    except VerificationFailed:
        raise LogAlarm(
            "fork", f"The {found.size} entries that the sites cosigned are not the first of those served.",
            (note, latest),
        ) from None  # fmt: skip
    return found


def _require_witnessed(
    held: Watched, witnessed: Checkpoint | None, served: TreeHead, note: bytes, *, now: int, stall_seconds: int
) -> None:
    if held.policy is None or (witnessed is not None and witnessed.size == served.size):
        return  # no site has enrolled, or all is vouched for
    since = max(witnessed.cosigners.values()) if witnessed is not None else held.grown_at
    if now - since > stall_seconds:
        vouched = witnessed.size if witnessed is not None else 0
        raise LogAlarm(
            "unwitnessed",
            f"{served.size - vouched} entries have had no quorum of cosignatures for {now - since} seconds.",
            (note,),
        )


def _consistent(source: LogSource, old: TreeHead, new: TreeHead) -> None:
    """Raises VerificationFailed unless the first head's tree begins the second's, by the tiles that are served."""
    proof = consistency_proof(old.size, new.size, tile_reader(new.size, source.tile))
    verify_consistency(old.size, new.size, proof, old.root, new.root)


def _difference(one: WitnessPolicy | None, other: WitnessPolicy | None) -> tuple[str, ...]:
    """The names of the witnesses in the one policy that are not in the other."""
    known = {witness.text for witness in other.witnesses} if other else set()
    return tuple(witness.name for witness in (one.witnesses if one else ()) if witness.text not in known)


def _bad_state() -> Malformed:
    return Malformed(
        "The monitor's state is damaged or was changed.",
        "Restore the file from a backup; without it the monitor begins anew, and knows nothing of before.",
    )
