"""Retention at a hospital: a study's scratch is wiped and attested, models and logs go on their day, a site leaves."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from protocol.bundle import pack
from protocol.evidence import EvidenceRecord
from protocol.release import BUNDLE_FILES, ReleaseSubject
from protocol.round import REFUSAL_TYPE, Packet
from site_agent.cohort.snapshot import path_of
from site_agent.consent.governance import load_governance, save_governance
from site_agent.consent.plans import SignedPlan
from site_agent.database import transaction
from site_agent.evidence.record import import_records
from site_agent.evidence.repository import SiteEvidenceRepository
from site_agent.releases.install import current, install, installed, verify_bundle
from site_agent.releases.trusted_release import TrustRoot
from site_agent.retention.inventory import scratches
from site_agent.retention.leave import LeavingRefused, forecast, leave
from site_agent.retention.purge import Judged, PurgeRefused, SiteRetention, StudyNotOver
from site_agent.retention.tables import Departure, SitePurge
from site_agent.serving.deployment import DeploymentRecord, say
from site_agent.serving.log import ServingLog, days
from site_agent.training.tables import CohortCharge, ConsumedAttempt, SecureSumKeys
from site_agent.witness.tables import LogAlarm
from tests.releases import ADDRESS, HASH, Maker
from tests.site_agent.federation_of_sites import NOW, Federation, Hospital

STUDY = "hearts-one"


@pytest.fixture
def site(running: tuple[Federation, SignedPlan]) -> Hospital:
    """A hospital that answered a round."""
    world, signed = running
    found = world.hospitals["aarhus"]
    answer = found.participant().answer("train.contribute", world.round_request(signed))
    assert Packet.from_bytes(answer).envelope.payload_type != REFUSAL_TYPE
    return found


_known: dict[tuple[Path, bytes], SiteRetention] = {}


def retention(site: Hospital) -> SiteRetention:
    """Made anew where the site said something else of itself: packs take a second to compile."""
    key = site.settings.home.path, (site.settings.home.path / "governance.toml").read_bytes()
    if key not in _known:
        _known[key] = SiteRetention(site.settings, site.engine, lambda: site.now)
    return _known[key]


def judged(site: Hospital) -> dict[tuple[str, str], Judged]:
    return {(one.holding.record_class.value, one.holding.about): one for one in retention(site).plan()}


def put_model(site: Hospital, **changes: Any) -> Path:
    maker = Maker(**changes)
    files = maker.files()
    subject = ReleaseSubject.model_validate_json(files["subject.json"])
    root = TrustRoot(
        "clinic-a", maker.coordinator.public, maker.policy(), frozenset({subject.plan_digest}), {}, ADDRESS
    )
    return install(site.settings.home, verify_bundle(pack(files, BUNDLE_FILES), root)).folder


def american(site: Hospital) -> None:
    said = load_governance(site.settings.home).model_copy(update={"jurisdiction": "US", "hipaa_role": "covered-entity"})
    save_governance(site.settings.home, said)


def end(site: Hospital) -> None:
    """The agent heard that the study ended."""
    site.store.forget_keys(STUDY)


def packets(site: Hospital) -> list[bytes | None]:
    with transaction(site.engine) as session:
        return list(session.exec(select(ConsumedAttempt.packet)))


def test_a_study_that_runs_is_not_wiped(site: Hospital) -> None:
    with pytest.raises(StudyNotOver, match="may still come"):
        retention(site).wipe(STUDY)
    assert judged(site)["scratch", STUDY].standing.value == "kept"
    assert retention(site).run() == []
    assert None not in packets(site)
    with pytest.raises(StudyNotOver, match="never granted"):
        retention(site).wipe("other")


def test_the_scratch_of_a_study_that_is_over_is_wiped_and_attested(site: Hospital) -> None:
    (secret,) = packets(site)
    assert secret is not None
    end(site)
    american(site)
    due = judged(site)["scratch", STUDY]
    assert (due.standing.value, [found.rule for found in due.decision.findings]) == ("due", ["H23"])
    report = retention(site).wipe(STUDY)
    assert (report["packets"], report["left"]) == (1, 0)
    assert packets(site) == [None]
    files = [path for path in site.settings.home.path.rglob("*") if path.is_file()]
    assert not [path.name for path in files if secret[-256:] in path.read_bytes()]
    with transaction(site.engine) as session:
        (record,) = SiteEvidenceRepository(session).standing("study")
        assert (record.kind, record.subject, record.digest) == ("scratch_wipe", STUDY, report["evidence"])
        assert [row.record_class for row in session.exec(select(SitePurge))] == ["scratch"]
        # what the ledger counts stays, and an attempt that was charged is never computed again
        assert session.exec(select(CohortCharge.steps_charged).where(CohortCharge.phase == "train")).one() == 1
    assert judged(site)["scratch", STUDY].decision.allowed
    assert retention(site).run() == []


def test_a_wiped_attempt_is_not_computed_again(running: tuple[Federation, SignedPlan], site: Hospital) -> None:
    world, signed = running
    end(site)
    retention(site).wipe(STUDY)
    computed = site.worker.computed  # type: ignore[attr-defined]
    answer = site.participant().answer("train.contribute", world.round_request(signed))
    assert Packet.from_bytes(answer).envelope.payload_type == REFUSAL_TYPE
    assert site.worker.computed == computed  # type: ignore[attr-defined]


def test_a_run_wipes_what_is_over(site: Hospital) -> None:
    end(site)
    assert [one.holding.about for one in retention(site).run()] == [STUDY]
    assert packets(site) == [None]


def test_a_superseded_snapshot_goes_with_its_study_and_the_newest_stays(site: Hospital) -> None:
    from site_agent.cohort.tables import Snapshot

    end(site)
    path = path_of(site.settings.home, site.snapshot)
    with transaction(site.engine) as session:
        assert scratches(session, site.settings.home)[0].snapshots == ()
        session.add(
            Snapshot(
                digest=HASH, name="hearts", schema_text="{}", schema_digest=HASH, records=1, dropped=0, patients=80,
                held_out=20, created_at="2026-03-02T00:00:00Z",
            )
        )  # fmt: skip
    assert path.is_file()
    assert retention(site).wipe(STUDY)["snapshots"] == 1
    assert not path.exists()


def test_what_may_be_evidence_is_not_wiped(site: Hospital) -> None:
    end(site)
    with transaction(site.engine) as session:
        session.add(LogAlarm(code="fork", detail="d", served_note=b"n", raised_at="2026-03-01T00:00:00Z"))
    with pytest.raises(PurgeRefused, match="may be evidence"):
        retention(site).wipe(STUDY)
    assert retention(site).run() == []
    assert None not in packets(site)


def test_a_model_goes_after_its_last_day_also_the_served_one(site: Hospital) -> None:
    folder = put_model(site)
    site.now = datetime(2031, 6, 30, 12, tzinfo=UTC)
    assert judged(site)["model", "heart-study-r1"].standing.value == "kept"
    end(site)
    retention(site).run()
    assert current(site.settings.home).folder == folder
    site.now = datetime(2031, 7, 1, tzinfo=UTC)
    assert judged(site)["model", "heart-study-r1"].standing.value == "due"
    assert [one.holding.about for one in retention(site).run()] == ["heart-study-r1"]
    assert installed(site.settings.home) == []
    assert not folder.exists()
    assert not (site.settings.home.releases / "current").is_symlink()


def test_an_insider_who_says_a_week_still_keeps_the_serving_log_for_six_months(site: Hospital) -> None:
    """The days that the site said count only beyond those that its packs ask for."""
    log = ServingLog(site.settings.home, "r", HASH, lambda: site.now)
    for _ in range(3):
        log.append("predicted", records=1)
        site.now += timedelta(days=100)
    with transaction(site.engine) as session:
        said = {"study": STUDY, "use": "research", "log_retention_days": 7, "coordinator_country": "DE"}
        say(session, DeploymentRecord.model_validate(said), now=site.now)
    assert [log.day for log in days(site.settings.home)] == [(NOW + timedelta(days=n)).date() for n in (0, 100, 200)]
    end(site)
    gone = {one.holding.about for one in retention(site).run() if one.holding.record_class.value == "serving-log"}
    assert gone == {NOW.date().isoformat(), (NOW + timedelta(days=100)).date().isoformat()}
    with transaction(site.engine) as session:
        said["log_retention_days"] = 400
        say(session, DeploymentRecord.model_validate(said), now=site.now)
    site.now += timedelta(days=190)
    assert retention(site).run() == []
    site.now += timedelta(days=120)
    assert [one.holding.record_class.value for one in retention(site).run()] == ["serving-log"]


def test_a_site_that_leaves_destroys_what_it_holds(site: Hospital) -> None:
    put_model(site)
    with pytest.raises(StudyNotOver, match="studies withdraw"):
        leave(site.settings, site.engine, lambda: site.now, keep_models=False)
    end(site)
    told = forecast(site.settings, site.engine, keep_models=False)
    assert (told.models, told.snapshots, told.scratch, told.retained) == (1, 1, 1, 0)
    departure = leave(site.settings, site.engine, lambda: site.now, keep_models=False)
    assert departure.retained == 0
    assert installed(site.settings.home) == []
    assert list(site.settings.home.snapshots.iterdir()) == []
    assert packets(site) == [None]
    with transaction(site.engine) as session:
        assert session.exec(select(SecureSumKeys)).all() == []
        assert session.exec(select(CohortCharge)).all()
        assert session.get_one(Departure, 1).delivered is False
    again = leave(site.settings, site.engine, lambda: site.now, keep_models=False)
    assert again.left_at == departure.left_at


@pytest.mark.parametrize("us", [False, True])
def test_models_stay_only_for_a_reason_on_record(site: Hospital, us: bool) -> None:
    put_model(site)
    end(site)
    if us:
        american(site)
    with pytest.raises(LeavingRefused, match="H04" if us else "G16-left"):
        leave(site.settings, site.engine, lambda: site.now, keep_models=True)
    assert (None not in packets(site), path_of(site.settings.home, site.snapshot).is_file()) == (True, True)
    record = EvidenceRecord.model_validate(
        {
            "kind": "infeasibility", "scope": "site", "subject": site.name, "issuer": "Hospital",
            "issued": date(2026, 2, 1), "expires": date(2026, 3, 31), "file": HASH,
        }
    )  # fmt: skip
    with transaction(site.engine) as session:
        import_records(session, site.name, [record], now=site.now)
    departure = leave(site.settings, site.engine, lambda: site.now, keep_models=True)
    assert departure.retained == 1
    assert [release.subject.release for release in installed(site.settings.home)] == ["heart-study-r1"]
    assert list(site.settings.home.snapshots.iterdir()) == []
