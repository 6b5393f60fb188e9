"""The serving gate at the site: what a hospital's own rules ask before a model is installed, and while it is served."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from protocol.errors import VerificationFailed
from protocol.evidence import EvidenceRecord
from protocol.release import ReleaseSubject
from site_agent.consent.governance import Governance, save_governance
from site_agent.database import create_database, transaction
from site_agent.evidence.record import import_records, revoke
from site_agent.releases.sealed import Sealed, examine, examine_folder
from site_agent.releases.trusted_release import TrustRoot
from site_agent.serving.app import create_app
from site_agent.serving.deployment import DeploymentRecord, everything_said, say
from site_agent.serving.gate import ServingGate, ServingRefused
from site_agent.serving.log import FOLDER, ServingLog, ServingLogUnwritable, days
from site_agent.serving.predictor import Predictor
from site_agent.serving.standing import RECHECK_SECONDS
from site_agent.serving.tables import ServingDecision
from site_agent.settings import SiteHome, SiteSettings
from tests.releases import ADDRESS, HASH, Maker

BEGINNING = datetime(2026, 11, 23, 12, tzinfo=UTC)
SITE = "clinic-a"
RECORDS = {"records": [{"age": 70.0, "pain": 2}, {"age": 41.0, "pain": 3}]}
FILES = {mode: Maker(use_mode=mode).files() for mode in ("research", "decision-support")}


def root(**changes: Any) -> TrustRoot:
    maker = Maker()
    plan = ReleaseSubject.model_validate_json(FILES["research"]["subject.json"]).plan_digest
    fields: dict[str, Any] = {
        "site": SITE, "coordinator": maker.coordinator.public, "policy": maker.policy(),
        "granted_plans": frozenset({plan}), "evaluated": {plan: frozenset({maker.model_digest()})}, "address": ADDRESS,
    }  # fmt: skip
    return TrustRoot(**{**fields, **changes})


def sealed(mode: str = "research") -> Sealed:
    return examine(tuple(sorted(FILES[mode])), FILES[mode], root())


def paper(kind: str, *, issued: date, expires: date | None) -> EvidenceRecord:
    return EvidenceRecord.model_validate(
        {
            "kind": kind, "scope": "deployment" if kind not in ("scc", "tia") else "site", "subject": SITE,
            "issuer": "Clinic", "issued": issued, "expires": expires, "file": HASH,
        }
    )  # fmt: skip


class Clinic:
    """A site's folder and database, its clocks, and the gate of one release."""

    def __init__(self, folder: Path, mode: str) -> None:
        folder.mkdir()
        self.home = SiteHome(folder)
        self.engine = create_database(self.home.database)
        self.settings = SiteSettings(self.home, SITE, "127.0.0.1:1", "log", "key", 1.0)
        save_governance(
            self.home,
            Governance(jurisdiction="EU", hipaa_role="none", categories=("health",), collection_purpose="care"),
        )
        self.time, self.seconds = BEGINNING, 0.0
        self.serve(sealed(mode))

    def serve(self, release: Sealed) -> None:
        self.release = release
        log = ServingLog(self.home, release.subject.release, release.subject.digest, lambda: self.time)
        self.gate = ServingGate(
            self.settings, self.engine, release, log, lambda: self.time, now=lambda: self.seconds
        )  # fmt: skip
        self.app = create_app(
            Predictor(release.files["model.onnx"], release.subject),
            self.gate.trouble,
            lambda records: log.append("predicted", records=records),
        )

    def say(self, **changes: Any) -> None:
        said = {"study": "heart-study", "use": "research", "log_retention_days": 200, "coordinator_country": "DE"}
        with transaction(self.engine) as session:
            say(session, DeploymentRecord.model_validate({**said, **changes}), now=self.time)

    def put(self, *kinds: str, days_left: int = 300) -> list[str]:
        issued, expires = self.time.date(), self.time.date() + timedelta(days=days_left)
        with transaction(self.engine) as session:
            papers = [paper(kind, issued=issued, expires=expires) for kind in kinds]
            return [row.digest for row in import_records(session, SITE, papers, now=self.time)]

    def broken(self) -> set[str]:
        """The rules that keep the gate shut."""
        decision = self.gate.decide()
        assert decision.allowed == (not decision.findings)
        return {finding.rule for finding in decision.findings}

    def kept(self) -> list[tuple[str, str]]:
        with transaction(self.engine) as session:
            return [(row.moment, row.outcome) for row in session.exec(select(ServingDecision))]

    def ask(self, path: str = "/v1/predict", body: Any = RECORDS) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://here") as client:
                return await client.request("GET" if body is None else "POST", path, json=body)

        self.seconds += RECHECK_SECONDS
        return asyncio.run(send())


@pytest.fixture
def clinic(tmp_path: Path):
    clinic = Clinic(tmp_path / "site", "research")
    yield clinic
    clinic.engine.dispose()


@pytest.fixture
def caring(tmp_path: Path):
    """Serves a model for decision support, with all papers."""
    clinic = Clinic(tmp_path / "caring", "decision-support")
    clinic.say(use="care", oversight="dr-fox")
    clinic.put("oversight_training", "pms_plan", "incident_contact", "deployer_dpia")
    yield clinic
    clinic.engine.dispose()


def test_a_clinic_that_said_nothing_serves_nothing(clinic: Clinic) -> None:
    with pytest.raises(ServingRefused, match=r"can't be decided without deployment\.care") as caught:
        clinic.gate.require("install")
    assert caught.value.remedy
    assert clinic.kept() == [("install", "deny")]
    assert clinic.ask().status_code == 503


def test_research_is_served_once_a_clinic_said_so(clinic: Clinic) -> None:
    clinic.say()
    assert clinic.gate.require("install").allowed
    answer = clinic.ask()
    assert (answer.status_code, len(answer.json()["probabilities"])) == (200, 2)
    assert clinic.kept() == [("install", "allow"), ("running", "allow")]


def test_an_insider_who_serves_a_research_model_for_care_is_refused(clinic: Clinic) -> None:
    """Also where everything else is in order, and also in the middle of serving."""
    clinic.say()
    assert clinic.ask().status_code == 200
    clinic.put("oversight_training", "pms_plan", "incident_contact", "deployer_dpia")
    clinic.say(use="care", oversight="dr-fox")
    assert clinic.broken() == {"A02"}
    answer = clinic.ask()
    assert (answer.status_code, answer.json()["code"]) == (503, "serving-refused")
    assert "research only" in answer.json()["error"]
    with pytest.raises(ServingRefused, match="A02"):
        clinic.gate.require("start")
    with transaction(clinic.engine) as session:  # what was said before is kept beside it
        assert [json.loads(row.said)["use"] for row in everything_said(session)] == ["research", "care"]


def test_an_insider_who_relabels_the_release_breaks_its_seal(tmp_path: Path) -> None:
    """subject.json on the disk is changed from research to decision support, so that A02 would let it pass."""
    files = dict(FILES["research"])
    files["subject.json"] = files["subject.json"].replace(b'"use_mode":"research"', b'"use_mode":"decision-support"')
    assert files["subject.json"] != FILES["research"]["subject.json"]
    clinic = Clinic(tmp_path / "site", "research")
    clinic.say(use="care", oversight="dr-fox")
    clinic.put("oversight_training", "pms_plan", "incident_contact", "deployer_dpia")
    clinic.serve(examine(tuple(sorted(files)), files, root()))
    assert clinic.broken() == {"N06-sealed"}
    clinic.engine.dispose()


def test_a_model_file_changed_on_the_disk_is_not_served(tmp_path: Path, clinic: Clinic) -> None:
    clinic.say()
    folder = tmp_path / "installed"
    folder.mkdir()
    for name, data in FILES["research"].items():
        (folder / name).write_bytes(data)
    clinic.serve(examine_folder(folder, root()))
    assert clinic.broken() == set()
    (folder / "helper.py").write_text("import os\n")
    clinic.serve(examine_folder(folder, root()))
    assert clinic.broken() == {"N06"}
    (folder / "helper.py").unlink()
    other = Maker(weight_scale=2.0).files()
    (folder / "model.onnx").write_bytes(other["model.onnx"])
    clinic.serve(examine_folder(folder, root()))
    assert clinic.broken() == {"N06-sealed"}
    (folder / "release.tlog-proof").write_bytes(Maker(cosigners=2).files()["release.tlog-proof"])
    (folder / "model.onnx").write_bytes(FILES["research"]["model.onnx"])
    changed = examine_folder(folder, root())
    assert (changed.signed, changed.logged) == (True, False)
    (folder / "plan.dsse.json").write_bytes(b"{}")
    with pytest.raises(VerificationFailed, match="damaged"):
        examine_folder(folder, root())


def test_care_asks_for_oversight_training_monitoring_contact_and_assessment(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path / "site", "decision-support")
    clinic.say(use="care")
    assert clinic.broken() == {"A09", "A12", "A13"}
    clinic.say(use="care", oversight="dr-fox")
    clinic.put("oversight_training")
    assert clinic.broken() == {"A12", "A13"}
    clinic.put("pms_plan", "incident_contact")
    assert clinic.broken() == {"A13"}
    clinic.put("deployer_dpia")
    assert clinic.broken() == set()
    clinic.engine.dispose()


def test_a_training_certificate_that_expires_shuts_a_running_server(caring: Clinic) -> None:
    assert caring.ask().status_code == 200
    caring.time += timedelta(days=300)
    assert caring.ask().status_code == 200  # its last day
    caring.time += timedelta(days=1)
    answer = caring.ask()
    assert (answer.status_code, answer.json()["code"]) == (503, "serving-refused")
    assert "oversee" in answer.json()["error"]
    for path in ("/v2/health/ready", "/v2/models/heart-study/ready"):
        assert caring.ask(path, None).status_code == 503
    caring.put("oversight_training", "pms_plan", "incident_contact", "deployer_dpia")
    assert caring.ask().status_code == 200
    assert caring.kept() == [("running", "allow"), ("running", "deny"), ("running", "allow")]


def test_revoked_evidence_shuts_it_too(caring: Clinic) -> None:
    assert caring.ask().status_code == 200
    (digest,) = caring.put("deployer_dpia")
    with transaction(caring.engine) as session:
        revoke(session, digest, now=caring.time)
    assert caring.ask().status_code == 503


def test_a_log_kept_too_briefly_is_refused(caring: Clinic) -> None:
    caring.say(use="care", oversight="dr-fox", log_retention_days=30)
    assert caring.broken() == {"A07"}


def test_the_model_of_a_coordinator_abroad_needs_clauses_and_an_assessment(clinic: Clinic) -> None:
    clinic.say(coordinator_country="IN")
    assert clinic.broken() == {"G23-served"}
    clinic.put("scc")
    assert clinic.broken() == {"G23-served"}
    clinic.put("tia", days_left=10)
    assert clinic.broken() == set()
    clinic.time += timedelta(days=11)
    assert clinic.broken() == {"G23-served"}


def test_nothing_is_served_past_the_model_s_last_day(clinic: Clinic) -> None:
    clinic.say()
    assert clinic.ask().status_code == 200
    clinic.time = datetime(2031, 6, 30, 23, tzinfo=UTC)
    assert clinic.broken() == set()
    clinic.time = datetime(2031, 7, 1, tzinfo=UTC)
    assert clinic.broken() == {"G06-served"}
    assert clinic.ask().status_code == 503


def test_a_site_s_own_pack_makes_the_gate_stricter_at_once(clinic: Clinic) -> None:
    clinic.say()
    assert clinic.ask().status_code == 200
    packs = clinic.home.path / "packs"
    packs.mkdir()
    (packs / "own.yaml").write_text(
        "pack: own\nversion: 2026.1.1\ntitle: The clinic of its own\nvalid_from: 2026-01-01\nrules:\n"
        "- {id: X01, citation: House rule 1, gates: [serving], valid_from: 2026-01-01, facts: [deployment.care],\n"
        "   require: deployment.care, effect: deny, message: Only for care is it served., remedy: Serve it for care.}\n"
    )
    assert clinic.broken() == {"X01"}
    assert clinic.ask().status_code == 503
    (packs / "own.yaml").write_text("pack: [")
    assert clinic.ask().json()["code"] == "bad-policy-document"
    (packs / "own.yaml").unlink()
    assert clinic.ask().status_code == 200


def test_what_cannot_be_read_opens_no_gate(clinic: Clinic) -> None:
    clinic.say()
    (clinic.home.path / "governance.toml").unlink()
    answer = clinic.ask()
    assert (answer.status_code, answer.json()["code"]) == (503, "governance-unset")


def test_the_serving_log_holds_each_answer_and_nothing_of_a_patient(clinic: Clinic) -> None:
    clinic.say()
    assert clinic.ask().status_code == 200
    clinic.time += timedelta(days=1)
    assert clinic.ask("/v2/models/heart-study/infer", _tensor(3)).status_code == 200
    logs = list(days(clinic.home))
    assert [log.day for log in logs] == [date(2026, 11, 23), date(2026, 11, 24)]
    lines = [json.loads(line) for log in logs for line in log.path.read_text().splitlines()]
    assert [(line["event"], line["records"]) for line in lines] == [("predicted", 2), ("predicted", 3)]
    assert {frozenset(line) for line in lines} == {frozenset({"at", "event", "release", "digest", "records"})}
    assert {line["digest"] for line in lines} == {clinic.release.subject.digest}
    assert (os.stat(logs[0].path).st_mode & 0o777, clinic.ask(body={"records": []}).status_code) == (0o600, 400)


def test_what_cannot_be_logged_is_not_predicted(clinic: Clinic) -> None:
    clinic.say()
    (clinic.home.path / FOLDER).write_text("in the way")
    assert clinic.broken() == {"A07"}
    clinic.gate.trouble = lambda: None  # type: ignore[method-assign] - between two looks of the gate
    clinic.app = create_app(
        Predictor(clinic.release.files["model.onnx"], clinic.release.subject),
        lambda: None,
        lambda records: clinic.gate.log.append("predicted", records=records),
    )
    answer = clinic.ask()
    assert (answer.status_code, answer.json()["code"]) == (503, "serving-log-unwritable")
    assert "probabilities" not in answer.json()
    with pytest.raises(ServingLogUnwritable):
        clinic.gate.log.append("started")


def _tensor(rows: int) -> dict[str, Any]:
    data = [value for _ in range(rows) for value in (60.0, 1.0)]
    return {"inputs": [{"name": "features", "shape": [rows, 2], "datatype": "FP64", "data": data}]}
