"""What the audit log costs, each beside the least that the same work could cost, and whether it grows with the log.

    python packaging/bench/log.py [--entries N]

Two coordinators of their own, with N and with 10,000 entries (a quarter of them with a payload) under a checkpoint that
witnesses cosigned, in a temporary folder. Each ratio is the median over turns in which both sides run one after the
other, in CPU time of this process: `log append` a business transaction with its audit entry, over the same one without;
`log verify` an export's verification, over parsing and hashing its bytes once; `log proof` an inclusion and a
consistency proof from tiles on disk, over reading those tiles; and for each the cost at N over that at 10,000. The
memory rows are the peak of a process of its own that exports, or verifies, N entries, over that for 10,000.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

from interleaved import row

ENTRIES = 1_000_000
FEW = 10_000
VARIABLE = "CLOISTER_BENCH_ENTRIES"
WITNESSES = 3
VERIFY_TURNS = 3
TRANSACTIONS, PROOFS = 40, 40
APPEND_GOAL, VERIFY_GOAL, PROOF_GOAL, GROWTH_GOAL, MEMORY_GOAL = 1.5, 2.0, 3.0, 1.3, 1.1
DIGEST = "sha256:" + "5" * 64
PEAK = """
import sys
from pathlib import Path
def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
"""
VERIFY_PEAK = (
    PEAK
    + """
from coordinator.client.audit_bundle import verify_path
assert verify_path(Path(sys.argv[1])).verified
print(peak())
"""
)
EXPORT_PEAK = (
    PEAK
    + """
from coordinator.appliance import open_appliance
from coordinator.audit.export import write_export
from coordinator.database import reading
appliance = open_appliance(Path(sys.argv[1]))
with reading(appliance.engine) as session:
    write_export(session, appliance).file.close()
print(peak())
"""
)


def rows(entries: int | None = None) -> list[dict[str, Any]]:
    """All rows, at `entries` or CLOISTER_BENCH_ENTRIES log entries, 1,000,000 where neither is given."""
    count = entries if entries is not None else int(os.environ.get(VARIABLE, ENTRIES))
    if not FEW <= count <= ENTRIES:
        raise SystemExit(f"error: {count} entries can't be measured; remedy: ask for {FEW:,} to {ENTRIES:,}")
    with (
        tempfile.TemporaryDirectory(prefix="cloister-bench-") as folder,
        coordinator(Path(folder) / "many", count) as many,
        coordinator(Path(folder) / "few", FEW) as few,
    ):
        return [*_append(many, few, count), *_proof(many, few, count), *_verify(many, few, count, Path(folder))]


@contextmanager
def coordinator(folder: Path, entries: int) -> Iterator[Any]:
    """A coordinator whose log has exactly `entries` published entries, the last checkpoint cosigned by a quorum."""
    from sqlalchemy import insert

    from coordinator.appliance import open_appliance
    from coordinator.audit.append import COORDINATOR, append
    from coordinator.audit.sequencer import integrate_once
    from coordinator.audit.tables import LogEntry
    from coordinator.audit.witnessing import accept_cosignatures, build_policy, latest_note, set_policy
    from coordinator.database import transaction
    from coordinator.initialise import initialise
    from coordinator.sites import enrolment
    from protocol.audit_event import EventType
    from protocol.checkpoint import TreeHead, cosign, cosigner_key
    from protocol.note import Note
    from protocol.signing import SigningKey

    folder.mkdir()
    initialise(folder / "home", address="127.0.0.1:8443")
    appliance = open_appliance(folder / "home")
    keys = {f"site-{number}/witness": SigningKey.generate() for number in range(WITNESSES)}
    with transaction(appliance.engine) as session:
        policy = build_policy(session, appliance, [cosigner_key(name, key).text for name, key in keys.items()])
        assert policy is not None
        enrolment.invite(session, appliance, "bench-site")
        entry = append(
            session, appliance, EventType.SITE_ENROLLED, actor=COORDINATOR, subject="site:bench-site",
            digests={"witness_policy": policy.digest},
        )  # fmt: skip
        set_policy(session, appliance, policy, entry=entry)
    size = integrate_once(appliance)
    for start in range(size, entries, 10_000):
        with transaction(appliance.engine) as session:
            fresh = [_logged(number) for number in range(start, min(entries, start + 10_000))]
            session.connection().execute(insert(LogEntry), fresh)
    while (published := integrate_once(appliance)) < entries:
        pass
    if published != entries:
        raise RuntimeError(f"the log has {published} entries, not {entries}")
    for name, key in keys.items():
        with transaction(appliance.engine) as session:
            head = TreeHead.parse(Note.parse(latest_note(session, appliance)).text)
            line = cosign(head, name, key, timestamp=int(time.time())).line.encode()
            accept_cosignatures(session, appliance, cosigner_key(name, key).text, line)
    try:
        yield appliance
    finally:
        appliance.engine.dispose()


def _logged(number: int) -> dict[str, bytes | None]:
    """A row of the log: every fourth entry has a payload, as a person's act has."""
    from protocol.audit_event import SALT_BYTES, AuditEvent, EventType, payload_hash
    from protocol.canonical import canonical

    if number % 4:
        leaf = AuditEvent(
            event=EventType.ROUND_COMMITTED, at="2026-11-23T00:00:00Z", actor="coordinator",
            subject=f"study-{number % 7}",
            digests={"model": DIGEST, "plan": DIGEST}, numbers={"epsilon": 0.25 + number / 4_000_000, "round": number},
            groups={"contributed": ("site-0", "site-1", "site-2")},
        ).leaf()  # fmt: skip
        return {"leaf": leaf, "payload": None, "salt": None}
    payload, salt = canonical({"name": f"person {number}", "reason": "needed for the study"}), os.urandom(SALT_BYTES)
    leaf = AuditEvent(
        event=EventType.RELEASE_APPROVED, at="2026-11-23T00:00:00Z", actor="person-0123456789abcdef",
        subject=f"release:r-{number % 9}", digests={"subject": DIGEST}, payload=payload_hash(salt, payload),
    ).leaf()  # fmt: skip
    return {"leaf": leaf, "payload": payload, "salt": salt}


def _append(many: Any, few: Any, entries: int) -> list[dict[str, Any]]:
    """A site registers a data set: the product's own verb, and the same with its audit entry left out."""
    from coordinator.database import transaction
    from coordinator.sites import enrolment
    from protocol.enrolment import DatasetRegistration

    registration = DatasetRegistration(schema_digest=DIGEST, snapshot=DIGEST, patients=100, held_out=20)
    numbers = iter(range(1 << 30))

    def register(appliance: Any) -> None:
        for _ in range(TRANSACTIONS):
            with transaction(appliance.engine) as session:
                enrolment.register_dataset(session, appliance, "bench-site", f"set-{next(numbers)}", registration)

    def without() -> None:
        with mock.patch.object(enrolment, "append", return_value=0):
            register(many)

    of = "the same business transaction without its entry"
    return [
        row("log append", lambda: register(many), without, TRANSACTIONS, APPEND_GOAL, of, entries=entries),
        _growth("log append", lambda: register(many), lambda: register(few), TRANSACTIONS, TRANSACTIONS, entries),
    ]


def _proof(many: Any, few: Any, entries: int) -> list[dict[str, Any]]:
    """From a store that has read nothing yet, for each proof anew; its growth as the product has it, from one store."""
    from coordinator.audit.sequencer import tile_store
    from coordinator.audit.tile_store import TileStore
    from protocol.merkle import consistency_proof, inclusion_proof
    from protocol.tiles import Tile

    chance = random.Random(4)  # which entries are proved: no secret

    def wanted(size: int) -> list[tuple[int, int]]:
        return [(chance.randrange(size), chance.randrange(1, size)) for _ in range(PROOFS)]

    def prove(store: Callable[[], TileStore], size: int, pairs: list[tuple[int, int]]) -> None:
        for index, old in pairs:
            reader = store().reader(size)
            inclusion_proof(index, size, reader)
            consistency_proof(old, size, reader)

    folder, pairs, pairs_of_few = many.settings.log_folder, wanted(entries), wanted(FEW)
    read: list[Tile] = []
    original = TileStore.file

    def noted(self: Any, level: int, index: int, width: int, *, from_disk: bool) -> bytes:
        read.append(Tile(level, index, width))
        return original(self, level, index, width, from_disk=from_disk)

    with mock.patch.object(TileStore, "file", noted):
        prove(lambda: TileStore(folder), entries, pairs)
    store, kept, kept_of_few = TileStore(folder), tile_store(many), tile_store(few)

    def floor() -> None:
        for tile in read:
            store.read(tile)

    of = "reading from disk, once each, the tiles that the two proofs need"
    cold = row("log proof", lambda: prove(lambda: TileStore(folder), entries, pairs), floor, PROOFS, PROOF_GOAL, of,
               entries=entries, tiles_per_proof=len(read) / PROOFS)  # fmt: skip
    tiles = _growth(
        "log proof", lambda: prove(lambda: kept, entries, pairs), lambda: prove(lambda: kept_of_few, FEW, pairs_of_few),
        PROOFS, PROOFS, entries,
    )  # fmt: skip
    grown = _growth("log proof", lambda: _receipts(many, pairs), lambda: _receipts(few, pairs_of_few),
                    PROOFS, PROOFS, entries)  # fmt: skip
    return [cold, {**grown, "growth_of_the_tiles_part": tiles["ratio"], "tiles_part": tiles["cpu_seconds"]}]


def _receipts(appliance: Any, pairs: list[tuple[int, int]]) -> None:
    """Receipts as the coordinator hands them out: index, quorum and note from its database, the path from its tiles."""
    from coordinator.audit.witnessing import proof_for
    from coordinator.database import reading

    for index, _ in pairs:
        with reading(appliance.engine) as session:
            proof_for(session, appliance, index + 1)  # ids begin at 1, and grow with the index


def _verify(many: Any, few: Any, entries: int, folder: Path) -> list[dict[str, Any]]:
    from coordinator.audit.export import write_export
    from coordinator.client.audit_bundle import AUDIT_FILES, verify_path
    from coordinator.client.audit_bundle import ENTRIES as NAME
    from coordinator.client.audit_export import write_bundle
    from coordinator.database import reading

    def export(appliance: Any, name: str, size: int) -> Path:
        with reading(appliance.engine) as session:
            made = write_export(session, appliance, minimum_size=size)
        write_bundle(folder / name, lambda file: [file.write(chunk) for chunk in made.chunks()])
        return folder / name

    bundle, small = export(many, "bundle-many", entries), export(few, "bundle-few", FEW)
    assert sorted(path.name for path in bundle.iterdir()) == sorted(AUDIT_FILES)

    def verify(path: Path, size: int) -> None:
        report = verify_path(path)
        if not report.verified or report.entries != size:
            raise RuntimeError(f"the bundle does not verify: {report.problems[:1]}")

    def floor() -> None:
        hashed = hashlib.sha256()
        with (bundle / NAME).open("rb") as lines:
            for line in lines:
                hashed.update(line)
                json.loads(line)

    of = "parsing and hashing the export's bytes once"
    size = (bundle / NAME).stat().st_size
    return [
        row("log verify", lambda: verify(bundle, entries), floor, entries, VERIFY_GOAL, of, turns=VERIFY_TURNS,
            warm=False, entries=entries, bytes=size),
        _growth("log verify", lambda: verify(bundle, entries), lambda: verify(small, FEW), entries, FEW, entries,
                turns=VERIFY_TURNS),
        _memory("log verify memory", VERIFY_PEAK, bundle, small, entries),
        _memory("log export memory", EXPORT_PEAK, many.home, few.home, entries),
    ]  # fmt: skip


def _growth(
    name: str, many: Callable[[], None], few: Callable[[], None], times: int, times_of_few: int, entries: int,
    *, turns: int = 5,
) -> dict[str, Any]:  # fmt: skip
    return row(
        f"{name} growth", many, few, times, GROWTH_GOAL, f"the cost at {FEW:,} entries",
        floor_times=times_of_few, turns=turns, entries=entries,
    )  # fmt: skip


def _memory(name: str, program: str, many: Path, few: Path, entries: int) -> dict[str, Any]:
    """Bytes that a process of its own, interpreter and all, held at most."""
    peaks = []
    for path in (many, few):
        command = [sys.executable, "-c", program, str(path)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    ratio = peaks[0] / peaks[1]
    return {
        "name": name, "ratio": ratio, "of": f"the peak at {FEW:,} entries", "goal": MEMORY_GOAL,
        "holds": ratio <= MEMORY_GOAL, "entries": entries, "bytes": {"many": peaks[0], "few": peaks[1]},
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the audit log.")
    parser.add_argument("--entries", type=int, help=f"log entries, {FEW:,} to {ENTRIES:,} (the default)")
    json.dump(rows(parser.parse_args().entries), sys.stdout, indent=2)
    print()
