"""What sites tell of the models that they serve is in the log, once, under the site's own key."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.client.audit_bundle import read_archive
from coordinator.client.audit_query import AuditQuery, find
from coordinator.database import reading, transaction
from coordinator.errors import Conflict, NotFound
from coordinator.releases import serving
from coordinator.releases.repository import ReleaseRepository
from coordinator.sites.repository import SiteRepository
from protocol.audit_event import AuditEvent, EventType
from protocol.envelope import seal as sign
from protocol.errors import BadSignature, CloisterError, Malformed
from protocol.serving import SERVING_REPORT_TYPE, ServingReport
from tests.coordinator.appliances import exported
from tests.coordinator.test_release_review import HASH, RELEASE, Federation, federation
from tests.coordinator.test_release_stopping import released

__all__ = ["federation"]
SERVER = "server-00000000000000a1"


def report(made: Federation, number: int, change: str, **more: Any) -> ServingReport:
    with reading(made.appliance.engine) as session:
        digest = ReleaseRepository(session).get(RELEASE).subject_digest
    fields = {
        "report": f"serving-{number:016x}", "number": number, "site": made.sites[0].name, "release": RELEASE,
        "subject_digest": digest, "change": change, "at": "2026-11-23T01:00:00Z",
    }  # fmt: skip
    return ServingReport.model_validate({**fields, **more})


def send(made: Federation, told: ServingReport, *, by: int = 0, as_site: int = 0) -> None:
    data = sign(SERVING_REPORT_TYPE, told.model_dump(mode="json"), made.sites[by].key).to_bytes()
    with transaction(made.appliance.engine) as session:
        row = SiteRepository(session).get(made.sites[as_site].name)
        serving.take(session, made.appliance, row, data)


def logged(made: Federation) -> list[AuditEvent]:
    return [event for event in made.events() if event.event.value.startswith("serving.")]


def test_where_a_model_is_served_is_found_in_the_log_by_its_release(federation: Federation) -> None:
    released(federation)
    send(federation, report(federation, 1, "started", server=SERVER, decision=HASH))
    send(federation, report(federation, 2, "refused", server=SERVER, moment="running", code="serving-refused",
                            rules=("eu_ai_act:A09",)))  # fmt: skip
    send(federation, report(federation, 3, "resumed", server=SERVER))
    send(federation, report(federation, 3, "resumed", server=SERVER))  # sent again
    federation.witness()
    with reading(federation.appliance.engine) as session:
        (served,) = serving.where_served(ReleaseRepository(session), RELEASE)
    assert served == {
        "site": federation.sites[0].name, "answering": 1, "last": "resumed", "at": "2026-11-23T01:00:00Z"
    }  # fmt: skip
    send(federation, report(federation, 4, "stopped", server=SERVER, answered=40))
    federation.witness()
    with reading(federation.appliance.engine) as session:
        assert serving.where_served(ReleaseRepository(session), RELEASE)[0]["answering"] == 0
    _, found = find(read_archive(exported(federation)), AuditQuery.of(release=RELEASE))  # type: ignore[arg-type]
    told = [item.event for item in found if item.event.event.value.startswith("serving.")]
    assert [event.event for event in told] == [
        EventType.SERVING_STARTED, EventType.SERVING_REFUSED, EventType.SERVING_RESUMED, EventType.SERVING_STOPPED
    ]  # fmt: skip
    assert {event.actor for event in told} == {f"site:{federation.sites[0].name}"}
    assert told[1].groups == {"rules": ("eu_ai_act:A09",)}
    assert told[3].numbers == {"number": 4, "answered": 40}


def test_a_bundle_installed_from_a_file_is_logged_once(federation: Federation) -> None:
    released(federation)
    send(federation, report(federation, 1, "installed", decision=HASH))
    send(federation, report(federation, 2, "installed", decision=HASH))
    installed = [event for event in federation.events() if event.event is EventType.RELEASE_INSTALLED]
    assert len(installed) == 1
    with reading(federation.appliance.engine) as session:
        assert [row.site for row in ReleaseRepository(session).installed(RELEASE)] == [federation.sites[0].name]
        assert serving.where_served(ReleaseRepository(session), RELEASE) == []


@pytest.mark.parametrize(
    ("changes", "sender", "error"),
    [
        ({}, {"by": 1}, BadSignature),
        ({"site": "clinic-b"}, {}, Malformed),
        ({"subject_digest": HASH}, {}, Malformed),
        ({"release": "heart-study-r9"}, {}, NotFound),
    ],
)
def test_a_malicious_site_tells_nothing_of_another(
    federation: Federation, changes: dict[str, Any], sender: dict[str, int], error: type[CloisterError]
) -> None:
    released(federation)
    with pytest.raises(error):
        send(federation, report(federation, 1, "rolled-back", **changes), **sender)
    assert logged(federation) == []


def test_an_identifier_is_not_used_for_two_reports(federation: Federation) -> None:
    released(federation)
    send(federation, report(federation, 1, "rolled-back"))
    with pytest.raises(Conflict):
        send(federation, report(federation, 1, "rolled-back", decision=HASH))
    assert len(logged(federation)) == 1
