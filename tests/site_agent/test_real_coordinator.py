"""The site's side against the product's own coordinator, over TLS: what the made-up one could get wrong."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from coordinator.audit.sequencer import integrate_once
from coordinator.audit.witnessing import quorum_note
from coordinator.client.audit_bundle import read_archive, verify_bundle
from coordinator.database import transaction as at_coordinator
from coordinator.incidents.report import close, update
from coordinator.people.tables import Person
from coordinator.sites import enrolment
from protocol.envelope import seal
from protocol.errors import Malformed
from protocol.incident import Settled
from protocol.note import KeyType
from protocol.withdrawal import WITHDRAWAL_NOTICE_TYPE, WithdrawalNotice
from protocol.witness_policy import WitnessPolicy
from site_agent.clock import system_clock
from site_agent.cohort.tables import SentNotice
from site_agent.cohort.withdrawal import deliver_notices, waiting_notices
from site_agent.coordinator_client import CoordinatorClient, CoordinatorRefused
from site_agent.database import open_database, transaction
from site_agent.enrol import enrol
from site_agent.incidents.facts import LogReader, incident_facts
from site_agent.incidents.report import deliver_reports, end, report
from site_agent.keystore import load_keys
from site_agent.renewal import current, renew_if_due
from site_agent.serving.reports import Served as ServedModel
from site_agent.serving.reports import deliver_serving, tell, told
from site_agent.settings import SiteHome, load_settings
from site_agent.witness import repository
from site_agent.witness.cycle import Witness
from tests.coordinator.appliances import Served, exported, served_coordinator
from tests.papers import papers_file

pytestmark = pytest.mark.processes


class Site:
    """An enrolled site with its client open."""

    def __init__(self, served: Served, folder: Path, name: str, witness_key: str = "ed25519") -> None:
        with at_coordinator(served.appliance.engine) as session:
            token = enrolment.invite(session, served.appliance, name).to_text()
        home = SiteHome(folder / name)
        enrol(token, home, system_clock, papers_file(), witness_key=witness_key)
        self.settings, self.keys, self.engine = load_settings(home), load_keys(home), open_database(home)
        self.client = CoordinatorClient(self.settings, self.keys)
        self.witness = Witness(self.settings, self.keys, self.engine, self.client, system_clock)

    def policy(self) -> WitnessPolicy:
        with transaction(self.engine) as session:
            return repository.policy_in_force(session)

    def close(self) -> None:
        self.client.close()
        self.engine.dispose()


@pytest.fixture
def served(tmp_path: Path):
    with served_coordinator(tmp_path) as served:
        yield served


@pytest.fixture
def sites(served: Served, tmp_path: Path):
    sites = [Site(served, tmp_path, name) for name in ("clinic-a", "clinic-b", "clinic-c", "clinic-d")]
    yield sites
    for site in sites:
        site.close()


def test_a_site_with_a_post_quantum_witness_cosigns_and_its_quorum_exports(served, tmp_path):
    lattice = Site(served, tmp_path, "clinic-l", witness_key="ml-dsa-44")
    classical = Site(served, tmp_path, "clinic-m")
    try:
        settle(served, [lattice, classical])
        settle(served, [lattice, classical])
        assert {key.type for key in lattice.policy().witnesses} == {KeyType.ML_DSA_44, KeyType.COSIGNATURE_V1}
        assert load_keys(lattice.settings.home).witness.public == lattice.keys.witness.public
        report = verify_bundle(read_archive(exported(served)), policy=classical.policy())
        assert report.problems == []
        assert set(report.witnesses) == {"clinic-l/witness", "clinic-m/witness"}
        with pytest.raises(Malformed, match="kind of witness key"):
            Site(served, tmp_path, "clinic-n", witness_key="rsa")
        assert not (tmp_path / "clinic-n").exists()
    finally:
        lattice.close()
        classical.close()


def settle(served: Served, sites: list[Site]) -> None:
    """Integrate, and let every site witness until nothing is new."""
    integrate_once(served.appliance)
    for site in sites:
        site.witness.turn()


def test_four_sites_cosign_and_a_quorum_stands(served, sites):
    settle(served, sites)
    with at_coordinator(served.appliance.engine) as session:
        note = quorum_note(session, served.appliance, 1)
    assert note is not None
    policies = {site.policy().digest for site in sites}
    assert len(policies) == 1  # all follow the log to the newest policy, from the four they were enrolled with
    policy = sites[0].policy()
    assert (len(policy.witnesses), policy.quorum) == (4, 3)
    assert set(policy.accept(note).cosigners) == {witness.name for witness in policy.witnesses}


def test_a_revoked_site_is_refused_at_once_and_leaves_the_policy(served, sites):
    settle(served, sites)
    with at_coordinator(served.appliance.engine) as session:
        enrolment.revoke(session, served.appliance, "clinic-d")
    with pytest.raises(CoordinatorRefused) as caught:
        sites[3].client.me()
    assert caught.value.remedy
    settle(served, sites[:3])
    assert len(sites[0].policy().witnesses) == 3


def test_a_certificate_is_renewed_and_serves(served, sites):
    site = sites[0]
    old = current(site.keys)
    issued = renew_if_due(site.settings, site.keys, lambda: datetime.now(UTC) + timedelta(days=5))
    assert issued is not None
    assert issued.pem != old.pem
    with CoordinatorClient(site.settings, site.keys) as client:
        assert client.me()["name"] == "clinic-a"


def test_a_data_set_is_registered_by_digests_and_counts(served, sites):
    client = sites[0].client
    document = {"schema_digest": "sha256:" + "a" * 64, "snapshot": "sha256:" + "b" * 64, "patients": 60, "held_out": 15}
    client.register_dataset("heart", document)
    (registered,) = client.me()["datasets"]
    assert {key: registered[key] for key in document} == document
    with pytest.raises(CoordinatorRefused):
        client.register_dataset("heart", document | {"patients": 10})
    assert client.studies() == []
    assert client.work() == {"active": [], "installable": []}


def test_an_expired_invitation_is_told(served, tmp_path):
    with at_coordinator(served.appliance.engine) as session:
        token = enrolment.invite(session, served.appliance, "clinic-a").to_text()
    served.clock.move(hours=25)
    with pytest.raises(CoordinatorRefused, match="expired") as caught:
        enrol(token, SiteHome(tmp_path / "late"), system_clock, papers_file())
    assert caught.value.remedy
    assert not (tmp_path / "late").exists()


def test_another_sites_token_does_not_make_this_site(served, tmp_path):
    """The name is in the token: a token altered to say another name is no invitation of that site."""
    with at_coordinator(served.appliance.engine) as session:
        token = enrolment.invite(session, served.appliance, "clinic-a")
        enrolment.invite(session, served.appliance, "clinic-b")
    altered = token.model_copy(update={"name": "clinic-b"}).to_text()
    with pytest.raises(CoordinatorRefused):
        enrol(altered, SiteHome(tmp_path / "stolen"), system_clock, papers_file())
    assert not (tmp_path / "stolen").exists()
    enrol(token.to_text(), SiteHome(tmp_path / "rightful"), system_clock, papers_file())


def test_an_incident_that_one_hospital_reports_is_in_every_hospital_s_own_log_until_two_people_close_it(served, sites):
    settle(served, sites)
    reporter, other = sites[0], sites[1]
    with transaction(reporter.engine) as session:
        told = report(
            session, site="clinic-a", key=reporter.keys.identity, kind="data-breach", study=None, aware_at=None,
            now=system_clock(), entropy=os.urandom,
        )  # fmt: skip
    assert deliver_reports(reporter.engine, reporter.client) == [told.incident]
    settle(served, sites)

    def held(site: Site) -> int:
        with transaction(site.engine) as session:
            matters = LogReader(site.settings).matters(session)
            facts = incident_facts(session, matters, study="any", sites=("clinic-a",), now=system_clock())
        return int(facts["open"])

    assert [held(site) for site in sites] == [1, 1, 1, 1]
    duties = Settled(authority="not-required", individuals="not-required")
    people = [Person(name=name, role=role, status="active", invited_at="") for name, role in ROLES]
    with at_coordinator(served.appliance.engine) as session:
        update(session, served.appliance, people[0], told.incident, duties, words="Assessed")
        close(session, served.appliance, people[0], told.incident, "resolved", words="Mended")
    settle(served, sites)
    assert held(other) == 1
    with at_coordinator(served.appliance.engine) as session:
        close(session, served.appliance, people[1], told.incident, "resolved", words="Mended")
    settle(served, sites)
    assert [held(reporter), held(other)] == [1, 0]  # who reported it says for itself that it is over
    with transaction(reporter.engine) as session:
        end(session, LogReader(reporter.settings).matters(session), told.incident, now=system_clock())
    assert held(reporter) == 0


def test_a_notice_of_a_withdrawal_is_refused_for_a_study_that_is_not_and_stays_to_be_sent(served, sites):
    site = sites[0]
    with transaction(site.engine) as session:
        notice = WithdrawalNotice(
            review="review-00000000000000a1", site="clinic-a", study="no-study", plan_digest="sha256:" + "a" * 64,
            grounds=("erasure",), made_at="2026-11-23T00:00:00Z",
        )  # fmt: skip
        signed = seal(WITHDRAWAL_NOTICE_TYPE, notice.model_dump(mode="json"), site.keys.identity).to_bytes()
        session.add(SentNotice(review=notice.review, study="no-study", notice=signed, made_at=notice.made_at))
    with pytest.raises(CoordinatorRefused, match="no study"):
        deliver_notices(site.engine, site.client)
    with transaction(site.engine) as session:
        assert [row.delivered for row in waiting_notices(session)] == [False]


def test_a_report_of_serving_a_release_that_is_not_is_set_aside_by_the_route(served, sites):
    site = sites[0]
    with transaction(site.engine) as session:
        tell(session, ServedModel("clinic-a", "no-release", "sha256:" + "a" * 64), "rolled-back", system_clock)
    done = list(deliver_serving(site.settings, site.engine, site.client, site.keys, system_clock))
    assert done == ["no-release rolled-back, set aside: not-found"]
    with transaction(site.engine) as session:
        assert [answer for _, answer in told(session)] == ["not-found"]


ROLES = (("carl", "compliance_officer"), ("lena", "clinical_lead"))
