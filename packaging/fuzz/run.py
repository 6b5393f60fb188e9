"""Fuzz what comes from outside: nothing but a refusal may come of a changed input.

    python packaging/fuzz/run.py [--inputs 100000] [--only NAME] [--seed N] [--out fuzz-out]

For each format: inputs; refused by an error; not taken, though read (a report that says no, a part that no one vouches
for); taken for a good one; crashes (any error that is no refusal); the slowest. What was taken or crashed is kept in
--out. Exit status 1 if there is any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from mutation import mutations
from targets import Target, targets

from protocol.errors import CloisterError

INPUTS = 100_000


def fuzz(name: str, target: Target, inputs: int, seed: int, out: Path | None = None) -> dict[str, Any]:
    """One target's figures. Every input follows from name and seed."""
    chance = random.Random(f"{name}/{seed}")  # inputs for a test: no secret
    refused = not_taken = slowest = 0
    taken: list[str] = []
    crashes: list[str] = []
    source = mutations(target.seeds, target.words, chance)
    began = time.perf_counter()
    for _ in range(inputs):
        data = next(source)
        before = time.perf_counter()
        try:
            if target.read(data):
                taken.append(_keep(data, out))
            else:
                not_taken += 1
        except CloisterError:
            refused += 1
        except Exception as error:  # noqa: BLE001 - a crash is what is looked for
            crashes.append(f"{type(error).__name__}: {_keep(data, out)}")
        slowest = max(slowest, time.perf_counter() - before)
    return {
        "target": name, "inputs": inputs, "refused": refused, "not_taken": not_taken, "taken": len(taken),
        "crashes": len(crashes), "found": (taken + crashes)[:20], "slowest_seconds": round(slowest, 4),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def _keep(data: bytes, out: Path | None) -> str:
    name = hashlib.sha256(data).hexdigest()[:16]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    return name


def main() -> int:
    known = targets()
    parser = argparse.ArgumentParser(description="Fuzz what comes from outside.")
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--only", choices=sorted(known))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"))
    options = parser.parse_args()
    rows = []
    for name, target in known.items():
        if options.only in (None, name):
            rows.append(fuzz(name, target, options.inputs, options.seed, options.out))
            print(json.dumps(rows[-1]), flush=True)
    return int(any(row["taken"] or row["crashes"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
