"""A draft of a data protection impact assessment (Art. 35 GDPR) on one study.

The four parts of Art. 35(7), then what else Art. 35 and 36 ask. What the spec and the plan say is copied; how
likely and how grave a risk is, whether the processing is proportionate, and what remains, a person judges.
"""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.client.drafts.draft import DESIGN, Draft, Entry, Section, blank, known, known_or_blank, listed, pending
from coordinator.client.drafts.facts import Known, StudyKnown, on_record
from protocol.evaluation import Interval
from protocol.evidence import EvidenceRecord
from protocol.membership import MembershipReport, audit_figures
from protocol.proposal import MINIMUM_CELL
from protocol.study import StudyPlan, StudySpec

SPEC, PLAN, RECORDS, ORGANISATION = "the study's spec", "the signed plan", "evidence on record", "governance.toml"
PROPOSED = "once the study is proposed"
RISKS = (
    ("a patient's data is learned from a contribution", "illegitimate access to personal data"),
    ("a patient is recognised as a member of the training data, or a value is inferred, from the released model",
     "inference from what is released"),
    ("a record is changed, so that the model is wrong for patients", "unwanted modification"),
    ("patients' data or the ledger of what they were charged is lost", "disappearance"),
    ("the model is used for another purpose, or for people unlike those it was trained on", "use beyond the purpose"),
)  # fmt: skip


def draft_dpia(study: StudyKnown, known_facts: Known, *, made_at: str) -> Draft:
    """The draft, and in its notices whether the assessment on record is about this very spec."""
    return Draft(
        kind="dpia",
        title=f"Data protection impact assessment: {study.spec.title}",
        subject=study.spec.study,
        made_at=made_at,
        spec=study.spec_digest,
        notices=tuple(_notices(study, known_facts)),
        sections=(
            Section("Description of the processing", "Art. 35(7)(a) GDPR", tuple(_description(study, known_facts))),
            Section("Necessity and proportionality", "Art. 35(7)(b) GDPR", tuple(_necessity(study, known_facts))),
            Section("Risks to rights and freedoms", "Art. 35(7)(c) GDPR", tuple(_risks(study))),
            Section("Measures", "Art. 35(7)(d) GDPR", tuple(_measures(study, known_facts))),
            Section("Advice, views and review", "Art. 35(2), (9), (11), 36 GDPR", tuple(_advice(study, known_facts))),
        ),
    )


def stale_assessments(study: StudyKnown, facts: Known) -> tuple[EvidenceRecord, ...]:
    """Assessments on record that are about another spec than the study has now."""
    return tuple(
        record
        for record in facts.about(study.spec.study, "dpia")
        if record.assessment is not None and record.assessment.spec != study.spec_digest
    )


def _notices(study: StudyKnown, facts: Known) -> Iterator[str]:
    yield (
        f"It is about the spec {study.spec_digest}. Another spec makes it stale: "
        "`cloister evidence draft check FILE` says so."
    )
    for record in stale_assessments(study, facts):
        yield (
            f"STALE: the assessment on record, by {record.issuer} of {record.issued.isoformat()}, is about another "
            "spec; the gates do not count it."
        )
    if study.plan is None:
        yield "The study is not proposed yet: what its plan will say is marked, and is not for a person to fill in."


def _description(study: StudyKnown, facts: Known) -> Iterator[Entry]:
    spec, plan = study.spec, study.plan
    yield known("Purpose", f"{spec.purpose.code}: {spec.purpose.description}", SPEC)
    yield known("Kind of processing", _kind(study), SPEC)
    yield known_or_blank("Controllers", listed(spec.governance.controllers), SPEC, "Name every controller.")
    yield known_or_blank(
        "Processor that runs the coordinator", facts.organisation and facts.organisation.contact, ORGANISATION,
        "Who runs the coordinator, and how to reach them?",
    )  # fmt: skip
    yield known_or_blank(
        "Where the coordinator runs", facts.organisation and facts.organisation.country, ORGANISATION, "Which country?"
    )
    for site in spec.invited:
        if plan is None:
            yield pending(f"Patients at {site}", PROPOSED)
        elif site in plan.names:
            there = plan.site(site)
            held_out = f"{there.held_out} of them held out to evaluate" if there.held_out else "none held out"
            yield known(f"Patients at {site}", f"{there.patients}, {held_out}", PLAN)
    columns = [feature.name for feature in spec.dataset.features]
    yield known_or_blank("Data read", listed(columns) or _media(study), SPEC, "Which data is read?")
    yield known("Outcome", spec.dataset.label.name, SPEC)
    yield blank("Context", "How was the data collected, what do the patients expect, are there children or others who "
                           "need protection among them?")  # fmt: skip
    yield blank("Scale", "Is it large-scale processing of special categories (Art. 35(3)(b))?")
    for name, item in (
        ("updates_until", "Contributions kept until"),
        ("checkpoints_until", "Models between rounds kept until"),
        ("model_until", "Released model kept until"),
    ):
        yield known_or_blank(item, getattr(spec.governance, name), SPEC, "Until which date?")
    if isinstance(spec, StudySpec):
        yield known("Recipients of the model", listed(spec.recipients), SPEC)
    else:
        yield known("Recipients", "people with an account at the coordinator read the noised results", DESIGN)


def _necessity(study: StudyKnown, facts: Known) -> Iterator[Entry]:
    spec = study.spec
    for site in spec.invited:
        basis = spec.legal_basis[site]
        grounds = [
            basis.jurisdiction,
            basis.gdpr_article6 and f"Art. 6(1)({basis.gdpr_article6})",
            basis.gdpr_article9 and f"Art. 9(2)({basis.gdpr_article9})",
            basis.member_state_law,
            basis.hipaa_path and f"HIPAA path: {basis.hipaa_path}",
        ]
        yield known(f"Legal ground at {site}", listed(ground for ground in grounds if ground), SPEC)
    yield known_or_blank("Columns justified as necessary", listed(spec.justified_columns), SPEC,
                         "Why is each column needed?")  # fmt: skip
    yield blank("Necessity", "Why does the purpose need this data of these patients, and why does less not do?")
    yield blank("Proportionality", "What is gained, for whom, against what is asked of the patients?")
    yield known_or_blank("Information of patients", spec.governance.notice, SPEC,
                         "Where is the notice (Art. 13, 14), or which exemption applies?")  # fmt: skip
    yield blank("Rights", "How do patients have access, rectification, erasure and objection at each hospital?")
    yield known(
        "Withdrawal and objection",
        "A hospital excludes a patient from its next snapshot and so from every later round; what a model has learned "
        "is not taken back by that, and is reviewed.",
        DESIGN,
    )
    agreements = [record for site in spec.invited for record in facts.about(site, "dpa", "scc", "tia", "dua")]
    yield known_or_blank("Agreements on record (Art. 28, 46)", on_record(agreements), RECORDS,
                         "Which agreements bind the processor; which safeguards cover transfers?")  # fmt: skip
    several = len(spec.governance.controllers) > 1
    if several or spec.governance.joint_arrangement:
        yield known_or_blank("Joint controllers' arrangement (Art. 26)", spec.governance.joint_arrangement, SPEC,
                             "Where is the arrangement, and where its essence published?")  # fmt: skip


def _risks(study: StudyKnown) -> Iterator[Entry]:
    spec, plan = study.spec, study.plan
    yield known("Promised bound on what the released result says of one patient",
                f"epsilon {spec.privacy.epsilon:g} at delta {spec.privacy.delta:g}, zero-out adjacency, unit: patient",
                SPEC)  # fmt: skip
    if plan is None:
        yield pending("Bound if all other sites collude with the coordinator", PROPOSED)
    else:
        yield known("Bound that the plan's noise gives", f"epsilon {plan.epsilon:.4g}", PLAN)
        yield known("Bound if all other sites collude with the coordinator",
                    f"epsilon {plan.epsilon_worst_site:.4g} for a site's training patients", PLAN)  # fmt: skip
    if isinstance(plan, StudyPlan):
        yield known("Bound for held-out patients in that case",
                    "none: the evaluation is exact, a declared exception" if plan.epsilon_evaluation_worst_site is None
                    else f"epsilon {plan.epsilon_evaluation_worst_site:.4g}", PLAN)  # fmt: skip
    if isinstance(spec, StudySpec):
        yield _attack(study)
    for number, (risk, source) in enumerate(RISKS, start=1):
        yield blank(f"Risk {number}: {risk}", f"({source}) Sources, likelihood and severity for patients?")
    yield blank("Further risks", "Which others does this processing bear at each hospital?")


def _measures(study: StudyKnown, facts: Known) -> Iterator[Entry]:
    spec, plan = study.spec, study.plan
    yield known("Patients' records stay at the hospital",
                "Records are read by a process without network at the hospital; a masked, bounded vector leaves it.",
                DESIGN)  # fmt: skip
    tolerated = spec.privacy.colluders + spec.privacy.dropouts
    yield known("Secure aggregation",
                f"The coordinator reads sums of at least {spec.minimum_sites} sites; {tolerated} may collude or drop "
                "out", SPEC)  # fmt: skip
    yield (
        pending("Noise", PROPOSED) if plan is None
        else known("Noise", f"Gaussian, multiplier {plan.noise_multiplier:.4g} over the clip, for {spec.steps} steps, "
                   f"mode {spec.privacy.mode}", PLAN)
    )  # fmt: skip
    yield known("Ledger", "Each hospital charges its patients before anything leaves, and refuses when their budget "
                "over all studies is spent", DESIGN)  # fmt: skip
    yield known("Small counts", f"No exact count of {MINIMUM_CELL} patients or fewer leaves a hospital", DESIGN)
    yield known("Release", "Two people in two roles, neither the submitter, sign the digest; each hospital verifies "
                "it before use", DESIGN)  # fmt: skip
    yield (
        blank("Log", "No hospital is enrolled: who vouches for the log?") if facts.witnesses is None
        else known("Log", f"{facts.witnesses.quorum} of {len(facts.witnesses.witnesses)} witnesses must cosign it",
                   "the log's witness policy")
    )  # fmt: skip
    organisation = facts.organisation
    yield known_or_blank("Measures of the processor (Art. 32)", organisation and organisation.security, ORGANISATION,
                         "Where are they described?")  # fmt: skip
    yield known_or_blank("Backup last restored in a test", organisation and organisation.backup_tested.isoformat(),
                         ORGANISATION, "When?")  # fmt: skip
    for site in spec.invited:
        records = facts.about(site, "risk_analysis", "restore_test", "security_test", "training", "access_review")
        yield known_or_blank(f"Measures of {site} on record", on_record(records), RECORDS,
                             "Which measures has the hospital itself?")  # fmt: skip
    yield blank("What remains", "Which risk is left after these measures: low, medium or high, and why?")


def _advice(study: StudyKnown, facts: Known) -> Iterator[Entry]:
    assessed = next(
        (record for record in facts.about(study.spec.study, "dpia") if record.assessment is not None
         and record.assessment.spec == study.spec_digest), None,
    )  # fmt: skip
    yield (
        blank("Advice of the data protection officer (Art. 35(2))", "Who advised, what, and when?") if assessed is None
        or assessed.assessment is None
        else known("Assessment on record", f"by {assessed.issuer} of {assessed.issued.isoformat()}; officer "
                   f"{assessed.assessment.officer}; residual risk {assessed.assessment.residual_risk}", RECORDS)
    )  # fmt: skip
    yield blank("Views of patients or their representatives (Art. 35(9))", "Whose were sought, or why not?")
    consulted = facts.about(study.spec.study, "prior_consultation")
    yield known_or_blank("Prior consultation (Art. 36)", on_record(consulted), RECORDS,
                         "Needed where a high risk remains: was the authority consulted?")  # fmt: skip
    yield blank("Review (Art. 35(11))", "When, and on which change besides the spec's, is this looked at again?")
    yield blank("Completed by", "Name, role, date, signature.")


def _kind(study: StudyKnown) -> str:
    spec = study.spec
    if isinstance(spec, StudySpec):
        return f"training of one model ({spec.model.architecture}), its evaluation and release"
    return "an exploration: noised statistics of patients, no model"


def _media(study: StudyKnown) -> str:
    dataset = study.spec.dataset
    kinds = [name for name, there in (("images", dataset.image), ("sequences", dataset.sequence)) if there is not None]
    return listed(kinds)


def _figure(name: str, found: Interval) -> str:
    if found.value is None or found.low is None or found.high is None:
        return f"{name}: {found.reason or 'no value'}"
    return f"{name} {found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _attack(study: StudyKnown) -> Entry:
    """What the membership audit before the release found, if there was to be one."""
    item = "Membership attack on the model"
    audited = study.candidate.get("membership") if study.candidate is not None else None
    if audited is not None:
        report = MembershipReport.model_validate(audited)
        figures = [_figure(name, interval) for name, interval in audit_figures(report)]
        return known(item, listed(figures) or f"it did not run: {report.reason}", "the audit before the release")
    if study.plan is None or (isinstance(study.plan, StudyPlan) and study.plan.membership is not None):
        return pending(item, "once the trained model is audited, if the plan has an audit")
    return blank(item, "The plan asks for none: why is that acceptable?")
