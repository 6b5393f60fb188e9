"""One secure round against one default Flower FedAvg round, four sites each, same machine, taken in turns.

Ours: coordinator, SuperLink, driver and four agents with their workers, over TLS, with the ledger's charge, the log and
the policy gates included. Theirs: `flower-superlink` and four `flower-supernode` as they come, train and evaluate.
Ours idles while theirs runs; theirs does not exist while ours runs.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import clinics
import secure_round as stock
import yaml
from demonstration import Demonstration
from rich.console import Console

TURNS = 3
OUR_ROUNDS = 12
THEIR_ROUNDS = 3
GOAL = 0.15


def secure_round() -> list[dict[str, Any]]:
    """The row "secure round", with every round's seconds beside it."""
    work = Path(tempfile.mkdtemp(prefix="cloister-bench-"))
    ours: list[float] = []
    theirs: list[float] = []
    demonstration = None
    try:
        scenario = clinics.scenario(None, work)
        demonstration = Demonstration(scenario, work, work / "out", Console(quiet=True))
        demonstration.set_up()
        for turn in range(TURNS):
            ours += _our_rounds(demonstration, scenario, work, turn)
            theirs += stock.run_default_fedavg(THEIR_ROUNDS)
    finally:
        if demonstration is not None:
            demonstration.stop()
        shutil.rmtree(work, ignore_errors=True)
    ratio = statistics.median(ours) / statistics.median(theirs)
    return [
        {
            "name": "secure round",
            "ratio": ratio,
            "of": "a default Flower FedAvg round, train and evaluate, 4 sites",
            "goal": GOAL,
            "holds": ratio <= GOAL,
            "seconds_ours": ours,
            "seconds_theirs": theirs,
        }
    ]


def _our_rounds(demonstration: Demonstration, scenario: clinics.Scenario, work: Path, turn: int) -> list[float]:
    document = yaml.safe_load(scenario.study.read_text())
    document["study"] = f"bench-{turn}"
    document["training"]["rounds"] = OUR_ROUNDS
    document["dataset"]["dictionary"] = str(scenario.dictionary)
    spec = work / f"bench-{turn}.yaml"
    spec.write_text(yaml.safe_dump(document))
    demonstration.scenario = clinics.Scenario(scenario.clinics, scenario.dictionary, spec, scenario.intended_use)
    study = demonstration.propose()
    demonstration.train(study)
    return [float(row["seconds"]) for row in demonstration.facts["rounds"] if row["phase"] == "train"]
