"""Gathers what a decision about a plan needs: the plan as signed, the site's own data, ledger, packs and log."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime

from sqlmodel import Session, col, select

from policies.decided import Decided, decide
from policies.findings import APPROVAL, Decision, Finding, Outcome
from protocol.note import VerifierKey
from protocol.plan import Plan
from protocol.policy_set import policy_digest
from protocol.study_kind import AnyPlan
from site_agent.cohort.declaration import declared
from site_agent.cohort.identifier_scan import scan
from site_agent.cohort.snapshot import current, latest, load, registration
from site_agent.consent.facts import Epsilons, LocalData, consent_facts
from site_agent.consent.governance import Governance, local_policy
from site_agent.consent.judgement import Difference, Identity, Objection, charges, differences, objections, own_epsilons
from site_agent.consent.plans import SignedPlan, open_plan
from site_agent.consent.states import Answer
from site_agent.consent.tables import StudyGrant
from site_agent.evidence.facts import papers_facts
from site_agent.keystore import SiteKeys
from site_agent.policy.federation import logged_policy, own_documents, why_unknown
from site_agent.settings import SiteSettings
from site_agent.training.budget_store import spent
from site_agent.training.states import Budget, Charge
from site_agent.witness.mirror import Mirror
from site_agent.witness.repository import held, standing_alarms


@dataclass(frozen=True)
class Cost:
    """One group's line: what the study asks, and the ledger before and after it."""

    charge: Charge
    before: Budget
    after: Budget
    limit: Budget


@dataclass(frozen=True)
class Review:
    """All that a person needs to answer a plan, and the site's own decision on it."""

    signed: SignedPlan
    answer: Answer | None
    decision: Decision
    objections: tuple[Objection, ...]
    epsilons: Epsilons
    costs: tuple[Cost, ...]
    compared_with: str | None
    differences: tuple[Difference, ...]
    packs_differ: tuple[str, ...]
    decided: Decided | None = None
    """The decision with its facts, for this hospital's own record."""

    @property
    def held(self) -> tuple[Finding, ...]:
        """Findings that evidence from this site would lift."""
        return tuple(finding for finding in self.decision.findings if finding.effect == "evidence")

    def grantable(self, evidence: Mapping[str, str]) -> bool:
        """Whether the site's own rules allow a grant with this evidence, by rule id."""
        if self.objections or self.decision.outcome is Outcome.DENY:
            return False
        waiting = [f for f in self.decision.findings if f.effect == "evidence" or f.effect.startswith(APPROVAL)]
        return all(finding.effect == "evidence" and evidence.get(finding.rule) for finding in waiting)


def local_data(session: Session, settings: SiteSettings, plan: Plan, *, on: date) -> LocalData | None:
    """The site's newest snapshot under the plan's schema, scanned for identifiers as it is stored, or None. on: the day
    by which ages are told. Raises SnapshotUnusable for a damaged file."""
    row = latest(session, plan.spec.dataset.digest)
    if row is None:
        return None
    import numpy as np

    told, planned = registration(row), next((site.snapshot for site in plan.sites if site.name == settings.site), "")
    in_its_place = current(session, planned)
    said = declared(session, row.digest)
    arrays = load(settings.home, row.digest)
    found = scan(plan.spec.dataset, arrays, on=on, faces=None if said is None else said[0].faces)
    return LocalData(
        # A plan may name the snapshot as it was before patients withdrew: the one in its place is trained on.
        snapshot=planned if in_its_place is not None and in_its_place.digest == row.digest else row.digest,
        patients=row.patients,
        held_out=row.held_out,
        registered_patients=int(told["patients"]),
        registered_held_out=int(told["held_out"]),
        records_per_patient=int(np.bincount(arrays.patient).max()),
        told={**found.facts(), **({} if said is None else said[1])},
    )


def review(
    session: Session,
    settings: SiteSettings,
    keys: SiteKeys,
    governance: Governance,
    signed: SignedPlan,
    *,
    now: datetime,
) -> Review:
    """Judge a plan with the site's own packs, parameters, ledger, counts and accountant. Nothing is written."""
    plan = signed.plan
    policy = local_policy(settings.home, governance)
    data = local_data(session, settings, plan, on=now.date())
    epsilons = own_epsilons(plan)
    asked = charges(plan, epsilons)
    log_sound = not standing_alarms(session)
    before = [_spent(session, data, charge, signed.digest) for charge in asked]
    facts = consent_facts(
        plan,
        signed.digest,
        site=settings.site,
        governance=governance,
        data=data,
        epsilons=epsilons,
        spent=before[0],
        charges=[charge for charge in asked if not charge.held_out],
        log_sound=log_sound,
        papers=papers_facts(session, settings.site, on=now.date()),
    )
    decided = decide("consent", facts, policy, now=now, salt=os.urandom(32))
    granted_before = last_granted(session, plan.spec.study, settings.coordinator)
    standing = session.get(StudyGrant, signed.digest)
    limit = Budget(governance.epsilon_limit, governance.delta_limit)
    own_packs = policy.documents
    return Review(
        signed=signed,
        answer=None if standing is None else Answer(standing.state),
        decision=decided.decision,
        decided=decided,
        objections=(
            *objections(
                plan,
                identity=_identity(settings, keys, governance),
                data=data,
                epsilons=epsilons,
                log_sound=log_sound,
            ),
            *_about_policy(session, settings, signed),
        ),
        epsilons=epsilons,
        costs=_costs(asked, before, limit),
        compared_with=None if granted_before is None else granted_before.spec.study,
        differences=differences(granted_before, plan),
        packs_differ=tuple(sorted({name for name, _ in set(own_packs.items()) ^ set(plan.packs.items())})),
    )


def _about_policy(session: Session, settings: SiteSettings, signed: SignedPlan) -> Iterator[Objection]:
    """The packs that the coordinator's gates go by: this site's own or a set that it adopted, and those that its own
    copy of the log says are in force."""
    packs = dict(signed.plan.packs)
    if (strange := why_unknown(settings.home, packs)) is not None:
        yield Objection(
            "policy-unknown",
            f"The plan is judged by packs that are not this site's, and that it did not adopt: {strange}.",
            "Read cloister-site policy show; laxer packs than this site's own are never adopted.",
        )
    head = held(session, VerifierKey.parse(settings.log).name)
    entries = Mirror(settings.home.mirror).entries(0 if head is None else head.head.size)
    told = logged_policy(entries, signed.digest)
    if told != policy_digest(packs) and not (told is None and packs == own_documents()):
        yield Objection(
            "policy-not-logged",
            "This site's own copy of the log tells of other packs in force than those that the plan names.",
            "Run cloister-site log check and review again; if it stays so, report it: this site may be shown another "
            "set than the others.",
        )


def _costs(asked: tuple[Charge, ...], before: list[Budget], limit: Budget) -> tuple[Cost, ...]:
    """One line for each charge; what a group is charged by several phases adds up from line to line."""
    costs: list[Cost] = []
    for charge, had in zip(asked, before, strict=True):
        earlier = [cost for cost in costs if cost.charge.held_out == charge.held_out]
        start = earlier[-1].after if earlier else had
        costs.append(Cost(charge, start, Budget(start.epsilon + charge.epsilon, start.delta + charge.delta), limit))
    return tuple(costs)


def last_granted(session: Session, study: str, coordinator: str) -> AnyPlan | None:
    """The plan that this site granted last: of this study if there is one, else of any."""
    order = (col(StudyGrant.study) == study).desc(), col(StudyGrant.decided_at).desc()
    given = select(StudyGrant).where(col(StudyGrant.state).in_([a.value for a in Answer if a is not Answer.REFUSED]))
    row = session.exec(given.order_by(*order)).first()
    return None if row is None else open_plan(row.plan, coordinator).plan


def _spent(session: Session, data: LocalData | None, charge: Charge, plan_digest: str) -> Budget:
    """Without what is set aside for this very plan already."""
    if data is None:
        return Budget(0.0, 0.0)
    return spent(session, data.snapshot, held_out=charge.held_out, but=plan_digest)


def _identity(settings: SiteSettings, keys: SiteKeys, governance: Governance) -> Identity:
    return Identity(
        site=settings.site,
        key=keys.identity.public.text,
        coordinator=settings.coordinator,
        log=settings.log,
        witness=keys.witness.public.raw,
        jurisdiction=governance.jurisdiction,
    )
