"""A release against the site's own copy of the log: what others were shown, and what nobody told."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.audit_event import AuditEvent, EventType
from protocol.canonical import parse, sha256_hex
from protocol.consent import CONSENT_TYPE, Consent
from protocol.envelope import Envelope, open_json, seal
from protocol.errors import CloisterError, Malformed, VerificationFailed
from protocol.release import VETO_TYPE, ReleaseSubject
from site_agent.clock import system_clock
from site_agent.consent.tables import StudyGrant
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import open_database, transaction
from site_agent.enrol import enrol
from site_agent.keystore import load_keys
from site_agent.releases.own_log import (
    Answered,
    ReleaseSuspended,
    ReleaseVetoed,
    answered_by,
    check_entries,
    check_own_log,
)
from site_agent.releases.veto import check_offered, deliver_vetoes, veto
from site_agent.settings import SiteHome, load_settings
from site_agent.witness.cycle import LogMisbehaved, Witness
from tests.papers import papers_file
from tests.releases import Maker
from tests.site_agent.made_up_coordinator import MadeUpCoordinator, made_up_coordinator

pytestmark = pytest.mark.processes
RELEASE = "heart-study-r1"
PLAN_DIGEST = sha256_hex(b"another")


def event(kind: EventType, release: str = RELEASE) -> bytes:
    return AuditEvent(
        event=kind,
        at="2026-11-23T02:00:00Z",
        actor="coordinator",
        subject=f"release:{release}",
        digests={"subject": sha256_hex(release.encode())},
    ).leaf()


@pytest.fixture
def coordinator(tmp_path: Path):
    (tmp_path / "coordinator").mkdir()
    with made_up_coordinator(tmp_path / "coordinator") as coordinator:
        coordinator.log.add(b"first", event(EventType.RELEASE_SEALED), b"third")
        yield coordinator


@pytest.fixture
def site(tmp_path: Path, coordinator: MadeUpCoordinator):
    home = SiteHome(tmp_path / "site")
    enrol(coordinator.token(), home, system_clock, papers_file())
    settings, keys = load_settings(home), load_keys(home)
    engine = open_database(home)
    with CoordinatorClient(settings, keys) as client:
        yield Witness(settings, keys, engine, client, system_clock)
    engine.dispose()


def check(site: Witness, sealing: tuple[int, bytes] | None) -> None:
    check_own_log(site.settings, site.engine, RELEASE, sealing)


def test_a_sealing_in_the_sites_own_copy_is_accepted(site):
    site.turn()
    check(site, (1, event(EventType.RELEASE_SEALED)))
    check(site, None)


def test_a_sealing_that_only_others_were_shown_is_refused(site):
    """The coordinator enrolled the witnesses and has a quorum of its own: this site's copy still contradicts it."""
    site.turn()
    for index in (0, 2):
        with pytest.raises(VerificationFailed, match="shown another log"):
            check(site, (index, event(EventType.RELEASE_SEALED)))
    with pytest.raises(VerificationFailed, match="shown another log"):
        check(site, (1, event(EventType.RELEASE_SEALED, "other-r1")))


def test_a_sealing_beyond_the_own_copy_waits_for_it(coordinator, site):
    with pytest.raises(VerificationFailed, match="does not reach"):
        check(site, (1, event(EventType.RELEASE_SEALED)))
    site.turn()
    coordinator.log.add(event(EventType.RELEASE_SEALED, "other-r1"))
    with pytest.raises(VerificationFailed, match="does not reach"):
        check(site, (3, event(EventType.RELEASE_SEALED, "other-r1")))


def test_a_suspension_in_the_log_counts_whatever_the_coordinator_serves(coordinator, site):
    coordinator.log.add(event(EventType.RELEASE_SUSPENDED, "other-r1"))
    site.turn()
    check(site, (1, event(EventType.RELEASE_SEALED)))
    coordinator.log.add(event(EventType.RELEASE_SUSPENDED))
    site.turn()
    for sealing in ((1, event(EventType.RELEASE_SEALED)), None):
        with pytest.raises(ReleaseSuspended, match="entry 4"):
            check(site, sealing)


def test_a_revocation_and_another_sites_veto_count_too(coordinator, site):
    for kind, error in ((EventType.RELEASE_REVOKED, ReleaseSuspended), (EventType.RELEASE_VETOED, ReleaseVetoed)):
        entries = [b"first", event(kind, "other-r1"), event(EventType.RELEASE_SEALED)]
        check_entries(entries, RELEASE, (2, entries[2]))
        with pytest.raises(error, match="entry 1"):
            check_entries([b"first", event(kind), entries[2]], RELEASE, (2, entries[2]))


def test_what_this_site_vetoed_is_not_installed_though_the_coordinator_never_hears_of_it(site):
    """The coordinator drops the veto and seals all the same."""
    site.turn()
    subject = ReleaseSubject.model_validate_json(Maker().files()["subject.json"])
    with pytest.raises(Malformed, match="not a reason"):
        veto(site.engine, subject, site="lyon", key=site.keys.identity, reason="mood", words="w", now=system_clock())
    row = veto(
        site.engine, subject, site="lyon", key=site.keys.identity, reason="safety", words="w", now=system_clock()
    )
    key = site.keys.identity.public
    told, _ = open_json(Envelope.from_bytes(row.envelope), VETO_TYPE, {key.key_id: key})
    assert (told["release"], told["reason"], told["subject_digest"]) == (RELEASE, "safety", subject.digest)
    assert "w" not in told.values()
    with pytest.raises(CloisterError), CoordinatorClient(site.settings, site.keys) as client:
        deliver_vetoes(site.engine, client)  # this coordinator takes none
    for sealing in ((1, event(EventType.RELEASE_SEALED)), None):
        with pytest.raises(ReleaseVetoed, match="This site"):
            check(site, sealing)


@pytest.mark.parametrize("change", [{"subject_digest": PLAN_DIGEST}, {"model_card": "kinder"}, {"release": "other-r1"}])
def test_a_release_that_is_shown_otherwise_than_it_is_signed_is_not_judged(change):
    files = Maker().files()
    subject = parse(files["subject.json"])
    offered = {
        "release": RELEASE, "subject": subject, "subject_digest": sha256_hex(files["subject.json"]),
        "model_card": files["model_card.md"].decode(),
    }  # fmt: skip
    assert check_offered(offered).release == RELEASE
    with pytest.raises(VerificationFailed):
        check_offered({**offered, **change})


def test_nothing_new_is_trusted_after_an_alarm(coordinator, site):
    site.turn()
    coordinator.log.entries[0] = b"rewritten"
    with pytest.raises(LogMisbehaved):
        site.turn()
    with pytest.raises(VerificationFailed, match="contradicted itself"):
        check(site, (1, event(EventType.RELEASE_SEALED)))
    check(site, None)  # what was installed before is served, and gone back to, as long as nobody suspended it


def test_a_copy_that_somebody_changed_is_not_believed(site):
    site.turn()
    site.mirror.write(0, (b"first", event(EventType.RELEASE_SEALED), b"changed"))
    with pytest.raises(VerificationFailed, match="does not hash"):
        check(site, (1, event(EventType.RELEASE_SEALED)))


PLAN, DECISION = sha256_hex(b"plan"), sha256_hex(b"decision")


def consented(**change: object) -> bytes:
    fields = {
        "event": EventType.STUDY_CONSENTED, "at": "2026-11-23T01:00:00Z", "actor": "site:lyon",
        "subject": "heart-study", "digests": {"plan": PLAN, "decision": DECISION},
    }  # fmt: skip
    return AuditEvent.model_validate({**fields, **change}).leaf()


@pytest.mark.parametrize(
    "told",
    [
        (),
        (consented(event=EventType.STUDY_REFUSED),),
        (consented(actor="site:bern"),),
        (consented(subject="other-study"),),
        (consented(digests={"plan": DECISION, "decision": DECISION}),),
    ],
)
def test_a_grant_that_the_log_leaves_out_is_found_at_the_release(told):
    """The coordinator took this site's grant, used it, and dropped the event, or logged another in its place."""
    answered = [Answered("lyon", "heart-study", PLAN, DECISION)]
    sealed = event(EventType.RELEASE_SEALED)
    check_entries([b"first", consented(), sealed], RELEASE, (2, sealed), answered)
    entries = [b"first", *told, sealed]
    with pytest.raises(VerificationFailed, match="leaves out"):
        check_entries([*entries, consented()], RELEASE, (len(entries) - 1, sealed), answered)
    check_entries(entries, RELEASE, (len(entries) - 1, sealed), [])
    check_entries(entries, RELEASE, None, answered)


def test_the_grants_that_were_acknowledged_are_expected(site):
    consent = Consent(
        study="heart-study", site=site.settings.site, plan_digest=PLAN, spec_digest=PLAN, snapshot=PLAN,
        decision="grant", reason="agreed", decision_digest=DECISION, packs={}, at="2026-11-23T01:00:00Z",
    )  # fmt: skip
    envelope = seal(CONSENT_TYPE, consent.model_dump(mode="json"), site.keys.identity)
    row = StudyGrant(
        plan_digest=PLAN, study="heart-study", spec_digest=PLAN, snapshot=PLAN, state="granted", plan=b"",
        consent=envelope.to_bytes(), decision="{}", evidence="{}", decided_at="2026-11-23T01:00:00Z", delivered=False,
    )  # fmt: skip
    with transaction(site.engine) as session:
        session.add(row)
    assert answered_by(site.engine, "lyon", "heart-study") == ()
    with transaction(site.engine) as session:
        kept = session.get(StudyGrant, PLAN)
        kept.delivered = True
        session.add(kept)
    assert answered_by(site.engine, "lyon", "heart-study") == (Answered("lyon", "heart-study", PLAN, DECISION),)
    assert answered_by(site.engine, "lyon", "other-study") == ()
    site.turn()
    with pytest.raises(VerificationFailed, match="leaves out"):
        check_own_log(site.settings, site.engine, RELEASE, (1, event(EventType.RELEASE_SEALED)), study="heart-study")
