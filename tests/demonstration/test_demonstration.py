"""The demonstration itself, end to end, on both data sets: `packaging/demo/run.py` as people run it."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

from privacy.accounting.epsilon import epsilon as accounted
from privacy.accounting.gaussian import gaussian_epsilon
from privacy.parameters import Mechanism, site_noise_multiplier
from protocol.audit_event import AuditEvent
from protocol.canonical import parse, sha256_hex
from protocol.envelope import Envelope
from protocol.release import ReleaseSubject
from protocol.study import StudyPlan

pytestmark = pytest.mark.demonstration

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "packaging" / "demo"
HEART = ROOT / ".." / "shared" / "data" / "uci_heart_disease"
LIMIT_SECONDS = 900  # a machine that is busy with other things; the demonstration alone takes a fraction
PEOPLE = ("ada", "bo", "cy", "di")
LEAST_AUC = {"wisconsin": 0.93, "uci_heart_disease": 0.78}
CLOSED = """
import socket
def closed(*_, **__): raise OSError("the network is closed")
socket.socket = socket.create_connection = socket.getaddrinfo = closed
from coordinator.client.cli import main
main()
"""


@dataclass(frozen=True)
class Ran:
    """A demonstration that has ended well: what it said and what it left."""

    kind: str
    out: Path
    said: str
    report: dict[str, Any]
    tables: tuple[Path, ...]

    @property
    def subject(self) -> ReleaseSubject:
        return ReleaseSubject.model_validate(parse((self.out / "release" / "subject.json").read_bytes()))

    @property
    def plan(self) -> StudyPlan:
        envelope = Envelope.from_bytes((self.out / "release" / "plan.dsse.json").read_bytes(), limit=8 << 20)
        return StudyPlan.model_validate(parse(envelope.payload, limit=4 << 20))

    @property
    def leaves(self) -> list[dict[str, Any]]:
        lines = (self.out / "evidence" / "entries.jsonl").read_bytes().splitlines()
        return [json.loads(line)["leaf"] for line in lines]


@pytest.fixture(scope="module", params=["wisconsin", "uci_heart_disease"])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One whole run for each data set."""
    import datasets

    folder = tmp_path_factory.mktemp(request.param)
    out = folder / "demo-out"
    command = [sys.executable, str(DEMO / "run.py"), "--out", str(out)]
    if request.param == "wisconsin":
        sources = datasets.wisconsin(_made(folder / "tables"))
    elif HEART.is_dir():
        command += ["--data", str(HEART)]
        sources = datasets.heart_disease(HEART)
    else:
        pytest.skip(f"the four hospitals' files are not at {HEART}")
    done = _end(command, folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stderr == ""
    report = json.loads((out / "report.json").read_text())
    return Ran(request.param, out, done.stdout, report, tuple(source.table for source in sources))


def _end(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run to the end; on the way out it is told to end its processes, however this test ends."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=LIMIT_SECONDS)
        finally:
            process.terminate()
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_what_it_leaves_and_says(ran: Ran) -> None:
    assert sorted(path.name for path in ran.out.iterdir()) == ["evidence", "release", "release.tar", "report.json"]
    numbered = [line for line in ran.said.splitlines() if re.match(r"^\d+ +\S", line)]
    assert [int(line.split()[0]) for line in numbered] == list(range(1, 11))
    for site in ran.report["sites"]:
        assert site["name"] in ran.said
    assert "epsilon" in ran.said
    assert "approved by the compliance officer" in ran.said
    assert "Traceback" not in ran.said


def test_the_report_has_every_field_in_its_type(ran: Ran) -> None:
    report = ran.report
    number, text = (int, float), str
    shape: dict[str, Any] = {
        "rounds": int,
        "epsilon": {"global": number, "worst_site": number, "target": number},
        "delta": number,
        "auc_reported": {"value": number, "low": number, "high": number},
        "auc": number,
        "auc_local_mean": number,
        "auc_pooled_nonprivate": number,
        "secure_aggregation": bool,
        "release": {"digest": text, "verified": bool, "installed_sites": list},
        "audit": {"entries": int, "checkpoint_size": int, "cosignatures": int, "verified": bool},
        "prediction": dict,
        "seconds": {"setup": number, "training": number, "total": number},
        "round_seconds_median": number,
    }
    _has(report, shape)
    assert len(report["sites"]) == 4
    for site in report["sites"]:
        _has(site, {"name": text, "patients": int, "contributed_rounds": int})
    assert len(report["approvals"]) == 2
    for approval in report["approvals"]:
        _has(approval, {"role": text, "subject_digest": text})


def test_a_null_stands_with_its_reason(ran: Ran) -> None:
    for holder, field in _nulls(ran.report):
        reasons = [holder.get("reason"), holder.get(f"{field}_reason")]
        assert any(isinstance(reason, str) and len(reason) > 10 for reason in reasons), (field, holder)


def test_every_round_had_every_site_and_the_sum_was_masked(ran: Ran) -> None:
    report, spec = ran.report, yaml.safe_load((DEMO / ran.kind / "study.yaml").read_text())
    assert report["rounds"] == spec["training"]["rounds"] == ran.subject.epsilon.rounds_executed
    for site in report["sites"]:
        assert site["contributed_rounds"] == report["rounds"]
    assert report["secure_aggregation"] is True
    assert spec["privacy"]["mode"] == ran.plan.spec.privacy.mode == "distributed"
    committed = [leaf for leaf in ran.leaves if leaf["event"] == "round.committed"]
    trained = [leaf for leaf in committed if leaf["labels"]["phase"] == "train"]
    assert [leaf["numbers"]["round"] for leaf in trained] == list(range(1, report["rounds"] + 1))
    assert {tuple(leaf["groups"]["contributed"]) for leaf in committed} == {
        tuple(sorted(site["name"] for site in report["sites"]))
    }
    assert 0 < report["round_seconds_median"] < report["seconds"]["training"] < report["seconds"]["total"]
    assert 0 < report["seconds"]["setup"] < report["seconds"]["total"]


def test_patients_are_those_of_the_files(ran: Ran) -> None:
    rows = {site["name"]: site["patients"] for site in ran.report["sites"]}
    header = 1 if ran.kind == "wisconsin" else 0
    for (name, patients), table in zip(rows.items(), ran.tables, strict=True):
        lines = len(table.read_text().strip().splitlines()) - header
        assert patients == lines, name
    assert ran.report["held_out"] == sum(site["held_out"] for site in ran.report["sites"])
    for site in ran.report["sites"]:
        assert math.floor(site["patients"] / 4) <= site["held_out"] <= math.ceil(site["patients"] / 4)


def test_epsilon_is_the_accountants_own_and_within_the_target(ran: Ran) -> None:
    plan, told = ran.plan, ran.report["epsilon"]
    privacy, training = plan.spec.privacy, plan.spec.training
    steps = training.rounds + privacy.retries
    tolerated = privacy.colluders + privacy.dropouts
    whole = Mechanism(plan.noise_multiplier, training.sampling_rate, steps, privacy.delta)
    alone = site_noise_multiplier(plan.noise_multiplier, len(plan.sites), tolerated)
    assert told["target"] == privacy.epsilon
    assert told["global"] == pytest.approx(accounted(whole), rel=1e-9)
    assert told["global"] <= told["target"] * (1 + 1e-6)
    worst = accounted(Mechanism(alone, training.sampling_rate, steps, privacy.delta))
    assert told["worst_site"] == pytest.approx(worst, rel=1e-9)
    assert told["global"] < told["worst_site"] <= privacy.epsilon_worst_site
    if plan.spec.evaluation.mode == "exact":
        assert told["evaluation_worst_site"] is None
    else:
        single = plan.evaluation_multiplier / math.sqrt(plan.spec.evaluation.attempts)
        evaluated_alone = site_noise_multiplier(single, len(plan.sites), tolerated)
        assert told["evaluation_worst_site"] == pytest.approx(gaussian_epsilon(evaluated_alone, privacy.delta))
    assert ran.report["delta"] == privacy.delta
    assert ran.report["delta"] < 1 / sum(site["patients"] for site in ran.report["sites"])
    assert set(told["cohort_to_date"]) == {site["name"] for site in ran.report["sites"]}


def test_the_model_is_good_and_what_the_product_says_of_it_is_derived(ran: Ran) -> None:
    report = ran.report
    assert LEAST_AUC[ran.kind] < report["auc"] < 1
    assert report["auc_pooled_nonprivate"] > LEAST_AUC[ran.kind]
    assert 0.5 < report["auc_local_mean"] <= 1
    told = report["auc_reported"]
    assert told["value"] == ran.subject.evaluation.auc.value
    if told["value"] is not None:
        assert 0 <= told["low"] <= told["value"] <= told["high"] <= 1


def test_the_released_model_is_the_one_that_was_judged(ran: Ran) -> None:
    """The AUC over the held-out patients can be made again only with the clinics' folders; the prediction can here."""
    weights = load_file(ran.out / "release" / "model.safetensors")
    schema = ran.subject.dataset
    assert weights["layers.0.weight"].shape == (1, schema.width)
    prediction = ran.report["prediction"]
    assert 0 <= prediction["probability"] <= 1
    assert prediction["label"] == schema.label.name
    assert prediction["site"] == ran.report["sites"][0]["name"]
    assert prediction["release"] == ran.subject.release


def test_two_people_in_two_roles_signed_this_release(ran: Ran) -> None:
    report = ran.report
    assert {vote["role"] for vote in report["approvals"]} == {"compliance_officer", "clinical_lead"}
    assert {vote["subject_digest"] for vote in report["approvals"]} == {ran.subject.digest}
    assert ran.subject.submitter == "ada"
    assert report["release"]["digest"] == ran.subject.digest
    assert report["release"]["verified"] is True
    assert sorted(report["release"]["installed_sites"]) == sorted(site["name"] for site in report["sites"])
    for file in ran.subject.files:
        assert sha256_hex((ran.out / "release" / file.name).read_bytes()) == file.sha256


def test_the_evidence_verifies_again_without_a_network(
    ran: Ran, record_property: Callable[[str, object], None]
) -> None:
    means, command = offline()
    record_property("network closed by", means)
    done = subprocess.run(
        [*command, "audit", "verify", str(ran.out / "evidence"), "--json"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), means
    verified = json.loads(done.stdout)
    assert {key: verified[key] for key in ran.report["audit"]} == ran.report["audit"]
    audit = ran.report["audit"]
    assert audit["verified"] is True
    assert 3 <= audit["cosignatures"] <= 4
    assert audit["entries"] == audit["checkpoint_size"] == len(ran.leaves)
    assert verified["problems"] == []


def test_the_log_tells_the_whole_story(ran: Ran) -> None:
    count: dict[str, int] = {}
    for leaf in ran.leaves:
        count[leaf["event"]] = count.get(leaf["event"], 0) + 1
    rounds, attempts = ran.report["rounds"], ran.plan.spec.evaluation.attempts
    expected = {
        "log.started": 1, "person.invited": 5, "person.registered": 5, "site.invited": 4, "site.enrolled": 4,
        "dataset.registered": 4, "study.proposed": 1, "study.consented": 4, "study.started": 1,
        "study.keys-established": 1, "round.committed": rounds + 1, "candidate.evaluated": 1, "release.drafted": 1,
        "release.submitted": 1, "release.approved": 2, "release.sealed": 1, "release.downloaded": 4,
        "release.installed": 4,
    }  # fmt: skip
    assert {event: count.get(event) for event in expected} == expected
    assert rounds + 1 <= count["round.attempted"] <= rounds + ran.plan.spec.privacy.retries + attempts
    approved = [leaf for leaf in ran.leaves if leaf["event"] == "release.approved"]
    assert {ran.subject.digest in leaf["digests"].values() for leaf in approved} == {True}


def test_the_leaves_hold_no_value_of_a_patient_no_persons_name_and_no_file(ran: Ran) -> None:
    """Everything a leaf says, word by word: nothing of it is a name, a file, a patient or a measurement."""
    known = set(AuditEvent.model_fields)
    words: set[str] = set()
    numbers: set[str] = set()
    for leaf in ran.leaves:
        assert set(leaf) == known
        for text in _texts(leaf):
            words |= set(re.split(r"[^A-Za-z0-9]+", text.lower()))
        numbers |= {repr(value) for value in leaf["numbers"].values() if isinstance(value, float)}
    assert words.isdisjoint(PEOPLE)
    everything = "\n".join(json.dumps(leaf, ensure_ascii=False) for leaf in ran.leaves)
    for table in ran.tables:
        assert table.name not in everything
        assert table.stem not in everything or table.stem in {site["name"] for site in ran.report["sites"]}
    for forbidden in (".csv", ".yaml", ".data", "/tmp", str(ran.out)):
        assert forbidden not in everything
    cells = {cell.strip() for table in ran.tables for row in csv.reader(table.read_text().splitlines()) for cell in row}
    identities = {cell.lower() for cell in cells if re.fullmatch(r"W\d{4}", cell)}
    assert len(identities) == (569 if ran.kind == "wisconsin" else 0)
    assert words.isdisjoint(identities)
    measured = {repr(float(cell)) for cell in cells if re.fullmatch(r"-?\d+\.\d{2,}", cell)}
    assert numbers.isdisjoint(measured)
    # whatever numbers there are, are counts, privacy and which set of packs: nothing else has a name to go by
    named = {name for leaf in ran.leaves for name in leaf["numbers"]}
    assert named <= {
        "round", "rounds", "attempt", "attempts", "retries", "epsilon", "delta", "norm", "patients", "sites",
        "witnesses", "quorum", "number", "sessions_ended", "answered",
    }  # fmt: skip


def test_no_byte_of_the_evidence_can_be_changed(ran: Ran, tmp_path: Path) -> None:
    true = ran.out / "evidence"
    copy = tmp_path / "evidence"
    for name in sorted(path.name for path in true.iterdir()):
        shutil.copytree(true, copy, dirs_exist_ok=True)
        data = bytearray((true / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(bytes(data))
        _refused(copy)


def test_no_entry_can_be_dropped_swapped_or_repeated(ran: Ran, tmp_path: Path) -> None:
    copy = tmp_path / "evidence"
    shutil.copytree(ran.out / "evidence", copy)
    lines = (copy / "entries.jsonl").read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    for changed in (
        lines[:-1],
        lines[:middle] + lines[middle + 1 :],
        [*lines[:middle], lines[middle + 1], lines[middle], *lines[middle + 2 :]],
        [*lines, lines[-1]],
    ):
        (copy / "entries.jsonl").write_bytes(b"".join(changed))
        _refused(copy)
    (copy / "entries.jsonl").unlink()
    _refused(copy)


def offline() -> tuple[str, list[str]]:
    """(how, the command `cloister` in a process without a network)."""
    unshare = shutil.which("unshare")
    command = str(Path(sys.executable).with_name("cloister"))
    if unshare is not None:
        alone = [unshare, "--net", "--map-root-user"]
        probe = subprocess.run([*alone, "true"], capture_output=True, check=False)
        if probe.returncode == 0:
            return "a network namespace of its own", [*alone, command]
    return "socket.socket that raises", [sys.executable, "-c", CLOSED]


def _refused(bundle: Path) -> None:
    command = str(Path(sys.executable).with_name("cloister"))
    done = subprocess.run([command, "audit", "verify", str(bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    heads = [line.partition(":")[0] for line in done.stderr.splitlines()]
    assert heads == ["error", "remedy"], done.stderr
    assert done.stdout.startswith("NOT VERIFIED\n")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _has(document: dict[str, Any], shape: dict[str, Any]) -> None:
    for field, wanted in shape.items():
        assert field in document, field
        value = document[field]
        if isinstance(wanted, dict):
            assert isinstance(value, dict), field
            _has(value, wanted)
        elif value is None:
            continue  # `test_a_null_stands_with_its_reason`
        elif wanted is int or wanted == (int, float):
            assert isinstance(value, wanted), field
            assert not isinstance(value, bool), field
            assert math.isfinite(value), field
        else:
            assert isinstance(value, wanted), field


def _nulls(value: Any) -> Iterator[tuple[dict[str, Any], str]]:
    if isinstance(value, dict):
        for field, inner in value.items():
            if inner is None:
                yield value, field
            yield from _nulls(inner)
    elif isinstance(value, list):
        assert None not in value
        for inner in value:
            yield from _nulls(inner)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
