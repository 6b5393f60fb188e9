"""One demonstration: its folders, its processes, and what each of its people does, in order."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import clinics
import httpx
from figures import interval
from papers import site_papers
from processes import DemonstrationFailed, Service, free_port, run, run_json, together
from rich.console import Console

from protocol.bundle import pack
from protocol.release import BUNDLE_FILES

PEOPLE = {
    "ada": "researcher",
    "bo": "compliance_officer",
    "cy": "clinical_lead",
    "di": "auditor",
}
SEAL_SECONDS = 60


class Demonstration:
    """One run: its folders, its processes, and what happened."""

    def __init__(self, scenario: clinics.Scenario, work: Path, out: Path, console: Console) -> None:
        self.scenario, self.work, self.out, self.console = scenario, work, out, console
        self.coordinator = work / "coordinator"
        self.sites = {clinic.name: work / "sites" / clinic.name for clinic in scenario.clinics}
        self.people = {name: work / "people" / name for name in ["administrator", *PEOPLE]}
        self.passphrases = {name: secrets.token_urlsafe(24) for name in self.people}
        self.services: list[Service] = []
        self.facts: dict[str, Any] = {}
        self.port = free_port()
        (work / "sites").mkdir()
        (work / "people").mkdir()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def person(self, name: str, *arguments: object) -> Any:
        """A person runs `cloister …`; the parsed JSON that it prints."""
        return run_json("cloister", *arguments, "--home", self.people[name], CLOISTER_PASSPHRASE=self.passphrases[name])

    def site(self, name: str, *arguments: object) -> Any:
        """Hospital IT runs `cloister-site …`."""
        return run_json("cloister-site", *arguments, "--home", self.sites[name])

    def admin(self, *arguments: object) -> Any:
        """The operator runs `cloister-coordinator …`."""
        return run_json("cloister-coordinator", *arguments, "--home", self.coordinator)

    def start(self, log: str, command: str, *arguments: object) -> Service:
        service = Service(self.work / f"{log}.log", command, *arguments)
        self.services.append(service)
        return service

    def set_up(self) -> None:
        """Coordinator, people, sites with their data, agents."""
        self.say("[bold]1  Coordinator[/]")
        made = self.admin("init", "--address", f"127.0.0.1:{self.port}")
        run(
            "cloister-coordinator", "governance", "set", "--country", "DE", "--contact", "privacy@federation.example",
            "--security", "Measures of 2026", "--backup-tested", date.today().isoformat(), "--home", self.coordinator,
        )  # fmt: skip
        tokens = {"administrator": made["token"]}
        for name, role in PEOPLE.items():
            tokens[name] = self.admin("people", "add", name, "--role", role)["token"]
        invited = {name: self.admin("sites", "invite", name)["token"] for name in self.sites}
        self.start("coordinator", "cloister-coordinator", "serve", "--home", self.coordinator).wait_for_port(self.port)
        self.say(f"   listens on 127.0.0.1:{self.port}, TLS 1.3; log, CA and database made; no default password")
        self.say("[bold]2  People and hospitals[/]")
        together([partial(self.person, name, "login", token) for name, token in tokens.items()])
        self.say(f"   {len(tokens)} people registered their own keys")
        law = clinics.jurisdictions(self.scenario.study)
        papers = {name: site_papers(self.work / "papers" / name, name, law[name]) for name in self.sites}
        together(
            [partial(self.site, name, "enrol", token, "--papers", papers[name]) for name, token in invited.items()]
        )
        for clinic in self.scenario.clinics:
            self.say(f"   {clinic.name} enrolled with a key made on site; the gate found its papers in order")
        together([partial(self.say_law, name, law[name]) for name in self.sites])
        self.say("[bold]3  Data sets[/]")
        add = [
            partial(self.site, clinic.name, "datasets", "add", clinic.data, "--dictionary", self.scenario.dictionary)
            for clinic in self.scenario.clinics
        ]
        self.facts["datasets"] = dict(zip(self.sites, together(add), strict=True))
        for name, data in self.facts["datasets"].items():
            self.say(
                f"   {name}: {data['records']} records of {data['patients']} patients, {data['held_out']} held out, "
                f"{data['rows_dropped']} rows dropped"
            )
        together([partial(self.declare, name, data["name"]) for name, data in self.facts["datasets"].items()])
        together([partial(self.site, name, "cohort", "attest-withdrawals") for name in self.sites])
        self.say("   each hospital says that every withdrawal which it received is entered")
        for name, home in self.sites.items():
            self.start(f"agent-{name}", "cloister-site", "agent", "--home", home)

    def say_law(self, name: str, jurisdiction: str) -> None:
        """Hospital IT says under which law the site takes part."""
        role = "covered-entity" if jurisdiction == "US" else "none"
        run(
            "cloister-site", "governance", "set", "--jurisdiction", jurisdiction, "--hipaa-role", role,
            "--collection-purpose", self.scenario.intended_use, "--home", self.sites[name],
        )  # fmt: skip

    def declare(self, name: str, dataset: str) -> None:
        """Hospital IT says of the data what no scan can see: these are public files without codes of patients."""
        said = {"deid_claim": "none", "recode": {"derived": False, "mapping": "none"}, "part2": False}
        file = self.work / f"declaration-{name}.yaml"
        file.write_text(json.dumps(said))
        self.site(name, "datasets", "declare", dataset, file)

    def propose(self) -> str:
        """Spec, forecast, policy, consent."""
        self.say("[bold]4  Study[/]")
        forecast = self.person("ada", "study", "validate", self.scenario.study)
        self.facts["forecast"] = forecast
        self.assess(forecast)
        self.say("   the impact assessment of this very study is on record, by the compliance officer")
        proposed = self.person("ada", "study", "propose", self.scenario.study)
        study = str(proposed["study"])
        self.say(f"   {study}: policy allowed the proposal; plan {str(proposed['plan_digest'])[:19]}")
        self.say("[bold]5  Consent[/]")
        together([partial(self.site, name, "studies", "review", study) for name in self.sites])
        together([partial(self.site, name, "studies", "grant", study, "--yes") for name in self.sites])
        self.say(f"   {len(self.sites)} sites re-evaluated with their own packs and ledgers, and granted")
        return study

    def assess(self, validated: dict[str, Any]) -> None:
        """The compliance officer puts the impact assessment of this very study on record."""
        assessment = {
            "spec": validated["spec_digest"],
            "sections": ["description", "necessity", "risks", "measures"],
            "residual_risk": "low",
            "officer": "dora",
        }
        self.on_record(kind="dpia", scope="study", subject=validated["study"], assessment=assessment)

    def account_for_disclosures(self, release: str) -> None:
        """Clinics under US law took part under a waiver: what was disclosed is accounted for, under the digest."""
        digest = self.person("ada", "release", "show", release)["subject_digest"]
        self.on_record(kind="disclosure_accounting", scope="release", subject=digest)

    def on_record(self, **record: Any) -> None:
        """The compliance officer vouches for a document; here it is a made-up page."""
        page = self.work / "page.txt"
        page.write_text(f"The {record['kind']} of {record['subject']}, made up for the demonstration.\n")
        whole = {"issuer": "The clinics together", "issued": date.today().isoformat(), "document": page.name, **record}
        file = self.work / "evidence.json"
        file.write_text(json.dumps({"records": [whole]}))
        self.person("bo", "evidence", "import", file)

    def train(self, study: str) -> None:
        """Rounds under secure aggregation; progress as it goes."""
        self.say("[bold]6  Rounds[/]")
        self.person("ada", "study", "start", study)
        seen, last_said = 0, 0.0
        began = time.monotonic()
        while True:
            for service in self.services:
                service.check()
            status = self.person("ada", "study", "status", study)
            state, done = status["state"], int(status["rounds"]["committed"])
            if done > seen and (time.monotonic() - last_said > 5 or done == status["rounds"]["planned"]):
                latest = status["rounds"]["latest"]
                self.say(
                    f"   round {done}/{status['rounds']['planned']}: epsilon {latest['epsilon']:.3f} "
                    f"of {status['epsilon']:.3f}, norm of the noisy mean {latest['norm']:.4f}, "
                    f"{len(latest['contributed'])} of {len(latest['invited'])} sites"
                )
                seen, last_said = done, time.monotonic()
            if state in {"candidate", "failed", "stopped"}:
                break
            time.sleep(1)
        self.facts["training_seconds"] = time.monotonic() - began
        if state != "candidate":
            raise DemonstrationFailed(f"The study ended as {state}: {status.get('reason')} {status.get('detail')}")
        self.facts["status"] = status
        self.facts["rounds"] = self.person("ada", "study", "rounds", study)
        self.facts["candidate"] = status["candidate"]
        self.say("[bold]7  Candidate[/]")
        auc = status["candidate"]["evaluation"]["auc"]
        self.say(f"   AUC as the product reports it: {interval(auc)}")

    def release(self, study: str) -> None:
        """Draft, two approvals, seal, install."""
        self.say("[bold]8  Approval[/]")
        use = self.scenario.intended_use
        drafted = self.person("ada", "release", "draft", study, "--intended-use", use, "--use-mode", "research")
        name = str(drafted["release"])
        self.person("ada", "release", "submit", name)
        for approver in ("bo", "cy"):
            self.person(approver, "release", "approve", name, "--reason", "Reviewed in the demonstration.", "--yes")
            self.say(f"   approved by the {PEOPLE[approver].replace('_', ' ')}, with a key of their own")
        self.say("[bold]9  Release[/]")
        self.account_for_disclosures(name)
        together([partial(self.say_deployment, site, study) for site in self.sites])
        sealed = self.person("ada", "release", "seal", name, "--wait", SEAL_SECONDS)
        self.facts["release"] = sealed
        installed = together([partial(self.site, site, "releases", "install", name) for site in self.sites])
        self.facts["installed"] = dict(zip(self.sites, installed, strict=True))
        self.say(f"   {name} sealed, cosigned, verified and installed at {len(installed)} sites")

    def say_deployment(self, name: str, study: str) -> None:
        """A hospital says what it uses the study's model for."""
        run(
            "cloister-site", "deployment", "set", study, "--use", "research", "--log-days", 200,
            "--coordinator-country", "DE", "--home", self.sites[name],
        )  # fmt: skip

    def predict(self) -> None:
        """A practitioner at the first clinic asks for one prediction."""
        first, home = next(iter(self.sites.items()))
        port = free_port()
        serving = self.start("serving", "cloister-site", "serve", "--port", port, "--home", home)
        serving.wait_for_port(port)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            described = client.get(f"/v2/models/{self.facts['status']['study']}").raise_for_status().json()
            record = clinics.made_up_patient(described["parameters"]["columns"])
            answer = client.post("/v1/predict", json={"records": [record]}).raise_for_status().json()
        serving.stop()
        self.services.remove(serving)
        self.facts["prediction"] = {
            "site": first,
            "release": answer["release"],
            "label": answer["label"],
            "input": "a made-up patient at the dictionary's centres",
            "probability": answer["probabilities"][0],
        }
        self.say(f"   {first} answers: P({answer['label']}) = {answer['probabilities'][0]:.3f} for a made-up patient")

    def audit(self) -> None:
        """Export; verify on its own."""
        self.say("[bold]10 Audit[/]")
        evidence = self.out / "evidence"
        self.person("di", "audit", "export", evidence)
        self.facts["audit"] = run_json("cloister", "audit", "verify", evidence)
        self.say(
            f"   {self.facts['audit']['entries']} entries verified offline under a checkpoint of "
            f"{self.facts['audit']['checkpoint_size']}, {self.facts['audit']['cosignatures']} cosignatures"
        )

    def keep_release(self) -> Path:
        """Put the installed release into the output folder: its files, and the bundle they came in."""
        home = next(iter(self.sites.values()))
        shutil.copytree((home / "releases" / "current").resolve(), self.out / "release")
        files = {name: (self.out / "release" / name).read_bytes() for name in BUNDLE_FILES}
        (self.out / "release.tar").write_bytes(pack(files, BUNDLE_FILES))
        return self.out / "release" / "model.safetensors"

    def stop(self) -> None:
        for service in reversed(self.services):
            service.stop()
