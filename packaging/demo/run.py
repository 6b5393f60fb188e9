"""The demonstration: a coordinator and four clinics as separate processes, from invitation to a prediction.

    python packaging/demo/run.py [--data FOLDER] [--out demo-out] [--keep]

Everything goes through the product's own commands; only `reference.py` looks into every clinic's folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import clinics
import report
from demonstration import Demonstration
from processes import DemonstrationFailed
from rich.console import Console


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the demonstration.")
    parser.add_argument("--data", type=Path, help="a folder of real hospitals' files: .../uci_heart_disease")
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    parser.add_argument("--keep", action="store_true", help="keep every party's folder (prints where)")
    options = parser.parse_args()
    console = Console(width=min(Console().width, 120))
    began = time.monotonic()
    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes below end with this one
    work = Path(tempfile.mkdtemp(prefix="cloister-demo-"))
    demonstration = None
    try:
        if options.out.exists():
            shutil.rmtree(options.out)
        options.out.mkdir(parents=True)
        scenario = clinics.scenario(options.data, work)
        demonstration = Demonstration(scenario, work, options.out.resolve(), console)
        demonstration.set_up()
        study = demonstration.propose()
        demonstration.facts["setup_seconds"] = time.monotonic() - began
        demonstration.train(study)
        demonstration.release(study)
        demonstration.predict()
        demonstration.audit()
        model = demonstration.keep_release()
        document = report.write(demonstration, model, seconds=time.monotonic() - began)
        (options.out / "report.json").write_text(json.dumps(document, indent=2) + "\n")
        report.show(document, console)
        console.print(f"\nEvidence, release and report.json are in {options.out}/", highlight=False)
        return 0
    except (DemonstrationFailed, clinics.NoData) as error:
        console.print(f"error: {error}", style="red", highlight=False)
        if demonstration is not None and options.keep:
            console.print(f"logs are in {work}", highlight=False)
        return 1
    finally:
        if demonstration is not None:
            demonstration.stop()
        if options.keep:
            console.print(f"kept {work}", highlight=False)
        else:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
