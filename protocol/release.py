"""The release: what approvers sign, the sealed statement, and the exact files of a bundle.

Order of trust (site_agent/releases/trusted_release.py): pinned keys -> statement -> approvals -> log -> files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from protocol.canonical import digest
from protocol.dataset import DatasetSchema
from protocol.evaluation import EvaluationReport
from protocol.identifiers import Digest, Frozen, Label, PersonName, ReleaseId, Role, SiteName, StudyId, Timestamp
from protocol.membership import MembershipReport
from protocol.model import ModelSpec
from protocol.tuning import TuningEntry

APPROVAL_TYPE = "application/vnd.cloister.approval+json"
WAIVER_TYPE = "application/vnd.cloister.release-waiver+json"
VETO_TYPE = "application/vnd.cloister.release-veto+json"
STATEMENT_TYPE = "application/vnd.in-toto+json"
STATEMENT_KIND = "https://in-toto.io/Statement/v1"
PREDICATE_KIND = "https://cloister.health/release/v1"

MODEL_FILES = ("model.safetensors", "model.onnx", "model_card.md")
BUNDLE_FILES = (
    *MODEL_FILES,
    "subject.json",
    "plan.dsse.json",
    "statement.dsse.json",
    "event.json",
    "release.tlog-proof",
)

MOST_WAIVER_DAYS = 90


class FileDigest(Frozen):
    """One file of the bundle."""

    name: Label
    sha256: Digest
    size: Annotated[int, Field(ge=0)]


class Selection(Frozen):
    """How a tuned study chose its model: after runs with these entries of a grid of `entries`, by these noised scores
    on the held-out patients, None where one was undefined. changes: what the chosen entry puts in place."""

    entries: int
    order: Literal["declared", "searched"]
    runs: tuple[int, ...]
    scores: tuple[float | None, ...]
    chosen: int
    changes: TuningEntry


class EpsilonStatement(Frozen):
    """The numbers that always stand together, and what they rest on. epsilon_evaluation and
    epsilon_evaluation_worst_site are of the held-out patients; None for an exact evaluation. epsilon_membership and
    epsilon_membership_worst_site are of the membership audit, for training and held-out patients alike, beside the
    others; None where none was planned. They count every run and score of a tuned study; `selection` says how its
    model was chosen. epsilon_checks: of the checks between rounds, for held-out patients, likewise. rounds_undone:
    executed and charged, and given up after a check."""

    unit: Literal["patient"]
    adjacency: Literal["zero-out"]
    epsilon: float
    delta: float
    epsilon_worst_site: float
    epsilon_cohort_to_date: dict[SiteName, float]
    epsilon_evaluation: float | None
    epsilon_evaluation_worst_site: float | None
    epsilon_membership: float | None = None
    epsilon_membership_worst_site: float | None = None
    epsilon_checks: float | None = None
    epsilon_checks_worst_site: float | None = None
    rounds_undone: int = 0
    steps_charged: int
    rounds_executed: int
    attempts: int
    sampling: str
    accountant: str
    trust: str
    selection: Selection | None = None


class ReleaseSubject(Frozen):
    """What approvers sign over: its digest is the release digest. Any change voids every approval.

    membership: None where the plan has no membership audit; one that could not be carried out says so. claim_anonymous:
    the submitter claims that the model is anonymous (GDPR Rec. 26), which the gate lets pass on evidence alone.
    """

    release: ReleaseId
    study: StudyId
    plan_digest: Digest
    model: ModelSpec
    dataset: DatasetSchema
    files: tuple[FileDigest, ...]
    epsilon: EpsilonStatement
    evaluation: EvaluationReport
    membership: MembershipReport | None = None
    intended_use: Label
    use_mode: Literal["research", "decision-support"]
    submitter: PersonName
    recipients: tuple[SiteName, ...]
    packs: dict[Label, Digest]
    claim_anonymous: bool = False

    @property
    def digest(self) -> str:
        """The release digest."""
        return digest(self.model_dump(mode="json"))


class Approval(Frozen):
    """Signed by the approver's own key. `challenge` is the coordinator's nonce: a signature can't be replayed."""

    release: ReleaseId
    subject_digest: Digest
    person: PersonName
    role: Role
    decision: Literal["approve", "reject"]
    meaning: Literal["reviewed-and-approved", "reviewed-and-rejected"]
    reason_hash: Digest
    packs: dict[Label, Digest]
    challenge: Digest
    signed_at: Timestamp


class ReleaseWaiver(Frozen):
    """An approver answers for one rule that the release gate finds broken, until a date and for a reason. The rule's
    pack must allow it; rules on consent, agreements, audit and approvals never do. Signed like an approval."""

    release: ReleaseId
    subject_digest: Digest
    person: PersonName
    role: Role
    pack: Label
    rule: Label
    reason_hash: Digest
    expires_at: Timestamp
    challenge: Digest
    signed_at: Timestamp


VetoReason = Literal["patients", "law", "safety", "quality", "agreement", "other"]


class ReleaseVeto(Frozen):
    """A site that took part refuses the release before it is sealed; signed by the site key. The words behind the
    closed reason stay at the site."""

    release: ReleaseId
    subject_digest: Digest
    site: SiteName
    reason: VetoReason
    at: Timestamp


class ReleasePredicate(Frozen):
    """The in-toto predicate: plan -> rounds -> ledger -> packs -> waivers and approvals. Signed documents stand in
    whole."""

    release: ReleaseId
    subject_digest: Digest
    plan_digest: Digest
    rounds_digest: Digest
    rounds: int
    waivers: tuple[dict[str, Any], ...] = ()
    approvals: tuple[dict[str, Any], ...]
    decision_digest: Digest
    sealed_at: Timestamp
