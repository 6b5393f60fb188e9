"""Secure aggregation of ten million parameters beside Flower's own functions and the memory's own speed.

Each ratio is the median over turns in which ours, Flower's and the floor run one after the other, in CPU time of this
process on one thread. The floor is what nobody can go below: one in-place uint32 addition over the whole vector for
each pass, k + 2 for a client with k peers, one per site for a server. Memory is what a process's resident set grows by
at most, one process each.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

LENGTH = 10_000_000
PEERS = (4, 9)
SITES = 10
TURNS = 5
FLOWER_TURNS = 2
CLIENT_GOAL, SERVER_GOAL, FASTER_GOAL = 3.0, 3.5, 8.0
CLIENT_MEMORY_GOAL, AGGREGATION_MEMORY_GOAL = 1.05, 3.1
CLIP, TARGET = 8.0, 1 << 22

Row = dict[str, Any]


def rows() -> list[Row]:
    """ "secagg client 10M", "secagg client memory", "secagg server 10M" and "aggregation memory"."""
    return [_client(), _client_memory(), _server(), _aggregation_memory()]


# What is measured. Everything is imported late: the memory processes start here too.


def _site(peers: int) -> Any:
    from privacy.secagg.client import SecAggSite

    names = [f"site-{index}" for index in range(peers + 1)]
    sites = [
        SecAggSite(
            site=name,
            study="bench",
            plan_digest=bytes(32),
            peers=names,
            minimum_cohort=3,
            lengths={"training": LENGTH},
        )
        for name in names
    ]
    adverts = [site.advertise(os.urandom) for site in sites]
    messages = [site.on_adverts(adverts) for site in sites]
    middle = sites[len(sites) // 2]
    middle.on_encapsulations(messages)
    return middle


def _contribute(site: Any, attempt: int, values: np.ndarray) -> memoryview:
    """Quantise and mask, over the values: what an agent does with the vector that its worker hands it."""
    from privacy.parameters import Grid

    masked: memoryview = site.contribute(
        0,
        attempt,
        site.peers,
        bytes(32),
        values,
        Grid(2.0**-18),
        os.urandom,
        plan_digest=bytes(32),
        overwrite=True,
    )
    return masked


def _flower_client(values: np.ndarray, peers: int) -> list[np.ndarray]:
    """The arithmetic of flwr.clientapp.mod.secaggplus_mod, stage "collect masked vectors"."""
    from flwr.common.secure_aggregation import ndarrays_arithmetic as arithmetic
    from flwr.common.secure_aggregation.quantization import quantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    vector = quantize(arithmetic.parameters_multiply([values], 1.0), CLIP, TARGET)
    shapes = [part.shape for part in vector]
    vector = arithmetic.parameters_addition(vector, pseudo_rand_gen(os.urandom(32), 1 << 32, shapes))
    for index in range(peers):
        mask = pseudo_rand_gen(os.urandom(32), 1 << 32, shapes)
        operation = arithmetic.parameters_addition if index % 2 else arithmetic.parameters_subtraction
        vector = operation(vector, mask)
    masked: list[np.ndarray] = arithmetic.parameters_mod(vector, 1 << 32)
    return masked


def _aggregate(vectors: list[np.ndarray]) -> np.ndarray:
    from privacy.parameters import Grid
    from privacy.secagg.server import SecureSum

    total = SecureSum([f"site-{index}" for index in range(len(vectors))], LENGTH)
    for index, vector in enumerate(vectors):
        total.add(f"site-{index}", vector.data.cast("B"))
    return total.result(Grid(2.0**-18))


def _flower_server(vectors: list[np.ndarray]) -> list[np.ndarray]:
    """The arithmetic of flwr.server.workflow.SecAggPlusWorkflow, stage "unmask", with nobody missing."""
    from flwr.common.secure_aggregation import ndarrays_arithmetic as arithmetic
    from flwr.common.secure_aggregation.quantization import dequantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    total = [np.zeros(LENGTH, dtype=np.int64)]
    for vector in vectors:
        total = arithmetic.parameters_addition(total, [vector])
    total = arithmetic.parameters_mod(total, 1 << 32)
    for _ in vectors:
        total = arithmetic.parameters_subtraction(total, pseudo_rand_gen(os.urandom(32), 1 << 32, [(LENGTH,)]))
    decoded: list[np.ndarray] = dequantize(arithmetic.parameters_mod(total, 1 << 32), CLIP, TARGET)
    return decoded


# Speed


def _seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _floor(passes: int) -> float:
    total, other = np.zeros(LENGTH, dtype=np.uint32), np.ones(LENGTH, dtype=np.uint32)

    def add() -> None:
        for _ in range(passes):
            np.add(total, other, out=total)

    return _seconds(add)


def _speed(
    name: str,
    goal: float,
    passes: int,
    ours: Callable[[], float],
    flowers: Callable[[], float],
) -> Row:
    floors: list[float] = []
    faster: list[float] = []
    for turn in range(TURNS):
        floor, mine = _floor(passes), ours()
        floors.append(mine / floor)
        if turn < FLOWER_TURNS:
            faster.append(flowers() / mine)
    ratio, peer = statistics.median(floors), statistics.median(faster)
    return {
        "name": name,
        "ratio": ratio,
        "of": f"{passes} in-place uint32 additions over the vector",
        "goal": goal,
        "holds": ratio <= goal and peer >= FASTER_GOAL,
        "peer": {"of": "Flower's own functions over ours, CPU time", "ratio": peer, "goal": FASTER_GOAL},
        "turns": floors,
    }


def _client() -> Row:
    """The worse of k = 4 and k = 9 peers, with both beside it."""
    values = np.random.default_rng(0).normal(0.0, 1.0, LENGTH)
    measured = []
    for peers in PEERS:
        site = _site(peers)
        attempts = iter(range(1000))

        def ours(site: Any = site, attempts: Any = attempts) -> float:
            handed = values.copy()
            return _seconds(lambda: _contribute(site, next(attempts), handed))

        def flowers(peers: int = peers) -> float:
            single = values.astype(np.float32)
            return _seconds(lambda: _flower_client(single, peers))

        ours()  # the rounding's table is made once per process
        row = _speed("secagg client 10M", CLIENT_GOAL, peers + 2, ours, flowers)
        measured.append({**row, "peers": peers})
    worst = max(measured, key=lambda row: float(row["ratio"]))
    worst["holds"] = all(row["holds"] for row in measured)
    worst["all"] = [{key: row[key] for key in ("peers", "ratio", "peer", "turns")} for row in measured]
    return worst


def _server() -> Row:
    rng = np.random.default_rng(0)
    words = [rng.integers(0, 2**32, LENGTH, dtype=np.uint32) for _ in range(SITES)]

    def flowers() -> float:
        wide = [vector.astype(np.int64) for vector in words]  # what Flower's clients send
        return _seconds(lambda: _flower_server(wide))

    return _speed("secagg server 10M", SERVER_GOAL, SITES, lambda: _seconds(lambda: _aggregate(words)), flowers)


# Memory


def _growth(what: str, sites: int = SITES) -> float:
    """By how many vectors of 4 bytes a parameter a process of its own grows at most."""
    said = subprocess.run(
        [sys.executable, __file__, what, str(sites)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    return float(json.loads(said.stdout)["vectors"])


def _client_memory() -> Row:
    ratio, peer = _growth("client"), _growth("flower-client")
    return {
        "name": "secagg client memory",
        "ratio": ratio,
        "of": "one vector of uint32, beside the values handed in: masked, stored and read back to be sent",
        "goal": CLIENT_MEMORY_GOAL,
        "holds": ratio <= CLIENT_MEMORY_GOAL,
        "peer": {"of": "Flower's own functions", "ratio": peer},
    }


def _aggregation_memory() -> Row:
    few, many = _growth("server", 4), _growth("server", 50)
    peer = _growth("flower-server", 10)
    return {
        "name": "aggregation memory",
        "ratio": max(few, many),
        "of": "one model of 4 bytes a parameter; the worse of 4 and 50 sites, from signed chunks on disk to the sum",
        "goal": AGGREGATION_MEMORY_GOAL,
        "holds": max(few, many) <= AGGREGATION_MEMORY_GOAL,
        "peer": {"of": "Flower's aggregate_arrayrecords over 10 sites", "ratio": peer},
        "sites": {"4": few, "50": many},
    }


def _resident() -> int:
    return _status("VmRSS")


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


def _grow(what: str, sites: int, folder: Path) -> float:
    """In a process of its own: warm the imports up, forget the peak so far, work, and tell the new peak."""
    work = _prepared(what, sites, folder)
    before = _resident()
    with open("/proc/self/clear_refs", "w", encoding="ascii") as refs:
        refs.write("5")  # resets VmHWM, proc(5)
    kept = work()
    grown = _status("VmHWM") - before
    del kept
    return grown / (4 * LENGTH)


def _prepared(what: str, sites: int, folder: Path) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    if what == "client":
        from privacy.secagg.discrete_gaussian import atoms

        atoms()
        site, values = _site(PEERS[0]), rng.normal(0.0, 1.0, LENGTH)
        return _contribution(site, values, folder / "site.db")
    if what == "flower-client":
        single = rng.standard_normal(LENGTH, dtype=np.float32)
        _flower_client(single[:10], 1)
        return lambda: _flower_client(single, PEERS[0])
    if what == "server":
        return _aggregation(sites, folder)
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    def flower() -> object:
        records = [
            RecordDict(
                {
                    "arrays": ArrayRecord({"0": Array(rng.standard_normal(LENGTH, dtype=np.float32))}),
                    "metrics": MetricRecord({"num-examples": 10.0}),
                }
            )
            for _ in range(sites)
        ]
        return aggregate_arrayrecords(records, "num-examples")

    return flower


@dataclass(frozen=True)
class _Plan:
    """What an attempt's intake asks of a plan: the sum's numbers and each site's key."""

    keys: dict[str, Any]

    def secure_sum(self, phase: str, cohort: Any) -> Any:
        from protocol.plan import SecureSum

        del phase
        return SecureSum(
            clip=1.0, sites=len(cohort), tolerated=1, largest_batch=100, noise_multiplier=1.0, length=LENGTH
        )  # fmt: skip

    def of_entry(self, entry: int) -> _Plan:
        del entry
        return self

    def site(self, name: str) -> Any:
        return SimpleNamespace(identity=self.keys[name].public.text)


def _contribution(site: Any, values: np.ndarray, database: Path) -> Callable[[], object]:
    """The agent's own way from the worker's vector to the disk: masked in place, its manifest, stored in pieces."""
    from privacy.secagg.framing import Manifest
    from site_agent.database import create_database, transaction
    from site_agent.training import stored_vectors
    from site_agent.training.tables import ConsumedAttempt

    engine = create_database(database)
    row = ConsumedAttempt(
        id=1, study="bench", plan_digest="", phase="train", round=1, attempt=1, position=1, request_digest="",
        consumed_at="",
    )  # fmt: skip
    with transaction(engine) as session:
        session.add(row)

    def work() -> object:
        masked = _contribute(site, 0, values)
        manifest = Manifest.of(masked)
        with transaction(engine) as session:
            stored_vectors.write(session, 1, masked)
        with transaction(engine) as session:  # what is sent is what is on the disk
            for number in range(len(manifest.digests)):
                manifest.check(number, stored_vectors.read(session, 1, *manifest.span(number)))
        return manifest

    return work


def _aggregation(sites: int, folder: Path) -> Callable[[], object]:
    """The driver's own way, but for the network: signed contributions whose chunks lie in the coordinator's store are
    verified and added as they come. The chunks of one site at a time are on the disk."""
    from coordinator.rounds.attempts import Intake
    from coordinator.rounds.chunk_store import ChunkStore, Place
    from coordinator.rounds.uploads import StoredChunks
    from privacy.secagg.framing import Manifest
    from protocol.canonical import canonical, sha256_hex
    from protocol.envelope import seal
    from protocol.round import CONTRIBUTION_TYPE, Contribution, Packet, RoundRequest
    from protocol.signing import SigningKey

    digest = sha256_hex(b"bench")
    names = tuple(f"site-{index:02d}" for index in range(sites))
    keys = {name: SigningKey.generate() for name in names}
    attempt = {"study": "bench", "plan_digest": digest, "phase": "train", "round": 1, "attempt": 1, "model": digest}
    request = RoundRequest.model_validate(
        {**attempt, "cohort": names, "issued_at": "2026-01-01T00:00:00Z", "expires_at": "2026-01-01T01:00:00Z"}
    )
    manifest = Manifest.of(bytes(4 * LENGTH))
    body = canonical(manifest.to_dict())
    said = {"cohort": names, "length": LENGTH, "body": sha256_hex(body), "engine": digest}
    said["manifest"] = f"sha256:{manifest.digest().hex()}"
    packets = {}
    for name in names:
        document = Contribution.model_validate({**attempt, **said, "site": name}).model_dump(mode="json")
        packets[name] = Packet(seal(CONTRIBUTION_TYPE, document, keys[name]), body).to_bytes()
    store = ChunkStore(folder)

    def work() -> object:
        intake = Intake(request, _Plan(keys), StoredChunks(store))  # type: ignore[arg-type]
        for name in names:
            place = Place.of("bench", "train", 1, 1, name)
            store.begin(place, packets[name])
            for number in range(len(manifest.digests)):
                start, stop = manifest.span(number)
                store.put(place, number, bytes(stop - start))
            intake.take(name, packets[name])
            store.erase(place.attempt)
        assert intake.outcome().complete
        return intake.unmasked()

    return work


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        print(json.dumps({"vectors": _grow(sys.argv[1], int(sys.argv[2]), Path(temporary))}))
