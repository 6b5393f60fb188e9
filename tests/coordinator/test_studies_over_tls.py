"""A study over HTTP: who may ask what, and what a denial says."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coordinator.database import transaction
from coordinator.sites.repository import SiteRepository
from coordinator.sites.tables import SiteDataset
from coordinator.studies.plan import schema_digest
from protocol.canonical import digest, parse, sha256_hex
from protocol.consent import CONSENT_TYPE, PROPOSAL_TYPE
from protocol.envelope import Envelope, seal
from protocol.identifiers import Role
from protocol.timestamp import timestamp
from tests.coordinator.appliances import Served, TestPerson, TestSite
from tests.papers import give_papers
from tests.simulator.federation import NAMES, SCHEMA, study_spec

pytestmark = pytest.mark.processes


@dataclass
class People:
    """Everybody who takes part, signed in."""

    served: Served
    rosa: TestPerson
    tokens: dict[str, str]
    sites: dict[str, TestSite]

    def post(self, name: str, path: str, content: bytes = b"") -> Any:
        with self.served.client(token=self.tokens[name]) as client:
            return client.post(path, content=content)

    def get(self, name: str, path: str) -> Any:
        with self.served.client(token=self.tokens[name]) as client:
            return client.get(path)

    def site_get(self, name: str, path: str) -> Any:
        with self.served.client(context=self.sites[name].context(self.served.ca_path)) as client:
            return client.get(path)

    def consent(self, name: str, study: str, **changes: object) -> Any:
        shown = self.site_get(name, "/v1/sites/me/studies").json()
        mine = next(item for item in shown if item["study"] == study)
        plan = parse(Envelope.from_bytes(base64.b64decode(mine["plan_envelope"])).payload)
        assert isinstance(plan, dict)
        document = {
            "study": study, "site": name, "plan_digest": mine["plan_digest"], "spec_digest": plan["spec_digest"],
            "snapshot": sha256_hex(name.encode()), "decision": "grant", "reason": "agreed",
            "decision_digest": digest({}), "packs": plan["packs"], "at": "2026-03-01T12:00:00Z", **changes,
        }  # fmt: skip
        signed = seal(CONSENT_TYPE, document, self.sites[name].key).to_bytes()
        with self.served.client(context=self.sites[name].context(self.served.ca_path)) as client:
            return client.post(f"/v1/studies/{study}/consents", content=signed)

    def proposal(self, **changes: object) -> bytes:
        return seal(PROPOSAL_TYPE, study_spec(**changes).model_dump(mode="json"), self.rosa.key).to_bytes()


@pytest.fixture
def people(served: Served, tmp_path: Path) -> People:
    roles = {"rosa": Role.RESEARCHER, "carl": Role.COMPLIANCE_OFFICER, "lena": Role.CLINICAL_LEAD}
    persons = {name: TestPerson(name) for name in roles}
    for name, person in persons.items():
        person.join(served, roles[name])
    sites = {name: TestSite(name, tmp_path / "sites") for name in (*NAMES, "essen")}
    for site in sites.values():
        site.enrol_in(served.appliance)
    with transaction(served.appliance.engine) as session:
        for name in NAMES:
            SiteRepository(session).put_dataset(
                SiteDataset(
                    site=name, name="hearts", schema_digest=schema_digest(SCHEMA), snapshot=sha256_hex(name.encode()),
                    patients=80, held_out=20, registered_at=timestamp(served.appliance.clock()),
                )
            )  # fmt: skip
    tokens = {name: person.sign_in(served) for name, person in persons.items()}
    give_papers(served.appliance, study_spec())
    return People(served, persons["rosa"], tokens, sites)


def test_a_study_is_proposed_granted_started_and_stopped(people: People) -> None:
    dry = people.post("rosa", "/v1/studies?dry_run=true", people.proposal())
    assert (dry.status_code, dry.json()["state"]) == (201, "consenting")
    assert people.get("rosa", "/v1/studies").json() == []
    proposed = people.post("rosa", "/v1/studies", people.proposal())
    assert proposed.status_code == 201, proposed.text
    assert proposed.json()["decision"]["outcome"] == "allow"
    again = people.post("rosa", "/v1/studies", people.proposal())
    assert (again.status_code, again.json()["code"]) == (409, "conflict")

    stale = people.consent("aachen", "hearts-1", plan_digest="sha256:" + "0" * 64)
    assert (stale.status_code, stale.json()["code"]) == (409, "consent-conflict")
    assert "cloister-site studies review" in stale.json()["remedy"]
    early = people.post("rosa", "/v1/studies/hearts-1/start")
    assert (early.status_code, early.json()["code"]) == (409, "study-state")
    states = [people.consent(name, "hearts-1").json()["state"] for name in NAMES]
    assert states == ["consenting", "consenting", "consenting", "ready"]
    assert people.site_get("aachen", "/v1/sites/me/work").json() == {"active": [], "installable": []}
    assert people.post("carl", "/v1/studies/hearts-1/start").status_code == 403
    assert people.post("rosa", "/v1/studies/hearts-1/start").json()["state"] == "keys"
    assert people.site_get("aachen", "/v1/sites/me/work").json()["active"] == ["hearts-1"]
    status = people.get("lena", "/v1/studies/hearts-1").json()
    assert {site["answer"] for site in status["sites"]} == {"grant"}
    assert people.get("lena", "/v1/studies/hearts-1/rounds").json()["rounds"] == []
    assert people.post("carl", "/v1/studies/hearts-1/stop").json()["state"] == "stopped"
    assert people.site_get("aachen", "/v1/sites/me/work").json()["active"] == []


def test_a_denial_carries_its_findings_and_is_listed(people: People) -> None:
    basis = json.loads(study_spec().model_dump_json())["legal_basis"]
    basis["berlin"]["gdpr_article6"] = None
    denied = people.post("rosa", "/v1/studies", people.proposal(legal_basis=basis))
    body = denied.json()
    assert (denied.status_code, body["code"]) == (403, "policy-denied")
    assert "G01" in body["detail"]
    finding = next(item for item in body["findings"] if item["rule"] == "G01")
    assert {"citation", "message", "remedy", "facts"} <= set(finding)
    assert [row["state"] for row in people.get("rosa", "/v1/studies").json()] == ["denied"]


def test_what_is_not_a_proposal_is_refused_in_words(people: People) -> None:
    for content in (b"", b"{}", b"\xff" * 64, b"[" * 100_000):
        answer = people.post("rosa", "/v1/studies", content)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    refused = people.post("carl", "/v1/studies", people.proposal())
    assert refused.status_code == 403
    with people.served.client() as client:
        assert client.post("/v1/studies", content=people.proposal()).status_code == 401
        assert client.get("/v1/studies").status_code == 401
        assert client.get("/v1/sites/me/studies").status_code == 401
    assert people.get("rosa", "/v1/studies/none-such").json()["code"] == "not-found"


def test_a_site_sees_and_answers_only_plans_that_name_it(people: People) -> None:
    assert people.post("rosa", "/v1/studies", people.proposal()).status_code == 201
    assert people.site_get("essen", "/v1/sites/me/studies").json() == []
    stranger = people.sites["essen"]
    signed = seal(CONSENT_TYPE, {"study": "hearts-1"}, stranger.key).to_bytes()
    with people.served.client(context=stranger.context(people.served.ca_path)) as client:
        answer = client.post("/v1/studies/hearts-1/consents", content=signed)
    assert (answer.status_code, answer.json()["code"]) == (403, "refused")
    assert people.consent("aachen", "hearts-1", site="berlin").status_code == 403
