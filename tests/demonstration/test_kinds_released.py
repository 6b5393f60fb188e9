"""Other studies than the main demonstration's, by the real commands and processes from proposal to a prediction: local
DP-SGD, tuning, and a model of vital signs. One federation serves them all; a test that runs alone makes what it needs.
"""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import yaml
from numpy.typing import NDArray

from privacy.accounting.epsilon import epsilon
from privacy.accounting.gaussian import repeated_gaussian_epsilon
from privacy.parameters import Mechanism
from protocol.canonical import parse
from protocol.envelope import Envelope
from protocol.release import ReleaseSubject
from protocol.study import StudyPlan
from site_agent.releases.weights import read_weights

pytestmark = pytest.mark.demonstration

SITES = ("clinic-a", "clinic-b", "clinic-c", "clinic-d")
PATIENTS, STEPS = 80, 12
VITALS = """\
dictionary: 1
name: vitals
file: {patient_id: patient}
columns:
  - {name: patient, role: patient_id}
  - {name: record, role: file}
  - {name: sepsis, role: label, type: category, levels: [0, 1]}
label: {name: septic, operator: "==", value: 1}
sequence:
  name: vitals
  length: 12
  interval: 300
  channels:
  - {name: pulse, unit: 1/min, minimum: 20, maximum: 250, center: 80, scale: 20, impute: 80}
  - {name: spo2, unit: "%", minimum: 50, maximum: 100, center: 96, scale: 3, impute: 96}
"""
LOCAL: dict[str, Any] = {
    "privacy": {"mode": "local", "retries": 1},
    "training": {
        "rounds": 3, "local_steps": 5, "largest_delta": 20.0,
        "server": {"rule": "fedadam", "rate": 0.3, "beta1": 0.9},
    },
}  # fmt: skip
TUNED: dict[str, Any] = {
    "privacy": {"retries": 1},
    "training": {"rounds": 3},
    "tuning": {
        "grid": [{"learning_rate": 1.0}, {"learning_rate": 4.0}, {"learning_rate": 4.0, "clip": 0.5}],
        "order": "searched",
        "runs": 2,
    },
}
GRU: dict[str, Any] = {
    "title": "Sepsis from an hour of vital signs",
    "dataset": {"dictionary": "vitals.yaml"},
    "justified_columns": ["pulse", "spo2", "sepsis"],
    "model": {"architecture": "gru", "hidden": 8},
    "privacy": {"epsilon": 2.0, "epsilon_worst_site": 6.0, "retries": 1},
    "training": {"rounds": 4, "learning_rate": 4.0, "clip": 0.5},
}
STUDIES = {"local-steps": LOCAL, "tuned": TUNED, "vitals-gru": GRU}


@dataclass(frozen=True)
class Lived:
    """A study whose model is released and installed at every site. folder: the release as the first site installed it.
    reviewed: what the first site was shown before it consented."""

    study: str
    validated: dict[str, Any]
    reviewed: str
    status: dict[str, Any]
    rounds: list[dict[str, Any]]
    folder: Path

    @property
    def subject(self) -> ReleaseSubject:
        return ReleaseSubject.model_validate(parse((self.folder / "subject.json").read_bytes()))

    @property
    def plan(self) -> StudyPlan:
        envelope = Envelope.from_bytes((self.folder / "plan.dsse.json").read_bytes(), limit=8 << 20)
        return StudyPlan.model_validate(parse(envelope.payload, limit=4 << 20))

    @property
    def weights(self) -> dict[str, NDArray[np.float64]]:
        return read_weights(self.subject, (self.folder / "model.safetensors").read_bytes())


class Federation:
    """The demonstration's coordinator and clinics, which also hold vital signs."""

    def __init__(self, work: Path) -> None:
        import clinics
        from demonstration import Demonstration
        from rich.console import Console

        self.work, self.said = work, (work / "said").open("w")
        (work / "out").mkdir()
        (work / "vitals.yaml").write_text(VITALS)
        self.demo = Demonstration(clinics.scenario(None, work), work, work / "out", Console(file=self.said))
        self.done: dict[str, Lived] = {}
        try:
            self.demo.set_up()
            for number, site in enumerate(SITES):
                table = write_vitals(work / "vitals" / site, number)
                self.demo.site(site, "datasets", "add", table, "--dictionary", work / "vitals.yaml")
                self.demo.declare(site, "vitals")
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        self.demo.stop()
        self.said.close()

    def lived(self, study: str) -> Lived:
        """The study, run from its proposal to its release at every site the first time that it is asked for."""
        if study not in self.done:
            self.done[study] = self._live(study)
        return self.done[study]

    def _live(self, study: str) -> Lived:
        from processes import run, together

        demo, spec = self.demo, self._spec(study)
        demo.person("ada", "login")
        validated = demo.person("ada", "study", "validate", spec)
        demo.assess(validated)
        if demo.person("ada", "study", "propose", spec)["state"] == "held":
            demo.person("bo", "study", "approve", study, "--yes")
        reviewed = run("cloister-site", "studies", "review", study, "--home", demo.sites[SITES[0]])
        together([partial(demo.site, site, "studies", "grant", study, "--yes") for site in SITES])
        demo.train(study)
        status, rounds = demo.facts["status"], demo.facts["rounds"]
        demo.release(study)
        folder = self.work / "released" / study
        shutil.copytree((demo.sites[SITES[0]] / "releases" / "current").resolve(), folder)
        return Lived(study, validated, reviewed, status, rounds, folder)

    def _spec(self, study: str) -> Path:
        whole = yaml.safe_load(self.demo.scenario.study.read_text())
        for name, value in {"study": study, **STUDIES[study]}.items():
            inner = isinstance(value, dict) and name in ("privacy", "training")
            whole[name] = {**whole[name], **value} if inner else value
        shutil.copy(self.demo.scenario.dictionary, self.work)
        path = self.work / f"{study}.yaml"
        path.write_text(yaml.safe_dump(whole))
        return path

    def serve(self, lived: Lived, ask: Any) -> Any:
        """What the practitioner's program gets from the first site, which serves the study's release meanwhile."""
        from processes import free_port, run

        home, port = self.demo.sites[SITES[0]], free_port()
        run("cloister-site", "releases", "rollback", lived.subject.release, "--home", home)
        serving = self.demo.start("serving", "cloister-site", "serve", "--port", port, "--home", home)
        try:
            serving.wait_for_port(port)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
                return ask(client)
        finally:
            serving.stop()
            self.demo.services.remove(serving)

    def charges(self, site: str, study: str) -> dict[bool, dict[str, Any]]:
        """The site's ledger: {held out: its line of the study}."""
        rows = self.demo.site(site, "budget", "show")["studies"]
        return {row["held_out"]: row for row in rows if row["study"] == study}

    def consumed(self, site: str, study: str, phase: str) -> int:
        """Attempts that the site took up, by its own database."""
        database = f"file:{self.demo.sites[site] / 'site.db'}?mode=ro"
        query = "SELECT COUNT(*) FROM consumed_attempt WHERE study = ? AND phase = ?"
        with closing(sqlite3.connect(database, uri=True, timeout=10)) as connection:
            return int(connection.execute(query, (study, phase)).fetchone()[0])


def write_vitals(folder: Path, seed: int) -> Path:
    """Made-up patients: measurements every five minutes, some missing; the pulse of a septic one rises."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    rows = ["patient,record,sepsis"]
    for patient in range(PATIENTS):
        septic = bool(random.random() < 0.5)
        lines = ["time,channel,value"]
        for step in range(STEPS):
            lines.append(f"{300 * step},pulse,{random.normal(80, 6) + (4 * step if septic else 0):.0f}")
            if random.random() < 0.6:
                lines.append(f"{300 * step + 10},spo2,{min(100.0, random.normal(96, 1)):.0f}")
        (folder / f"{patient}.csv").write_text("\n".join(lines))
        rows.append(f"V{seed}{patient:03},{patient}.csv,{int(septic)}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("kinds"))
    try:
        yield made
    finally:
        made.end()


def check_epsilon(lived: Lived) -> None:
    """What release and forecast state is the accountant's composition of the plan's steps, kept by both sides."""
    plan, told = lived.plan, lived.subject.epsilon
    spec = plan.spec
    delta = spec.privacy.delta
    composed = epsilon(Mechanism(plan.noise_multiplier, spec.training.sampling_rate, spec.steps, delta))
    assert told.epsilon == plan.epsilon == pytest.approx(composed, rel=1e-9)
    assert told.epsilon <= spec.privacy.epsilon * (1 + 1e-6)
    assert lived.validated["forecast"]["epsilon"]["global"] == pytest.approx(told.epsilon, rel=1e-2)
    scores = repeated_gaussian_epsilon(plan.evaluation_multiplier, spec.evaluations, delta)
    assert told.epsilon_evaluation == pytest.approx(scores, rel=1e-9)
    assert (told.unit, told.adjacency, told.steps_charged) == ("patient", "zero-out", spec.steps)
    assert f"epsilon {told.epsilon:.4g} at delta {delta:g} (promised: {spec.privacy.epsilon:g})" in lived.reviewed


def check_ledgers(federation: Federation, lived: Lived) -> None:
    """Each ledger holds what the release states, and as many steps as were executed; the log tells of no more."""
    plan, told = lived.plan, lived.subject.epsilon
    steps = plan.spec.training.local_steps
    for site in SITES:
        rows = federation.charges(site, lived.study)
        trained, scored = (federation.consumed(site, lived.study, phase) for phase in ("train", "evaluate"))
        assert rows[False]["steps_charged"] == steps * trained
        assert rows[True]["steps_charged"] == scored
        assert (rows[False]["steps_allowed"], rows[True]["steps_allowed"]) == (
            told.steps_charged,
            plan.spec.evaluations,
        )
        assert rows[False]["epsilon"] == pytest.approx(told.epsilon, rel=1e-9)
        assert rows[True]["epsilon"] == pytest.approx(told.epsilon_evaluation, rel=1e-9)
        gave = [row for row in lived.rounds if row["phase"] == "train" and site in row["contributed"]]
        assert len(gave) <= trained <= told.attempts <= plan.spec.attempts
    assert told.rounds_executed == plan.spec.runs * plan.spec.training.rounds


def onnx_says(lived: Lived, name: str, values: NDArray[Any]) -> float:
    """The released ONNX file's own output, without the product."""
    session = onnxruntime.InferenceSession(lived.folder / "model.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: values})
    return float(np.asarray(output).ravel()[0])


def ask_centres(client: httpx.Client, study: str) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """A made-up patient at the dictionary's centres: (the answer, the row)."""
    import clinics

    columns = client.get(f"/v2/models/{study}").raise_for_status().json()["parameters"]["columns"]
    record = clinics.made_up_patient(columns)
    answer = client.post("/v1/predict", json={"records": [record]}).raise_for_status().json()
    return answer, np.array([[record[column["name"]] for column in columns]], dtype=np.float64)


def check_tabular_prediction(federation: Federation, lived: Lived) -> None:
    answer, row = federation.serve(lived, lambda client: ask_centres(client, lived.study))
    (served,) = answer["probabilities"]
    assert (answer["release"], answer["release_digest"]) == (lived.subject.release, lived.subject.digest)
    assert served == onnx_says(lived, "features", row)
    # at the dictionary's centres every input is 0: what is left of a logistic regression is its bias
    assert served == pytest.approx(1 / (1 + math.exp(-lived.weights["layers.0.bias"][0])), abs=1e-12)


def test_local_dp_sgd_from_proposal_to_a_prediction(federation: Federation) -> None:
    lived = federation.lived("local-steps")
    check_epsilon(lived)
    check_ledgers(federation, lived)
    plan, told = lived.plan, lived.subject.epsilon
    assert plan.spec.steps == 5 * (3 + 1)
    # the model's epsilon rests on no other site, so whatever the others do it is a site's worst case too
    assert told.epsilon_worst_site == told.epsilon
    assert "whatever other sites and the coordinator do" in told.trust
    assert "in each of its 5 private steps a round" in told.trust
    assert told.epsilon_evaluation_worst_site is not None
    assert told.epsilon_evaluation is not None
    assert told.epsilon_evaluation_worst_site > told.epsilon_evaluation  # its noise is shared
    assert "this site adds all of it itself to each of 5 private steps a round; it charges 20 steps" in lived.reviewed
    card = (lived.folder / "model_card.md").read_text()
    assert told.trust in card
    assert "Accounted for 20 steps; 3 rounds were executed" in card
    spent = [row["epsilon"] for row in lived.rounds if row["phase"] == "train"]
    assert spent == sorted(spent)
    assert len(set(spent)) == 3
    assert spent[-1] == pytest.approx(epsilon(Mechanism(plan.noise_multiplier, 0.25, 15, 1e-4)), rel=1e-2)
    check_tabular_prediction(federation, lived)


def test_a_tuned_study_from_proposal_to_a_prediction(federation: Federation) -> None:
    lived = federation.lived("tuned")
    check_epsilon(lived)
    check_ledgers(federation, lived)
    plan, told = lived.plan, lived.subject.epsilon
    # all runs of the search together, before anybody consents
    assert plan.spec.steps == 2 * 3 + 1
    cost = lived.validated["forecast"]["tuning"]
    assert (cost["runs"], cost["steps"]) == (2, 7)
    assert cost["training"] == pytest.approx(told.epsilon, rel=1e-2)
    assert cost["dearest_run"] < 0.85 * cost["training"]
    assert "2 runs of a grid of 3: this site charges the steps of all of them, 7 in all, and 3 noised" in lived.reviewed
    # which runs there were, and which was kept: the same to the researcher, on the release and at the sites
    chosen = told.selection
    assert chosen is not None
    assert len(chosen.runs) == len(set(chosen.runs)) == 2
    assert [run["entry"] for run in lived.status["runs"]] == list(chosen.runs)
    assert [run["score"] for run in lived.status["runs"]] == list(chosen.scores)
    known = [score for score in chosen.scores if score is not None]
    if known:
        assert chosen.scores[chosen.runs.index(chosen.chosen)] == max(known)
    card = (lived.folder / "model_card.md").read_text()
    assert "best of 2 runs over a declared grid of 3 entries" in card
    assert "These count all 2 runs and all their scores together" in card
    assert [row["phase"] for row in lived.rounds].count("evaluate") == 3
    check_tabular_prediction(federation, lived)


def test_a_model_of_vital_signs_from_files_to_a_prediction(federation: Federation) -> None:
    from site_agent.releases.self_check import network_outputs

    lived = federation.lived("vitals-gru")
    check_epsilon(lived)
    check_ledgers(federation, lived)
    assert lived.plan.spec.model.architecture == "gru"
    assert lived.subject.epsilon.epsilon_worst_site > lived.subject.epsilon.epsilon
    pulse, spo2 = [80.0 + 4 * step for step in range(STEPS)], [96.0] * STEPS
    lines = [f"{300 * step},{name},{values[step]:g}" for step in range(STEPS) for name, values in
             (("pulse", pulse), ("spo2", spo2))]  # fmt: skip
    monitor = "\n".join(["time,channel,value", *lines]).encode()

    def ask(client: httpx.Client) -> tuple[dict[str, Any], dict[str, Any], httpx.Response]:
        named = client.post("/v1/predict", json={"records": [{"pulse": pulse, "spo2": spo2}]}).raise_for_status()
        file = client.post("/v1/predict-file", content=monitor).raise_for_status()
        wild = client.post("/v1/predict", json={"records": [{"pulse": [*pulse[:-1], 900.0], "spo2": spo2}]})
        return named.json(), file.json(), wild

    named, file, wild = federation.serve(lived, ask)
    (served,) = named["probabilities"]
    assert file["probability"] == served
    assert (file["label"], file["release_digest"]) == ("septic", lived.subject.digest)
    row = np.array([[pulse, spo2]])
    assert served == onnx_says(lived, "sequence", row.astype(np.float32))
    assert served == pytest.approx(float(network_outputs(lived.subject, lived.weights, row)[0]), abs=1e-5)
    assert wild.status_code == 400
    assert "channel pulse" in wild.json()["error"]
    assert "900" not in wild.text


def test_the_log_tells_of_each_and_verifies(federation: Federation) -> None:
    from processes import run_json

    lives = [federation.lived(study) for study in STUDIES]
    evidence = federation.work / "evidence"
    federation.demo.person("di", "audit", "export", evidence)
    verified = run_json("cloister", "audit", "verify", evidence)
    assert verified["verified"] is True
    assert verified["problems"] == []
    leaves = [json.loads(line)["leaf"] for line in (evidence / "entries.jsonl").read_bytes().splitlines()]
    for lived in lives:
        about = {lived.study, f"release:{lived.subject.release}"}
        mine = [leaf for leaf in leaves if leaf["subject"] in about]
        count = {event: sum(leaf["event"] == event for leaf in mine) for event in {leaf["event"] for leaf in mine}}
        expected = {
            "study.proposed": 1, "study.consented": 4, "study.started": 1, "candidate.evaluated": 1,
            "release.approved": 2, "release.sealed": 1, "release.installed": 4, "round.committed": len(lived.rounds),
        }  # fmt: skip
        assert {event: count.get(event) for event in expected} == expected, lived.study
        sealed = next(leaf for leaf in mine if leaf["event"] == "release.sealed")
        assert sealed["digests"]["subject"] == lived.subject.digest
        asked = [leaf for leaf in mine if leaf["event"] == "round.attempted" and leaf["labels"]["phase"] == "train"]
        assert len(asked) == lived.subject.epsilon.attempts
        chosen = lived.subject.epsilon.selection
        entries = {leaf["numbers"].get("entry") for leaf in asked}
        assert entries == ({None} if chosen is None else set(chosen.runs))
