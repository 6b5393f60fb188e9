"""A site's signed answer to a plan: verified under the identity key that the plan pins, bound to the plan's digest."""

from __future__ import annotations

from pydantic import ValidationError
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import append, site_label
from coordinator.studies.repository import StudyRepository, plan_of
from coordinator.studies.states import ConsentConflict, StudyState, decide_consent
from coordinator.studies.tables import Study, StudyConsent
from protocol.audit_event import EventType
from protocol.consent import CONSENT_TYPE, Consent
from protocol.envelope import Envelope, open_json
from protocol.errors import Malformed, Refused
from protocol.plan import Plan
from protocol.signing import VerifyingKey
from protocol.timestamp import timestamp


def answer(session: Session, appliance: Appliance, site: str, study: str, data: bytes) -> StudyState:
    """Record the answer of `site`; where the study stands then. The same bytes again change nothing.

    Raises ConsentConflict for another plan's digest or an answer that comes too late, Refused for another site's
    consent, BadSignature, Malformed, NotFound.
    """
    studies = StudyRepository(session)
    row = studies.get(study)
    plan = plan_of(row)
    consent = _read(data, plan, site)
    _require_match(consent, row, plan, site)
    earlier = studies.consents(study).get(site)
    if earlier is not None and earlier.consent == data:
        return StudyState(row.state)
    state = StudyState(row.state)
    if state is StudyState.HELD:
        raise ConsentConflict(
            f"Study {study} is held until a compliance officer approves its plan.", "Answer once it has been approved."
        )
    standing = decide_consent(
        study, state, plan.names, plan.spec.minimum_sites, studies.answers(study), site, consent.decision
    )
    now = timestamp(appliance.clock())
    studies.put_consent(
        StudyConsent(
            study=study,
            site=site,
            decision=consent.decision,
            reason=consent.reason,
            plan_digest=consent.plan_digest,
            consent=data,
            at=now,
        )
    )
    granted = consent.decision == "grant"
    append(
        session,
        appliance,
        EventType.STUDY_CONSENTED if granted else EventType.STUDY_REFUSED,
        actor=site_label(site),
        subject=study,
        digests={"plan": consent.plan_digest, "decision": consent.decision_digest},
        labels={"decision": consent.decision, "reason": consent.reason},
    )
    if standing.state is not state:
        stopped = standing.state is StudyState.STOPPED
        reason = standing.reason.value if standing.reason else None
        studies.set_state(row, standing.state, reason=reason, ended_at=now if stopped else None)
        if stopped:
            append(
                session,
                appliance,
                EventType.STUDY_STOPPED,
                actor=site_label(site),
                subject=study,
                digests={"plan": consent.plan_digest},
                labels={"state": standing.state.value, "reason": reason or "none"},
            )
    return standing.state


def _read(data: bytes, plan: Plan, site: str) -> Consent:
    if site not in plan.names:
        raise Refused(f"{site} is not in this study's plan.", "Answer only plans that name this site.")
    key = VerifyingKey.from_text(plan.site(site).identity)
    envelope = Envelope.from_bytes(data)
    open_json(envelope, CONSENT_TYPE, {key.key_id: key})
    try:
        return Consent.model_validate_json(envelope.payload)
    except ValidationError:
        raise Malformed("The consent does not have the agreed form.", "Update the site to the same version.") from None


def _require_match(consent: Consent, row: Study, plan: Plan, site: str) -> None:
    if consent.site != site or consent.study != row.id:
        raise Refused("The consent is another site's or another study's.", "Send this site's own answer to this study.")
    if consent.plan_digest != row.plan_digest or consent.spec_digest != plan.spec_digest:
        raise ConsentConflict(
            f"The consent is for plan {consent.plan_digest}; the plan of study {row.id} is {row.plan_digest}.",
            "Fetch the plan again, review it with `cloister-site studies review`, and answer that one.",
        )
    if consent.snapshot != plan.site(site).snapshot:
        raise ConsentConflict(
            f"The consent names another snapshot than the plan of study {row.id}.",
            "Have the study proposed anew, with the snapshot that is registered now.",
        )
