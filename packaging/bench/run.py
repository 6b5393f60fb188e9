"""`make bench`: each row is a ratio between ours and a peer or a limit, from one interleaved run on this machine.

    python packaging/bench/run.py [--out bench-out] [--only NAME]

Writes results.json, a list of {"name", "ratio", "of", "goal", "holds", "measured", ...}, and table.md, its table for
`docs/BENCHMARKS.md`. With --only, the other rows that are there stay, with their dates. Nothing here is a test: a
machine that is busy gives another ratio, never a failure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
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


def write(rows: list[Row], out: Path, *, keep: bool) -> None:
    """results.json and table.md in `out`. keep: rows of other names that are there stay, with their own dates."""
    file = out / "results.json"
    before: list[Row] = json.loads(file.read_text()) if keep and file.exists() else []
    new = {row["name"] for row in rows}
    told = [row for row in before if row["name"] not in new] + rows
    file.write_text(json.dumps(told, indent=2) + "\n")
    lines = ["| row | ratio | goal | holds | of | the peer's own ratio | measured |", "|---|---|---|---|---|---|---|"]
    for row in told:
        peer: dict[str, Any] = row.get("peer", {})
        theirs = f"{peer['ratio']:.3g} ({peer.get('name', peer.get('of'))})" if "ratio" in peer else ""
        cells = (row["name"], f"{row['ratio']:.3f}", row["goal"], "yes" if row["holds"] else "NO", row["of"], theirs)
        lines.append("| " + " | ".join(map(str, (*cells, row.get("measured", "")))) + " |")
    (out / "table.md").write_text("\n".join(lines) + "\n")


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
            rows += [{**row, "measured": f"{datetime.now(UTC):%Y-%m-%d}"} for row in bench()]
    write(rows, options.out, keep=options.only is not None)
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        says = "holds" if row["holds"] else "DOES NOT HOLD"
        print(f"{row['name']:<{width}}  {row['ratio']:.3f} of {row['of']} (goal at most {row['goal']}): {says}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
