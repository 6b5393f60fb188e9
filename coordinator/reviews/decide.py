"""Open a review on a site's notice, close it with a ground. Each is load, decide, save, append."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, person_label, site_label
from coordinator.errors import Conflict
from coordinator.people.tables import Person
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.states import ReleaseState
from coordinator.reviews.repository import JOINED, ReviewRepository, causes_of
from coordinator.reviews.states import ReviewState, decide_closing
from coordinator.reviews.tables import ModelReview
from coordinator.sites.tables import Site
from coordinator.studies.repository import StudyRepository, plan_of
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.envelope import Envelope, open_json
from protocol.errors import Malformed, Refused
from protocol.identifiers import Role
from protocol.signing import VerifyingKey
from protocol.timestamp import timestamp
from protocol.withdrawal import WITHDRAWAL_NOTICE_TYPE, ReviewGround, WithdrawalNotice

_OUT = frozenset({ReleaseState.SEALING, ReleaseState.RELEASED})


def open_review(session: Session, appliance: Appliance, site: Site, data: bytes) -> ModelReview:
    """A site's signed notice that patients of a study withdrew; the same again changes nothing.

    Raises BadSignature, Malformed, Refused for a study that the site is not in, Conflict for a used identifier.
    """
    notice, reviews = read_notice(data, site), ReviewRepository(session)
    present = reviews.find(notice.review)
    if present is not None:
        if present.notice != data:
            raise Conflict("Another review has this identifier.", "Send the notice as it was signed.")
        return present
    studies = StudyRepository(session)
    if not studies.exists(notice.study):
        raise Refused(f"There is no study {notice.study}.", "Send notices of studies that this site granted.")
    study = studies.get(notice.study)
    if study.plan is None or study.plan_digest != notice.plan_digest or site.name not in plan_of(study).names:
        raise Refused("The notice is of another plan, or of a study that the site is not in.", "Send this site's own.")
    row = ModelReview(
        id=notice.review,
        study=notice.study,
        site=site.name,
        causes=JOINED.join(notice.grounds),
        state=ReviewState.OPEN.value,
        notice=data,
        opened_at=timestamp(appliance.clock()),
    )
    reviews.add(row)
    append(
        session,
        appliance,
        EventType.REVIEW_OPENED,
        actor=site_label(site.name),
        subject=notice.study,
        digests={"notice": sha256_hex(data), "plan": notice.plan_digest},
        labels={"review": row.id, "causes": row.causes},
    )
    return row


def close_review(
    session: Session, appliance: Appliance, person: Person, review: str, grounds: Sequence[ReviewGround], *, words: str
) -> ModelReview:
    """The privacy officer's decision. words: erasable; the log holds the grounds and their salted hash."""
    reviews = ReviewRepository(session)
    row = reviews.get(review)
    releases = ReleaseRepository(session).of_study(row.study)
    decide_closing(
        state=ReviewState(row.state),
        role=Role(person.role),
        person=person.name,
        submitter=StudyRepository(session).get(row.study).submitter,
        causes=causes_of(row),
        grounds=grounds,
        words=words,
        served=any(ReleaseState(release.state) in _OUT for release in releases),
    )
    reviews.close(row, sorted(set(grounds)), by=person.name, at=timestamp(appliance.clock()))
    append(
        session,
        appliance,
        EventType.REVIEW_CLOSED,
        actor=person_label(appliance, person.name),
        subject=row.study,
        labels={"review": row.id, "causes": row.causes, "grounds": row.grounds or "none"},
        payload={"reason": words, "person": person.name},
    )
    return row


def read_notice(data: bytes, site: Site) -> WithdrawalNotice:
    """What the site tells, verified under its key. Raises BadSignature, Malformed, Refused."""
    key = VerifyingKey.from_text(site.identity or "")
    envelope = Envelope.from_bytes(data)
    open_json(envelope, WITHDRAWAL_NOTICE_TYPE, {key.key_id: key})
    try:
        notice = WithdrawalNotice.model_validate_json(envelope.payload)
    except ValidationError:
        raise Malformed("The notice is not of the agreed form.", "Update the site to the same version.") from None
    if notice.site != site.name:
        raise Refused("The notice is another site's.", "Send this site's own.")
    return notice
