"""Whether a release may be installed: pure, in a fixed order, each step possible only after the one before.

Fetched -> KeysTrusted -> Approved -> Logged -> Installable (the habit of TUF clients). No I/O and no clock: the
site's pins come in as `TrustRoot`, the bundle's files as bytes. Every failure is VerificationFailed, BadSignature or
Malformed with a remedy; nothing is installed on any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from protocol.approver_signature import document_of, read_signed, verify_signed
from protocol.audit_event import AuditEvent, EventType
from protocol.canonical import canonical, parse, sha256_hex
from protocol.consent import PLAN_TYPE
from protocol.dataset import NumberLabel
from protocol.envelope import Envelope, open_json
from protocol.errors import VerificationFailed
from protocol.evaluation import LOWER_IS_BETTER, EvaluationReport, RegressionReport, kind_of, residual_limit
from protocol.identifiers import Frozen, Role
from protocol.merkle import leaf_hash
from protocol.plan import PlannedApprover
from protocol.release import (
    APPROVAL_TYPE,
    BUNDLE_FILES,
    PREDICATE_KIND,
    STATEMENT_KIND,
    STATEMENT_TYPE,
    WAIVER_TYPE,
    Approval,
    ReleasePredicate,
    ReleaseSubject,
    ReleaseWaiver,
    Selection,
)
from protocol.review import APPROVING_ROLES, Reviewer, shortfall
from protocol.signing import VerifyingKey
from protocol.study import StudyPlan
from protocol.tlog_proof import TlogProof
from protocol.witness_policy import WitnessPolicy
from site_agent.releases.weights import model_digest

_REMEDY = "Do not use this bundle. Report it to your compliance officer and to the coordinator's operator."
_Document = TypeVar("_Document", bound=Frozen)


@dataclass(frozen=True)
class TrustRoot:
    """What this site pinned: its own name, the coordinator's key, the log's witness policy, and the plans it granted.

    granted_plans: digests of the plans this site consented to. A recipient that took no part has only the
    coordinator's word for the plan, and for the roster of approvers in it. evaluated: by plan digest and
    round of its evaluations, the digest of the model that this site was asked about; a site that evaluated none has
    only the coordinator's word for the evaluation. address: the coordinator's "host:port", which passkeys must have
    been used at.
    """

    site: str
    coordinator: VerifyingKey
    policy: WitnessPolicy
    granted_plans: frozenset[str]
    evaluated: Mapping[str, Mapping[int, frozenset[str]]]
    address: str


@dataclass(frozen=True)
class Fetched:
    """A bundle's files, unverified."""

    files: Mapping[str, bytes]


@dataclass(frozen=True)
class KeysTrusted:
    """Plan and statement are signed by the pinned coordinator; the subject is what the statement names."""

    fetched: Fetched
    plan: StudyPlan
    subject: ReleaseSubject
    predicate: ReleasePredicate


@dataclass(frozen=True)
class Approved:
    """Those of the plan's roster whom its review policy asks for, none the submitter, signed this subject's digest.
    waived: the rules, as "pack rule", that approvers answered for at the coordinator's gate. methods: how they signed,
    "key" or "passkey"."""

    trusted: KeysTrusted
    roles: tuple[Role, ...]
    waived: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Logged:
    """The sealing of exactly this statement is in the log, and a quorum of witnesses saw it there."""

    approved: Approved
    index: int
    checkpoint_size: int
    cosigners: tuple[str, ...]


@dataclass(frozen=True)
class Installable:
    """Every model file is the one that was approved, and this site is a recipient."""

    logged: Logged
    subject: ReleaseSubject
    model_files: Mapping[str, bytes]


def verify(files: Mapping[str, bytes], root: TrustRoot) -> Installable:
    """All steps in order."""
    return check_files(check_log(check_approvals(trust_keys(Fetched(files), root), root), root), root)


def trust_keys(fetched: Fetched, root: TrustRoot) -> KeysTrusted:
    """The plan and the statement verify under the pinned coordinator key and name the same release."""
    if set(fetched.files) != set(BUNDLE_FILES):
        raise VerificationFailed("The bundle does not hold exactly the agreed files.", _REMEDY)
    keys = {root.coordinator.key_id: root.coordinator}
    plan_envelope = Envelope.from_bytes(fetched.files["plan.dsse.json"], limit=16 << 20)
    plan_document, _ = open_json(plan_envelope, PLAN_TYPE, keys, limit=16 << 20)
    plan = _read(StudyPlan, plan_document, "plan")
    statement, _ = open_json(Envelope.from_bytes(fetched.files["statement.dsse.json"]), STATEMENT_TYPE, keys)
    subject = _read(ReleaseSubject, _json(fetched.files["subject.json"], "subject.json"), "subject")
    predicate = _read(ReleasePredicate, _statement(statement, fetched.files), "statement's predicate")
    plan_digest = sha256_hex(plan_envelope.payload)
    if root.site in plan.names and plan_digest not in root.granted_plans:
        raise VerificationFailed("The release comes from a plan that this site did not grant.", _REMEDY)
    if not plan_digest == subject.plan_digest == predicate.plan_digest:
        raise VerificationFailed("The release names another plan than the bundle holds.", _REMEDY)
    if subject.digest != predicate.subject_digest or subject.release != predicate.release:
        raise VerificationFailed("The statement is about another release.", _REMEDY)
    if subject.study != plan.spec.study or subject.submitter != plan.submitter:
        raise VerificationFailed("The release and its plan name different studies or submitters.", _REMEDY)
    if subject.model != plan.spec.model or subject.dataset != plan.spec.dataset:
        raise VerificationFailed("The released model is not of the planned kind.", _REMEDY)
    told = subject.epsilon
    if (told.epsilon, told.epsilon_worst_site, told.epsilon_evaluation_worst_site, told.delta, told.steps_charged) != (
        plan.epsilon,
        plan.epsilon_worst_site,
        plan.epsilon_evaluation_worst_site,
        plan.spec.privacy.delta,
        plan.spec.steps,
    ) or subject.evaluation.mode != plan.spec.evaluation.mode:
        raise VerificationFailed("The release states another privacy loss than the plan that was granted.", _REMEDY)
    if subject.evaluation.outside_guarantee != (subject.evaluation.mode == "exact"):
        raise VerificationFailed("The release hides that its evaluation is outside the guarantee.", _REMEDY)
    if not measures_what_was_planned(plan, subject.evaluation):
        raise VerificationFailed("The release reports another kind of evaluation than the plan has.", _REMEDY)
    if not _audits_what_was_planned(plan, subject):
        raise VerificationFailed("The release reports another membership audit than the plan has.", _REMEDY)
    if not _chose_as_planned(plan, told.selection):
        raise VerificationFailed("The release says of its choice among runs what the plan does not allow.", _REMEDY)
    if not set(subject.recipients) <= set(plan.spec.recipients):
        raise VerificationFailed("The release names a recipient that the plan does not.", _REMEDY)
    return KeysTrusted(fetched, plan, subject, predicate)


def measures_what_was_planned(plan: StudyPlan, report: EvaluationReport) -> bool:
    """Whether kind, bins and the constants that stand for the outcome's scale are the plan's."""
    label = plan.spec.dataset.label
    if (report.kind, report.bins) != (kind_of(plan.spec.dataset), plan.spec.evaluation.bins):
        return False
    if not isinstance(report, RegressionReport) or not isinstance(label, NumberLabel):
        return True
    return (report.unit, report.limit, report.spread) == (label.unit, residual_limit(label), label.scale)


def _chose_as_planned(plan: StudyPlan, selection: Selection | None) -> bool:
    """Whether a tuned study, and no other, tells of its runs: as many as planned, none twice, the best one chosen."""
    tuning = plan.spec.tuning
    if tuning is None or selection is None:
        return tuning is None and selection is None
    runs, scores, grid = selection.runs, selection.scores, tuning.grid
    if (selection.entries, selection.order, len(runs), len(scores)) != (
        len(grid),
        tuning.order,
        tuning.count,
        tuning.count,
    ):
        return False
    declared = tuple(range(1, len(grid) + 1))
    if len(set(runs)) != len(runs) or not set(runs) <= set(declared) or selection.chosen not in runs:
        return False
    if tuning.order == "declared" and runs != declared:
        return False
    known = [score for score in scores if score is not None]
    best = (min if plan.kind in LOWER_IS_BETTER else max)(known) if known else None
    return scores[runs.index(selection.chosen)] == best and selection.changes == grid[selection.chosen - 1]


def _audits_what_was_planned(plan: StudyPlan, subject: ReleaseSubject) -> bool:
    """Whether the cost of checks and audit is the plan's, and the audit is of the planned patients at most."""
    planned, told, report = plan.membership, subject.epsilon, subject.membership
    checks = (None, None) if plan.checks is None else (plan.checks.epsilon, plan.checks.epsilon_worst_site)
    if (told.epsilon_checks, told.epsilon_checks_worst_site) != checks:
        return False
    if planned is None:
        return report is None and told.epsilon_membership is None and told.epsilon_membership_worst_site is None
    if (told.epsilon_membership, told.epsilon_membership_worst_site) != (planned.epsilon, planned.epsilon_worst_site):
        return False
    if report is None:
        return False
    members, non_members = plan.scored(plan.names)
    fits = report.bins == plan.spec.audit.membership.bins and report.members <= members
    return not report.ran or (fits and report.non_members <= non_members)


def check_approvals(trusted: KeysTrusted, root: TrustRoot) -> Approved:
    """Each approval verifies under a key or a passkey that the consented plan fixed for that person."""
    roster = {approver.person: approver for approver in trusted.plan.approvers}
    digest = trusted.subject.digest
    waived = _check_waivers(trusted, roster, root)
    methods: set[str] = set()
    reviewers: set[Reviewer] = set()
    nonces: set[str] = set()
    for document in trusted.predicate.approvals:
        signed = read_signed(canonical(document))
        claimed = _read(Approval, _json(document_of(signed), "approval"), "approval")
        approver = roster.get(claimed.person)
        if approver is None or approver.role is not claimed.role:
            raise VerificationFailed("An approval is by somebody the plan does not name in that role.", _REMEDY)
        methods.add(verify_signed(signed, APPROVAL_TYPE, approver, root.address))
        if claimed.subject_digest != digest or claimed.release != trusted.subject.release:
            raise VerificationFailed("An approval was given to another release digest.", _REMEDY)
        if claimed.decision != "approve" or claimed.meaning != "reviewed-and-approved":
            raise VerificationFailed("A decision on this release was not an approval.", _REMEDY)
        if claimed.person == trusted.subject.submitter or claimed.role not in APPROVING_ROLES:
            raise VerificationFailed("An approval is by the submitter or in a role that does not approve.", _REMEDY)
        if claimed.signed_at > trusted.predicate.sealed_at:
            raise VerificationFailed("An approval is dated after the sealing.", _REMEDY)
        if claimed.packs != trusted.subject.packs:
            raise VerificationFailed("An approval was given under other policy packs than the release names.", _REMEDY)
        reviewers.add(Reviewer(claimed.person, claimed.role, approver.organisation))
        nonces.add(claimed.challenge)
    if len(nonces) != len(trusted.predicate.approvals):
        raise VerificationFailed("One decision stands for several approvals.", _REMEDY)
    if (lacking := shortfall(trusted.plan.spec.review, reviewers)) is not None:
        raise VerificationFailed(f"The release lacks approvals that its study asks for: {lacking}.", _REMEDY)
    roles = tuple(sorted({reviewer.role for reviewer in reviewers}))
    return Approved(trusted, roles, waived, tuple(sorted(methods)))


def _check_waivers(trusted: KeysTrusted, roster: Mapping[str, PlannedApprover], root: TrustRoot) -> tuple[str, ...]:
    """The rules that were waived: each by somebody on the roster, for this digest, in force at the sealing."""
    waived = []
    for document in trusted.predicate.waivers:
        signed = read_signed(canonical(document))
        claimed = _read(ReleaseWaiver, _json(document_of(signed), "waiver"), "waiver")
        approver = roster.get(claimed.person)
        if approver is None or approver.role is not claimed.role or claimed.person == trusted.subject.submitter:
            raise VerificationFailed("A waiver is by somebody the plan does not name in that role.", _REMEDY)
        verify_signed(signed, WAIVER_TYPE, approver, root.address)
        if (claimed.release, claimed.subject_digest) != (trusted.subject.release, trusted.subject.digest):
            raise VerificationFailed("A waiver was given for another release digest.", _REMEDY)
        if not claimed.signed_at <= trusted.predicate.sealed_at < claimed.expires_at:
            raise VerificationFailed("A waiver had ended, or was not given yet, when the release was sealed.", _REMEDY)
        waived.append(f"{claimed.pack} {claimed.rule}")
    return tuple(waived)


def check_log(approved: Approved, root: TrustRoot) -> Logged:
    """The event that seals this statement is included under a checkpoint that a quorum cosigned."""
    files = approved.trusted.fetched.files
    event = _read(AuditEvent, _json(files["event.json"], "event.json"), "log entry")
    expected = {
        "subject": approved.trusted.subject.digest,
        "statement": sha256_hex(files["statement.dsse.json"]),
    }
    release = f"release:{approved.trusted.subject.release}"
    if event.event is not EventType.RELEASE_SEALED or event.subject != release or dict(event.digests) != expected:
        raise VerificationFailed("The log entry is not the sealing of this statement.", _REMEDY)
    proof = TlogProof.from_bytes(files["release.tlog-proof"])
    plan = approved.trusted.plan
    # A participant consented to the plan's witness policy: sites that join later don't void its release's proof.
    policy = WitnessPolicy.from_document(plan.witness_policy) if root.site in plan.names else root.policy
    if policy.log != root.policy.log:
        raise VerificationFailed("The plan's witness policy names another log than this site pinned.", _REMEDY)
    checkpoint = proof.verify(leaf_hash(event.leaf()), policy)
    return Logged(approved, proof.index, checkpoint.size, tuple(sorted(checkpoint.cosigners)))


def check_files(logged: Logged, root: TrustRoot) -> Installable:
    """The files are byte for byte the approved ones, of the model that this site evaluated; it may receive them."""
    subject = logged.approved.trusted.subject
    if root.site not in subject.recipients:
        raise VerificationFailed(f"Site {root.site} is not a recipient of this release.", _REMEDY)
    files = logged.approved.trusted.fetched.files
    model_files: dict[str, bytes] = {}
    for entry in subject.files:
        data = files.get(entry.name)
        if data is None or len(data) != entry.size or sha256_hex(data) != entry.sha256:
            raise VerificationFailed(f"{entry.name} is not the file that was approved.", _REMEDY)
        model_files[entry.name] = data
    evaluated = root.evaluated.get(subject.plan_digest, {})
    asked = [evaluated[number] for number in _evaluations_of(logged.approved.trusted) if number in evaluated]
    if any(models != {model_digest(subject, files["model.safetensors"])} for models in asked):
        raise VerificationFailed(
            "The released model is not the one that this site evaluated: what was approved was measured on another.",
            _REMEDY,
        )
    return Installable(logged, subject, model_files)


def _evaluations_of(trusted: KeysTrusted) -> tuple[int, ...]:
    """The rounds of evaluation that ask about the released model: the last one, and of a tuned study also the score of
    the run that was chosen. The other runs' scores are of other models."""
    tuning, selection = trusted.plan.spec.tuning, trusted.subject.epsilon.selection
    if tuning is None or selection is None:
        return (1,)
    return (selection.runs.index(selection.chosen) + 1, tuning.count + 1)


def _statement(statement: Mapping[str, Any], files: Mapping[str, bytes]) -> Any:
    """The predicate of an in-toto v1 Statement whose subjects are exactly the subject document and model files."""
    if set(statement) != {"_type", "subject", "predicateType", "predicate"}:
        raise VerificationFailed("The statement is not an in-toto Statement.", _REMEDY)
    if statement["_type"] != STATEMENT_KIND or statement["predicateType"] != PREDICATE_KIND:
        raise VerificationFailed("The statement is of another kind.", _REMEDY)
    named = (*BUNDLE_FILES[:3], "subject.json")
    expected = [{"digest": {"sha256": sha256_hex(files[name])[7:]}, "name": name} for name in named]
    if statement["subject"] != expected:
        raise VerificationFailed("The statement is about other files than the bundle holds.", _REMEDY)
    return statement["predicate"]


def _json(data: bytes, what: str) -> Any:
    document = parse(data)
    if canonical(document) != data:
        raise VerificationFailed(f"{what} is not in its canonical form.", _REMEDY)
    return document


def _read(kind: type[_Document], document: Any, what: str) -> _Document:
    # Strict JSON mode: no coercion may let two documents with different bytes mean the same.
    try:
        read = kind.model_validate_json(canonical(document))
    except ValidationError as error:
        raise VerificationFailed(f"The {what} has fields that are missing, unknown or wrong.", _REMEDY) from error
    if canonical(read.model_dump(mode="json")) != canonical(document):
        raise VerificationFailed(f"The {what} is not in its one agreed form.", _REMEDY)
    return read
