"""A site's signed answer to a plan. It binds the plan's digest: any change of the plan voids it."""

from __future__ import annotations

from typing import Literal

from protocol.identifiers import Digest, Frozen, PersonName, Role, SiteName, StudyId, Timestamp

CONSENT_TYPE = "application/vnd.cloister.consent+json"
PROPOSAL_TYPE = "application/vnd.cloister.study-proposal+json"
PLAN_TYPE = "application/vnd.cloister.study-plan+json"
PLAN_APPROVAL_TYPE = "application/vnd.cloister.plan-approval+json"


class Consent(Frozen):
    """Signed by the site key. `decision_digest`: the site's own policy decision over its own packs and ledger.

    `reason` is a closed code: free text stays at the site.
    """

    study: StudyId
    site: SiteName
    plan_digest: Digest
    spec_digest: Digest
    snapshot: Digest
    decision: Literal["grant", "refuse", "withdraw"]
    reason: Literal["agreed", "purpose", "legal-basis", "privacy-budget", "data-quality", "capacity", "other"]
    decision_digest: Digest
    packs: dict[str, Digest]
    at: Timestamp


class PlanApproval(Frozen):
    """Signed by a planned approver's own key or passkey, where policy asks for it before sites are asked."""

    study: StudyId
    plan_digest: Digest
    person: PersonName
    role: Role
    decision: Literal["approve", "reject"]
    signed_at: Timestamp
