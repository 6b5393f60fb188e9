"""One target fuzzed: how many changed inputs were refused, taken, or crashed the reader."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path
from typing import Any

from mutation import mutations
from target import Target

from protocol.errors import CloisterError


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
