"""What the demonstration leaves behind: `report.json` and a table that a person understands. Nothing is typed in."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures import interval, number
from reference import compare
from rich.console import Console
from rich.table import Table

from protocol.study import StudySpec

if TYPE_CHECKING:
    from demonstration import Demonstration


def write(demo: Demonstration, model: Path, *, seconds: float) -> dict[str, Any]:
    """The report, from the commands' own answers and one reference run."""
    facts = demo.facts
    subject = json.loads((model.parent / "subject.json").read_bytes())
    plan = demo.person("ada", "study", "status", facts["status"]["study"])["plan"]
    reference = compare(demo.sites, model, StudySpec.model_validate(plan["spec"]))
    rounds = [row for row in facts["rounds"] if row["phase"] == "train"]
    evaluation, epsilon = subject["evaluation"], subject["epsilon"]
    installed = [name for name, answer in facts["installed"].items() if answer["installed"]]
    return {
        "study": facts["status"]["study"],
        "sites": [
            {
                "name": name,
                "patients": data["patients"],
                "held_out": data["held_out"],
                "contributed_rounds": sum(name in row["contributed"] for row in rounds),
            }
            for name, data in facts["datasets"].items()
        ],
        "rounds": len(rounds),
        "epsilon": {
            "global": epsilon["epsilon"],
            "worst_site": epsilon["epsilon_worst_site"],
            "target": plan["spec"]["privacy"]["epsilon"],
            "evaluation": epsilon["epsilon_evaluation"],
            "evaluation_worst_site": epsilon["epsilon_evaluation_worst_site"],
            "cohort_to_date": epsilon["epsilon_cohort_to_date"],
        },
        "delta": epsilon["delta"],
        "privacy": {key: epsilon[key] for key in ("unit", "adjacency", "sampling", "accountant", "trust")},
        **reference,
        "auc_reported": _told(evaluation["auc"]),
        "accuracy_reported": _told(evaluation["accuracy"]),
        "calibration_error_reported": _told(evaluation["calibration_error"]),
        "evaluation_mode": evaluation["mode"],
        "secure_aggregation": plan["spec"]["privacy"]["mode"] == "distributed" and _masked(rounds),
        "approvals": [
            {"role": vote["role"], "subject_digest": vote["subject_digest"]} for vote in facts["release"]["approvals"]
        ],
        "release": {
            "digest": facts["release"]["subject_digest"],
            "verified": all(answer["verified"] for answer in facts["installed"].values()),
            "installed_sites": installed,
        },
        "audit": {key: facts["audit"][key] for key in ("entries", "checkpoint_size", "cosignatures", "verified")},
        "prediction": facts["prediction"],
        "seconds": {"setup": facts["setup_seconds"], "training": facts["training_seconds"], "total": seconds},
        "round_seconds_median": statistics.median([row["seconds"] for row in rounds]) if rounds else None,
    }


def _told(value: dict[str, Any]) -> dict[str, Any]:
    """A reported value with its interval, and a reason where it is undefined."""
    return {key: value[key] for key in ("value", "low", "high", "reason") if key != "reason" or value[key]}


def _masked(rounds: list[dict[str, Any]]) -> bool:
    """Whether every committed round was a sum over at least two sites: one site's sum would be its contribution."""
    return bool(rounds) and all(len(row["contributed"]) >= 2 for row in rounds)


def _held_out(epsilon: float | None) -> str:
    return "the site's exact counts: outside the guarantee" if epsilon is None else f"epsilon {epsilon:.3f}"


def show(document: dict[str, Any], console: Console) -> None:
    """The closing table."""
    title = f"{document['study']}: one private model of {len(document['sites'])} hospitals"
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("value")
    for site in document["sites"]:
        table.add_row(
            site["name"],
            f"{site['patients']} patients, {site['held_out']} of them held out, in {site['contributed_rounds']} rounds",
        )
    epsilon = document["epsilon"]
    table.add_row("privacy of a patient", f"epsilon {epsilon['global']:.3f} at delta {document['delta']:g}")
    table.add_row("if all other sites collude", f"epsilon {epsilon['worst_site']:.3f}")
    table.add_row("if they do, of a held-out patient", _held_out(epsilon["evaluation_worst_site"]))
    table.add_row("AUC the product reported", interval(document["auc_reported"]))
    table.add_row("AUC of the released model", number(document["auc"]))
    table.add_row("AUC of a hospital alone (mean)", number(document["auc_local_mean"]))
    table.add_row("AUC pooled, without privacy", number(document["auc_pooled_nonprivate"]))
    table.add_row("approved by", ", ".join(vote["role"].replace("_", " ") for vote in document["approvals"]))
    table.add_row(
        "release",
        f"{document['release']['digest'][:19]}, verified: {document['release']['verified']}, "
        f"installed at {len(document['release']['installed_sites'])} sites",
    )
    audit = document["audit"]
    table.add_row(
        "audit log", f"{audit['entries']} entries, {audit['cosignatures']} cosignatures, verified: {audit['verified']}"
    )
    table.add_row("prediction", f"{document['prediction']['probability']:.3f} at {document['prediction']['site']}")
    seconds = document["seconds"]
    table.add_row(
        "seconds",
        f"{seconds['setup']:.0f} set-up, {seconds['training']:.0f} training "
        f"({document['round_seconds_median']:.2f} a round), {seconds['total']:.0f} in all",
    )
    console.print(table)
