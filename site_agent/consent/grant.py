"""Answers a plan: sets the budget aside and signs, in one transaction; then tells the coordinator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from sqlalchemy import Engine
from sqlmodel import Session, select

from policies.findings import APPROVAL, Outcome
from protocol.canonical import digest
from protocol.consent import CONSENT_TYPE, Consent
from protocol.envelope import Envelope, open_json, seal
from protocol.errors import Refused
from protocol.signing import SigningKey
from protocol.timestamp import timestamp
from site_agent.consent.delivery import end_grant
from site_agent.consent.plans import SignedPlan
from site_agent.consent.review import Review
from site_agent.consent.states import Answer, ConsentConflict, answer_after
from site_agent.consent.tables import StudyGrant
from site_agent.database import transaction
from site_agent.policy.decisions import keep
from site_agent.training.budget_store import BudgetStore, reserve
from site_agent.training.generation import advance, standing

Reason = Literal["agreed", "purpose", "legal-basis", "privacy-budget", "data-quality", "capacity", "other"]


class GrantDenied(Refused):
    """The site's own rules do not allow a grant."""

    code = "grant-denied"


def grant(
    engine: Engine, review: Review, *, key: SigningKey, site: str, evidence: Mapping[str, str], now: datetime
) -> StudyGrant:
    """Reserve what the plan asks and sign the consent; an older grant of the same study is superseded.

    Raises GrantDenied when the review does not allow it, ConsentConflict for a plan that was answered, BudgetExceeded,
    LedgerBehind.
    """
    if not review.grantable(evidence):
        if review.decided is not None:
            with transaction(engine) as session:
                keep(session, review.decided, subject=review.signed.plan.spec.study)
        raise GrantDenied(*why_not(review, evidence))
    signed = review.signed
    plan = signed.plan
    with transaction(engine) as session:
        row = _answer(session, review, "grant", "agreed", key=key, site=site, evidence=evidence, now=now)
        earlier = select(StudyGrant).where(
            StudyGrant.study == plan.spec.study,
            StudyGrant.state == Answer.GRANTED.value,
            StudyGrant.plan_digest != signed.digest,
        )
        for other in session.exec(earlier).all():
            other.state = answer_after(Answer(other.state), "supersede").value
            session.add(other)
            end_grant(session, other)
        reserve(
            session,
            study=plan.spec.study,
            plan_digest=signed.digest,
            snapshot=plan.site(site).snapshot,
            charges=tuple(cost.charge for cost in review.costs),
            cap=review.costs[0].limit,
            at=timestamp(now),
        )
    return row


def refuse(engine: Engine, review: Review, *, key: SigningKey, site: str, reason: Reason, now: datetime) -> StudyGrant:
    """Sign a refusal. Raises ConsentConflict for a plan that was answered."""
    with transaction(engine) as session:
        return _answer(session, review, "refuse", reason, key=key, site=site, evidence={}, now=now)


def withdraw(engine: Engine, study: str, *, key: SigningKey, site: str, reason: Reason, now: datetime) -> StudyGrant:
    """Withdraw the standing grant of a study: from now on every request is refused, its keys are erased, and what was
    not begun is given back. Raises ConsentConflict where no grant stands."""
    with transaction(engine) as session:
        query = select(StudyGrant).where(StudyGrant.study == study, StudyGrant.state == Answer.GRANTED.value)
        row = session.exec(query).first()
        if row is None:
            raise ConsentConflict(f"No grant of the study {study} stands here.", "See cloister-site studies list.")
        row.state = answer_after(Answer(row.state), "withdraw").value
        given = _opened(row.consent, key)
        consent = given.model_copy(update={"decision": "withdraw", "reason": reason, "at": timestamp(now)})
        row.consent = _sealed(consent, key)
        row.decided_at, row.delivered = timestamp(now), False
        session.add(row)
        end_grant(session, row)
        if not standing(session).behind:  # a ledger that was put back stays behind until that is acknowledged
            advance(session)
    BudgetStore(engine).erase_traces()
    return row


def _answer(
    session: Session,
    review: Review,
    decision: Literal["grant", "refuse"],
    reason: Reason,
    *,
    key: SigningKey,
    site: str,
    evidence: Mapping[str, str],
    now: datetime,
) -> StudyGrant:
    signed = review.signed
    standing = session.get(StudyGrant, signed.digest)
    state = answer_after(None if standing is None else Answer(standing.state), decision)
    row = StudyGrant(
        plan_digest=signed.digest,
        study=signed.plan.spec.study,
        spec_digest=signed.plan.spec_digest,
        snapshot=signed.plan.site(site).snapshot,
        state=state.value,
        plan=signed.envelope,
        consent=_sealed(_consent(review, signed, decision, reason, site, now), key),
        decision=json.dumps(review.decision.to_dict(), sort_keys=True),
        evidence=json.dumps(dict(evidence), sort_keys=True),
        decided_at=timestamp(now),
    )
    session.add(row)
    if review.decided is not None:
        keep(session, review.decided, subject=row.study)
    session.flush()
    return row


def _consent(
    review: Review, signed: SignedPlan, decision: Literal["grant", "refuse"], reason: Reason, site: str, now: datetime
) -> Consent:
    return Consent(
        study=signed.plan.spec.study,
        site=site,
        plan_digest=signed.digest,
        spec_digest=signed.plan.spec_digest,
        snapshot=signed.plan.site(site).snapshot,
        decision=decision,
        reason=reason,
        decision_digest=digest(review.decision.to_dict()),
        packs=dict(review.decision.pack_digests),
        at=timestamp(now),
    )


def _sealed(consent: Consent, key: SigningKey) -> bytes:
    return seal(CONSENT_TYPE, consent.model_dump(mode="json"), key).to_bytes()


def _opened(consent: bytes, key: SigningKey) -> Consent:
    document, _ = open_json(Envelope.from_bytes(consent), CONSENT_TYPE, {key.public.key_id: key.public})
    return Consent.model_validate(document)


def why_not(review: Review, evidence: Mapping[str, str]) -> tuple[str, str]:
    """(message, remedy): every objection and finding that stands against a grant with this evidence."""
    found = [f"{item.message} ({item.code})" for item in review.objections]
    remedies = [item.remedy for item in review.objections]
    for finding in review.decision.findings:
        lifted = finding.effect == "evidence" and evidence.get(finding.rule)
        if finding.effect != "warn" and not lifted:
            found.append(f"{finding.message} ({finding.pack} {finding.rule}, {finding.citation})")
            remedies.append(finding.remedy)
            if finding.effect == "evidence":
                remedies.append(f"Attach it: --evidence {finding.rule}=REFERENCE.")
            elif finding.effect.startswith(APPROVAL) and review.decision.outcome is Outcome.HOLD:
                remedies.append("A site has nobody in that role: refuse the study, or ask for another plan.")
    return "This site's own rules do not allow a grant: " + " ".join(found), " ".join(dict.fromkeys(remedies))
