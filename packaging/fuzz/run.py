"""Fuzz what comes from outside: nothing but a refusal may come of a changed input.

    python packaging/fuzz/run.py [--inputs 100000] [--only NAME …] [--seed N] [--out fuzz-out]

For each format: inputs; refused by an error; not taken, though read (a report that says no, a part that no one vouches
for); taken for a good one; crashes (any error that is no refusal); the slowest. What was taken or crashed is kept in
--out. Exit status 1 if there is any.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing import fuzz
from targets import targets

INPUTS = 100_000


def main() -> int:
    known = targets()
    parser = argparse.ArgumentParser(description="Fuzz what comes from outside.")
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--only", choices=sorted(known), nargs="+")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"))
    options = parser.parse_args()
    rows = []
    for name, target in known.items():
        if options.only is None or name in options.only:
            rows.append(fuzz(name, target, options.inputs, options.seed, options.out))
            print(json.dumps(rows[-1]), flush=True)
    return int(any(row["taken"] or row["crashes"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
