"""A look before a study, by real processes: proposed, granted, summed with the coordinator killed, read, audited."""

from __future__ import annotations

import csv
import json
import time
from functools import partial
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

SPEC = Path(__file__).resolve().parents[2] / "packaging" / "demo" / "wisconsin" / "exploration.yaml"
PATIENCE = 240.0


def test_a_researcher_looks_before_proposing_a_study(tmp_path: Path) -> None:
    import clinics
    from demonstration import Demonstration
    from processes import DemonstrationFailed, run, run_json, together
    from rich.console import Console

    out = tmp_path / "out"
    out.mkdir()
    with (tmp_path / "said").open("w") as said:
        demo = Demonstration(clinics.scenario(None, tmp_path), tmp_path, out, Console(file=said))
        try:
            demo.set_up()
            coordinator = demo.services[0]
            validated = demo.person("ada", "study", "validate", SPEC)
            expected = validated["forecast"]
            demo.assess(validated)
            study = demo.person("ada", "study", "propose", SPEC)["study"]
            with pytest.raises(DemonstrationFailed, match="has no results"):
                demo.person("ada", "study", "results", study)
            shown = run("cloister-site", "studies", "review", study, "--home", demo.sites["clinic-a"])
            assert "trains and releases nothing" in shown
            together([partial(demo.site, name, "studies", "grant", study, "--yes") for name in demo.sites])
            demo.person("ada", "study", "start", study)
            status = wait(demo, study, lambda status: status["rounds"]["committed"] >= 1)
            if status["state"] != "completed":
                coordinator.kill()
                demo.services.remove(coordinator)
                serve = demo.start("coordinator", "cloister-coordinator", "serve", "--home", demo.coordinator)
                serve.wait_for_port(demo.port)
            status = wait(demo, study, lambda status: status["state"] == "completed")
            assert status["rounds"]["committed"] == 4

            shown = demo.person("ada", "study", "results", study, "--csv", tmp_path / "found.csv")
            found = shown["result"]
            count = found["statistics"][0]["figures"][0]
            patients = sum(data["patients"] - data["held_out"] for data in demo.facts["datasets"].values())
            assert found["patients"] == patients
            assert 0 < count["low"] < count["value"] < count["high"] < patients
            assert count["high"] - count["value"] == pytest.approx(expected["count_half_interval"], rel=1e-6)
            radius = found["statistics"][1]["figures"][0]
            assert 13 < radius["value"] < 15.5
            with (tmp_path / "found.csv").open() as file:
                assert float(next(csv.DictReader(file))["value"]) == count["value"]
            text = run(
                "cloister", "study", "results", study, "--home", demo.people["ada"],
                CLOISTER_PASSPHRASE=demo.passphrases["ada"],
            )  # fmt: skip
            assert "interval" in text

            with pytest.raises(DemonstrationFailed, match="exploration"):
                demo.person(
                    "ada", "release", "draft", study, "--intended-use", demo.scenario.intended_use,
                    "--use-mode", "research",
                )  # fmt: skip

            evidence = out / "evidence"
            demo.person("di", "audit", "export", evidence)
            run_json("cloister", "audit", "verify", evidence)
            logged = (evidence / "entries.jsonl").read_text()
            entries = [json.loads(line)["leaf"] for line in logged.splitlines()]
            committed = [event for event in entries if event["event"] == "round.committed"]
            attempted = [event for event in entries if event["event"] == "round.attempted"]
            assert len(committed) == 4
            for name in demo.sites:
                [line] = [row for row in demo.site(name, "budget", "show")["studies"] if row["study"] == study]
                assert (line["epsilon"], line["held_out"]) == (pytest.approx(1.0, rel=1e-6), False)
                # A site that the coordinator's end cut off for long may sit a round out, and is not charged for it.
                given = sum(name in event["groups"]["contributed"] for event in committed)
                asked = sum(name in event["groups"]["cohort"] for event in attempted)
                assert 1 <= given <= line["steps_charged"] <= asked <= expected["sums"]
            [completed] = [event for event in entries if event["event"] == "exploration.completed"]
            assert completed["digests"]["result"] == shown["result_digest"]
            assert str(count["value"]) not in logged
        finally:
            demo.stop()


def wait(demo, study, arrived):  # type: ignore[no-untyped-def]
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for service in demo.services:
            service.check()
        status = demo.person("ada", "study", "status", study)
        if arrived(status):
            return status
        assert status["state"] not in {"failed", "stopped"}, status
        time.sleep(0.3)
    raise AssertionError("it took too long")
