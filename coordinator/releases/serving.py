"""What sites tell of the models that they serve: each report verified under the site's key, kept once and logged."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, site_label
from coordinator.errors import Conflict, NotFound
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.review import subject_of_release
from coordinator.releases.tables import ReleaseInstallation, ServingChange
from coordinator.sites.tables import Site
from protocol.audit_event import EventType
from protocol.envelope import Envelope, open_json
from protocol.errors import Malformed
from protocol.serving import SERVING_REPORT_TYPE, Change, ServingReport
from protocol.signing import VerifyingKey
from protocol.timestamp import timestamp

EVENTS: dict[Change, EventType] = {
    "installed": EventType.RELEASE_INSTALLED,
    "started": EventType.SERVING_STARTED,
    "stopped": EventType.SERVING_STOPPED,
    "rolled-back": EventType.SERVING_ROLLED_BACK,
    "refused": EventType.SERVING_REFUSED,
    "resumed": EventType.SERVING_RESUMED,
}


def take(session: Session, appliance: Appliance, site: Site, data: bytes) -> ServingReport:
    """Log a site's signed report, whatever became of the release meanwhile; sent again it changes nothing.

    Raises BadSignature, Malformed, NotFound for a release that is not for this site, Conflict for another report under
    an identifier that is taken.
    """
    report = read_report(data, site)
    releases = ReleaseRepository(session)
    release = releases.get(report.release)
    if site.name not in subject_of_release(release).recipients:
        raise NotFound(f"There is no release {report.release}.", "Ask which releases are for this site.")
    if report.subject_digest != release.subject_digest:
        raise Malformed("The digest is not this release's.", "Fetch the release again and verify it.")
    present = releases.serving_change(report.report)
    if present is not None:
        if present.envelope != data:
            raise Conflict("Another report has this identifier.", "Report it anew.")
        return report
    now = timestamp(appliance.clock())
    if report.change == "installed" and not releases.add_installation(
        ReleaseInstallation(release=release.id, site=site.name, installed_at=now)
    ):
        return report  # it is in the log already, told when it was fetched
    entry = append(
        session,
        appliance,
        EVENTS[report.change],
        actor=site_label(site.name),
        subject=f"release:{release.id}",
        digests={
            "subject": release.subject_digest,
            **({} if report.decision is None else {"decision": report.decision}),
        },
        numbers={"number": report.number, **({} if report.answered is None else {"answered": report.answered})},
        labels={
            "report": report.report,
            "told_at": report.at,
            **{
                name: value
                for name, value in (("server", report.server), ("moment", report.moment), ("code", report.code))
                if value is not None
            },
        },
        groups={"rules": report.rules} if report.rules else {},
    )
    releases.add_serving_change(
        ServingChange(
            id=report.report, release=release.id, site=site.name, change=report.change, server=report.server,
            told_at=report.at, entry=entry, envelope=data,
        )
    )  # fmt: skip
    return report


def where_served(releases: ReleaseRepository, release: str) -> list[dict[str, Any]]:
    """Each site that ever told of serving the release: how many of its servers run by its own word, and the last that
    it told. A server that is refused runs and answers nothing."""
    told: dict[str, dict[str, Any]] = {}
    running: dict[str, dict[str, str]] = {}
    for row in releases.serving_changes(release):
        if row.change == "installed":
            continue
        servers = running.setdefault(row.site, {})
        if row.server is not None:
            servers[row.server] = row.change
        answering = sum(change in ("started", "resumed") for change in servers.values())
        told[row.site] = {"site": row.site, "answering": answering, "last": row.change, "at": row.told_at}
    return [told[site] for site in sorted(told)]


def read_report(data: bytes, site: Site) -> ServingReport:
    """What the site tells, verified under its key. Raises BadSignature, Malformed, Refused."""
    if site.identity is None:
        raise Malformed("This site has no key on record.", "Enrol it first.")
    key = VerifyingKey.from_text(site.identity)
    signed = Envelope.from_bytes(data)
    open_json(signed, SERVING_REPORT_TYPE, {key.key_id: key})
    try:
        report = ServingReport.model_validate_json(signed.payload)
    except ValidationError:
        raise Malformed("The report is not of the agreed form.", "Update the site's software.") from None
    if report.site != site.name:
        raise Malformed("The report is another site's.", "A site tells of what it serves itself.")
    return report
