"""A draft of the register of processing activities (Art. 30 GDPR), in the view of the controllers and of the processor.

One section for each hospital in each study: every hospital is a controller of its own patients' data, and the
coordinator's operator processes it on that hospital's behalf.
"""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.client.drafts.draft import DESIGN, Draft, Entry, Section, blank, known, known_or_blank, listed, pending
from coordinator.client.drafts.facts import Known, StudyKnown, on_record
from protocol.errors import Malformed
from protocol.study import StudySpec

VIEWS = ("controller", "processor")
SPEC, PLAN, RECORDS, ORGANISATION = "the study's spec", "the signed plan", "evidence on record", "governance.toml"
SECURITY = (
    "Records are read at the hospital alone; what leaves is masked under secure aggregation and noised; TLS 1.3 with "
    "client certificates; release by two people; a log that hospitals cosign"
)


def draft_register(view: str, facts: Known, *, made_at: str) -> Draft:
    """The draft over all studies that the facts hold; view: controller or processor, Malformed for another."""
    if view not in VIEWS:
        raise Malformed(f"{view[:40]!r} is no view of the register.", "Give --view controller or --view processor.")
    sections = [
        Section(
            f"{study.spec.study} at {site}",
            "Art. 30(1) GDPR" if view == "controller" else "Art. 30(2) GDPR",
            tuple((_controller if view == "controller" else _processor)(study, site, facts)),
        )
        for study in sorted(facts.studies, key=lambda item: item.spec.study)
        for site in study.spec.invited
    ]
    notices = [] if sections else ["No study is on record: there is nothing to register yet."]
    return Draft(
        kind="ropa", title=f"Register of processing activities, {view}'s view", subject="register", view=view,
        made_at=made_at, sections=tuple(sections), notices=tuple(notices),
    )  # fmt: skip


def _controller(study: StudyKnown, site: str, facts: Known) -> Iterator[Entry]:
    spec = study.spec
    yield known("Controller, as invited", site, SPEC)
    yield blank("(a) Contact", f"Legal name and address of {site}, its representative and its data protection officer.")
    others = [name for name in spec.governance.controllers if name != site]
    yield known_or_blank("(a) Joint controllers", listed(others), SPEC, "Is anybody else a joint controller?")
    yield known("(b) Purposes", f"{spec.purpose.code}: {spec.purpose.description}", SPEC)
    basis = spec.legal_basis[site]
    grounds = [
        basis.gdpr_article6 and f"Art. 6(1)({basis.gdpr_article6})",
        basis.gdpr_article9 and f"Art. 9(2)({basis.gdpr_article9})",
        basis.member_state_law,
    ]
    yield known_or_blank("Legal ground", listed(ground for ground in grounds if ground), SPEC,
                         f"None is recorded: {site} is under jurisdiction {basis.jurisdiction}.")  # fmt: skip
    yield from _people(study, site)
    yield known_or_blank("(c) Categories of personal data", _columns(study), SPEC, "Which data is read?")
    yield blank("(c) Special categories", "Which of Art. 9(1): health, genetic, biometric?")
    yield from _recipients(study, facts)
    yield from _transfers(study, site, facts)
    yield from _limits(study)
    yield known("(g) Security: technical", SECURITY, DESIGN)
    records = facts.about(site, "risk_analysis", "security_test", "restore_test", "training")
    yield known_or_blank("(g) Security: the hospital's own", on_record(records), RECORDS,
                         "Describe the hospital's technical and organisational measures.")  # fmt: skip


def _processor(study: StudyKnown, site: str, facts: Known) -> Iterator[Entry]:
    organisation = facts.organisation
    yield known_or_blank("(a) Processor and its contact", organisation and organisation.contact, ORGANISATION,
                         "Who runs the coordinator? `cloister-coordinator governance set`.")  # fmt: skip
    yield blank("(a) Processor's data protection officer", "Name and contact, or why there is none.")
    yield known("(a) On behalf of", site, SPEC)
    yield blank("(a) The controller's contact", f"Legal name and address of {site}, its data protection officer.")
    agreements = facts.about(site, "dpa", "baa")
    yield known_or_blank("Agreement (Art. 28(3))", on_record(agreements), RECORDS, "Which agreement, of which date?")
    yield known("(b) Categories of processing", _processing(study), DESIGN)
    if organisation is None:
        yield blank("Further processors (Art. 28(2))", "Whom does the coordinator's operator engage?")
    else:
        engaged = [
            f"{one.name} ({'notified' if one.notified else 'not notified'})" for one in organisation.subprocessors
        ]
        yield known("Further processors (Art. 28(2))", listed(engaged) or "none was named", ORGANISATION)
    yield from _transfers(study, site, facts)
    yield known("(d) Security: technical", SECURITY, DESIGN)
    yield known_or_blank("(d) Security: the operator's own", organisation and organisation.security, ORGANISATION,
                         "Where are the measures described?")  # fmt: skip


def _people(study: StudyKnown, site: str) -> Iterator[Entry]:
    plan = study.plan
    yield blank("(c) Categories of people", "Whose records are they: which patients, of which ages and years?")
    if plan is None:
        yield pending("Patients", "once the study is proposed")
    elif site in plan.names:
        yield known("Patients", plan.site(site).patients, PLAN)


def _columns(study: StudyKnown) -> str:
    dataset = study.spec.dataset
    media = [name for name, there in (("images", dataset.image), ("sequences", dataset.sequence)) if there is not None]
    return listed([*(feature.name for feature in dataset.features), *media, f"outcome {dataset.label.name}"])


def _recipients(study: StudyKnown, facts: Known) -> Iterator[Entry]:
    spec = study.spec
    coordinator = "the coordinator reads noised sums"
    if isinstance(spec, StudySpec):
        yield known("(d) Recipients", f"{coordinator}; the released model goes to {listed(spec.recipients)}", SPEC)
    else:
        yield known("(d) Recipients", f"{coordinator}; people with an account read the results", DESIGN)
    if facts.organisation is not None and facts.organisation.subprocessors:
        engaged = listed(one.name for one in facts.organisation.subprocessors)
        yield known("(d) The coordinator's further processors", engaged, ORGANISATION)


def _transfers(study: StudyKnown, site: str, facts: Known) -> Iterator[Entry]:
    spec, letter = study.spec, "Transfers"
    yield known("Jurisdictions of the hospitals",
                listed(f"{name}: {spec.legal_basis[name].jurisdiction}" for name in spec.invited), SPEC)  # fmt: skip
    country = facts.organisation and facts.organisation.country
    yield known_or_blank("The coordinator runs in", country, ORGANISATION, "Which country?")
    safeguards = facts.about(site, "scc", "tia")
    yield known_or_blank(f"{letter}: safeguards on record (Art. 46)", on_record(safeguards), RECORDS,
                         "Does anything leave the EEA: the model to a recipient, sums to the coordinator? Under which "
                         "safeguard?")  # fmt: skip


def _limits(study: StudyKnown) -> Iterator[Entry]:
    for name, item in (
        ("updates_until", "(f) Contributions erased after"),
        ("checkpoints_until", "(f) Models between rounds erased after"),
        ("model_until", "(f) Released model erased after"),
    ):
        yield known_or_blank(item, getattr(study.spec.governance, name), SPEC, "Which time limit?")


def _processing(study: StudyKnown) -> str:
    if isinstance(study.spec, StudySpec):
        return "adding up masked, noised contributions; training, evaluating and releasing one model; keeping the log"
    return "adding up masked, noised statistics; keeping results and the log"
