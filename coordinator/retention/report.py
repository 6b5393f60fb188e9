"""What the operator sees of retention."""

from __future__ import annotations

from typing import Any

from coordinator.appliance import Appliance
from coordinator.database import reading
from coordinator.policy.active import active_policy
from coordinator.retention.gate import Judged, plan
from coordinator.retention.prune import Pruned, forecast
from coordinator.retention.purge import ERASABLE, Run


def planned(appliance: Appliance) -> dict[str, Any]:
    """Every holding with what becomes of it, and what of the log's payloads a pruning would erase."""
    with reading(appliance.engine) as session:
        policy = active_policy(session, appliance)
        judged = plan(session, appliance, policy)
        pruned, _, _ = forecast(session, appliance, policy)
    return {"holdings": [_row(one) for one in judged], "payloads": _payloads(pruned)}


def would_run(document: dict[str, Any]) -> dict[str, Any]:
    """What a run would do, by a plan."""
    purged = [row for row in document["holdings"] if row["erasable"]]
    return {"dry_run": True, "purged": purged, "payloads": document["payloads"], "forgotten": None}


def ran(done: Run) -> dict[str, Any]:
    """What a run did."""
    purged = [_row(one) for one in done.purged]
    return {"dry_run": False, "purged": purged, "payloads": _payloads(done.pruned), "forgotten": done.forgotten}


def lines(document: dict[str, Any]) -> list[str]:
    """A plan as text."""
    told = [
        f"{row['standing']:5} {row['class']:23} {row['about'][:40]:40} {row['items']:5} items {row['bytes']:>11} bytes"
        f"{'  until ' + row['until'] if row['until'] else ''}{_why(row)}"
        for row in document["holdings"]
    ]
    payloads = document["payloads"]
    told.append(
        f"the log's payloads: {payloads['erased']} may go, {payloads['kept']} stay; "
        f"minimum index {payloads['minimum_index']}"
    )
    return told


def run_lines(document: dict[str, Any]) -> list[str]:
    """A run as text."""
    verb = "would be erased" if document["dry_run"] else "erased"
    told = [
        f"{row['class']} of {row['about']}: {row['items']} items, {row['bytes']} bytes {verb}"
        for row in document["purged"]
    ]
    told.append(f"{document['payloads']['erased']} payloads of the log {verb}")
    if document["forgotten"] is False:
        told.append("The database's journal was in use and still holds what was erased: run this again.")
    return told


def _why(row: dict[str, Any]) -> str:
    if row["running"] and row["standing"] == "stuck":
        return "  the study still runs: stop it first"
    return f"  {row['why'][0]}" if row["why"] else ""


def _row(one: Judged) -> dict[str, Any]:
    held = one.holding
    return {
        "class": held.record_class.value,
        "about": held.about,
        "items": held.items,
        "bytes": held.size,
        "until": held.until.isoformat() if held.until else None,
        "standing": one.standing.value,
        "running": held.running,
        "erasable": one.goes and held.record_class in ERASABLE,
        "why": [f"{found.message} ({found.rule})" for found in one.decision.findings],
    }


def _payloads(pruned: Pruned) -> dict[str, int]:
    return {"erased": pruned.erased, "kept": pruned.kept, "minimum_index": pruned.minimum_index}
