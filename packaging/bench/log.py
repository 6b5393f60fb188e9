"""What the audit log and the policy gate cost, each beside the least that the same work could cost.

    python packaging/bench/log.py [--entries N]

A coordinator of its own, whose log holds N entries under a checkpoint that its witnesses cosigned, in a temporary
folder. Each ratio is the median over turns in which both sides run one after the other, in CPU time of this process:
`log append` a business transaction with its audit entry, over the same one without; `log verify` an export's
verification, over parsing and hashing its bytes once; `log proof` an inclusion and a consistency proof from tiles on
disk, over reading those tiles; `policy decision` the release gate, over the bare evaluation of its expressions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

ENTRIES = 20_000
MOST = 1_000_000
VARIABLE = "CLOISTER_BENCH_ENTRIES"
WITNESSES = 3
TURNS, VERIFY_TURNS = 5, 2
TRANSACTIONS, PROOFS, DECISIONS = 40, 40, 40
APPEND_GOAL, VERIFY_GOAL, PROOF_GOAL, DECISION_GOAL = 1.5, 2.0, 3.0, 2.0
DIGEST = "sha256:" + "5" * 64
GROWTH = """
import sys
from pathlib import Path
from coordinator.client.audit_bundle import verify_path
def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
before = status("VmRSS")
assert verify_path(Path(sys.argv[1])).verified
print(status("VmHWM") - before)
"""


def rows(entries: int | None = None) -> list[dict[str, Any]]:
    """The four rows, at `entries` or CLOISTER_BENCH_ENTRIES log entries, 20,000 where neither is given."""
    count = entries if entries is not None else int(os.environ.get(VARIABLE, ENTRIES))
    if not 1_000 <= count <= MOST:
        raise SystemExit(f"error: {count} entries can't be measured; remedy: ask for 1,000 to {MOST:,}")
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as folder, coordinator(Path(folder), count) as appliance:
        return [_append(appliance, count), _verify(appliance, count), _proof(appliance, count), _decision()]


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
    from protocol.audit_event import AuditEvent, EventType
    from protocol.checkpoint import TreeHead, cosign, cosigner_key
    from protocol.note import Note
    from protocol.signing import SigningKey

    initialise(folder / "home", address="127.0.0.1:8443")
    appliance = open_appliance(folder / "home")
    keys = {f"site-{number}/witness": SigningKey.generate() for number in range(WITNESSES)}
    policy = build_policy(appliance, [cosigner_key(name, key).text for name, key in keys.items()])
    assert policy is not None
    with transaction(appliance.engine) as session:
        enrolment.invite(session, appliance, "bench-site")
        entry = append(
            session, appliance, EventType.SITE_ENROLLED, actor=COORDINATOR, subject="site:bench-site",
            digests={"witness_policy": policy.digest},
        )  # fmt: skip
        set_policy(session, appliance, policy, entry=entry)
    size = integrate_once(appliance)
    leaf = AuditEvent(
        event=EventType.ROUND_COMMITTED, at="2026-11-23T00:00:00Z", actor=COORDINATOR, subject="bench",
        digests={"model": DIGEST, "plan": DIGEST}, numbers={"epsilon": 0.25, "round": 1},
        groups={"contributed": ("site-0", "site-1", "site-2")},
    ).leaf()  # fmt: skip
    for start in range(size, entries, 10_000):
        with transaction(appliance.engine) as session:
            fresh = [
                {"leaf": leaf.replace(b'"round":1', b'"round":%d' % number)}
                for number in range(start, min(entries, start + 10_000))
            ]
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


def _append(appliance: Any, entries: int) -> dict[str, Any]:
    """A site registers a data set: the product's own verb, and the same with its audit entry left out."""
    from coordinator.database import transaction
    from coordinator.sites import enrolment
    from protocol.enrolment import DatasetRegistration

    registration = DatasetRegistration(schema_digest=DIGEST, snapshot=DIGEST, patients=100, held_out=20)
    numbers = iter(range(1 << 30))

    def register() -> None:
        for _ in range(TRANSACTIONS):
            with transaction(appliance.engine) as session:
                enrolment.register_dataset(session, appliance, "bench-site", f"set-{next(numbers)}", registration)

    def without() -> None:
        with mock.patch.object(enrolment, "append", return_value=0):
            register()

    return _row(
        "log append", register, without, TRANSACTIONS, APPEND_GOAL, "the same business transaction without its entry",
        entries,
    )  # fmt: skip


def _verify(appliance: Any, entries: int) -> dict[str, Any]:
    from coordinator.audit.export import bundle_files
    from coordinator.client.audit_bundle import verify_bundle
    from coordinator.database import reading

    with reading(appliance.engine) as session:
        files = bundle_files(session, appliance, minimum_size=entries)
    data = files["entries.jsonl"]

    def verify() -> None:
        report = verify_bundle(files)
        if not report.verified or report.entries != entries:
            raise RuntimeError(f"the bundle does not verify: {report.problems[:1]}")

    def floor() -> None:
        hashlib.sha256(data).digest()
        start = 0
        while start < len(data):
            end = data.index(b"\n", start)
            json.loads(data[start:end])
            start = end + 1

    turns = VERIFY_TURNS if entries <= ENTRIES else 1
    row = _row(
        "log verify", verify, floor, entries, VERIFY_GOAL, "parsing and hashing the export's bytes once", entries,
        turns=turns, warm=False,
    )  # fmt: skip
    return {**row, "bytes": len(data), "memory_over_export": _memory(files) / len(data)}


def _memory(files: dict[str, bytes]) -> int:
    """By how many bytes a process of its own grows at most while it verifies the bundle from its folder."""
    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        command = [sys.executable, "-c", GROWTH, folder]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _proof(appliance: Any, entries: int) -> dict[str, Any]:
    from coordinator.audit.sequencer import tile_store
    from protocol.merkle import consistency_proof, inclusion_proof
    from protocol.tiles import Tile

    store = tile_store(appliance)
    chance = random.Random(4)  # which entries are proved: no secret
    wanted = [(chance.randrange(entries), chance.randrange(1, entries)) for _ in range(PROOFS)]

    def prove() -> None:
        for index, old in wanted:
            reader = store.reader(entries)
            inclusion_proof(index, entries, reader)
            consistency_proof(old, entries, reader)

    read: list[Tile] = []
    original = type(store).read

    def noted(self: Any, tile: Tile) -> bytes:
        read.append(tile)
        return original(self, tile)

    with mock.patch.object(type(store), "read", noted):
        prove()

    def floor() -> None:
        for tile in read:
            store.read(tile)

    row = _row("log proof", prove, floor, PROOFS, PROOF_GOAL, "reading the same tiles from disk", entries)
    return {**row, "tiles_per_proof": len(read) / PROOFS}


def _decision() -> dict[str, Any]:
    """The release gate over facts that pass every rule, beside its expressions alone with their variables bound."""
    from policies.cases import load_cases
    from policies.engine import bind
    from policies.evaluation import evaluate
    from policies.facts import Facts
    from policies.findings import RuleResult
    from policies.packs import builtin_packs, builtin_policy

    policy, documents = builtin_policy(), builtin_packs()
    case = next(
        case
        for pack in policy.packs
        for case in load_cases(documents[f"cases/{pack.id}"], documents["cases/base"])
        if case.text.gate == "release" and case.text.expect is RuleResult.PASSED and not case.text.set
    )
    salt = os.urandom(32)
    needed = Facts.of(policy.catalogue, case.facts).prune(policy.facts_needed("release"))
    facts = Facts(policy.catalogue, needed)
    gathered = facts.to_json()  # nested, as a gatherer supplies it: every fact that the gate may ask for
    found = []
    for pack in policy.packs:
        scope = pack.scopes.get("release")
        found += [scope.when] if scope else []
        for rule in pack.at("release", case.now):
            found += [rule.guard, rule.require] if rule.guard else [rule.require]

    # Bare: each with its facts, every parameter and the moment. Least: each with no more than the variables it names.
    every = [(e.compiled, bind(facts.prune(e.facts), policy.parameters, case.now)) for e in found]
    bound = bind(facts.values, policy.parameters, case.now)
    named = [(e.compiled, {name: bound[name] for name in e.variables}) for e in found]

    def decide() -> None:
        for _ in range(DECISIONS):
            decision = evaluate("release", gathered, policy.packs, policy.parameters, now=case.now, salt=salt)
            if not decision.checked:
                raise RuntimeError("the gate looked at no rule")

    def bare(expressions: list[Any]) -> Callable[[], None]:
        def evaluate_all() -> None:
            for _ in range(DECISIONS):
                for compiled, values in expressions:
                    compiled.eval(data=values)

        return evaluate_all

    of = "the bare CEL evaluations of the release gate's scopes, guards and rules"
    row = _row("policy decision", decide, bare(every), DECISIONS, DECISION_GOAL, of, None)
    least = _row("policy decision", decide, bare(named), DECISIONS, DECISION_GOAL, of, None)
    return {**row, "expressions": len(found), "ratio_over_least_variables": least["ratio"]}


def _row(
    name: str, ours: Callable[[], None], floor: Callable[[], None], times: int, goal: float, of: str,
    entries: int | None, *, turns: int = TURNS, warm: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Both in turns, after one of each that does not count (unless not `warm`); seconds of CPU for one of `times`."""
    if warm:
        ours()
        floor()
    taken = [(_seconds(ours) / times, _seconds(floor) / times) for _ in range(turns)]
    ratio = statistics.median(mine / least for mine, least in taken)
    return {
        "name": name,
        "ratio": ratio,
        "of": of,
        "goal": goal,
        "holds": ratio <= goal,
        **({"entries": entries} if entries is not None else {}),
        "cpu_seconds": {"ours": [mine for mine, _ in taken], "floor": [least for _, least in taken]},
    }


def _seconds(work: Callable[[], None]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the audit log and the policy gate.")
    parser.add_argument("--entries", type=int, help=f"log entries, up to {MOST:,} (default {ENTRIES:,})")
    json.dump(rows(parser.parse_args().entries), sys.stdout, indent=2)
    print()
