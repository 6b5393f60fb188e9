"""`make bench`: each row is a ratio between ours and a peer or a limit, from one interleaved run on this machine.

    python packaging/bench/run.py [--out bench-out] [--only NAME]

Writes results.json: a list of {"name", "ratio", "of", "goal", "holds", ...}. Nothing here is a test: a machine that is
busy gives another ratio, never a failure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "demo")]

import accountant  # noqa: E402 - the folders above are where it lies
import dp_step  # noqa: E402
import exported_graph  # noqa: E402
import federation_bench  # noqa: E402
import idle_agent  # noqa: E402
import log  # noqa: E402
import policy_decision  # noqa: E402
import secagg  # noqa: E402

Row = dict[str, Any]
BENCHES: dict[str, Callable[[], list[Row]]] = {
    "secure round": federation_bench.secure_round,
    "idle agent memory": idle_agent.rows,
    "secagg": secagg.rows,
    "dp step": dp_step.rows,
    "exported graph": exported_graph.rows,
    "accountant": accountant.rows,
    "log": log.rows,
    "policy decision": policy_decision.rows,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure.")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--only", choices=sorted(BENCHES), help="run one of them")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name, bench in BENCHES.items():
        if options.only in (None, name):
            print(f"measuring {name} …", flush=True)
            rows += bench()
    (options.out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        says = "holds" if row["holds"] else "DOES NOT HOLD"
        print(f"{row['name']:<{width}}  {row['ratio']:.3f} of {row['of']} (goal at most {row['goal']}): {says}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
