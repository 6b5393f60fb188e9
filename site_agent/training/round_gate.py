"""The round gate at the site: asked for each attempt before anything is charged, with the site's own packs and facts.

The coordinator asks its own round gate before it sends; this one takes nothing on its word. What only the coordinator
can know (its backups, how its log is cosigned, the assessment on record with it) is for its gate to judge, and these
facts are named below: a rule that needs any other fact which nobody gathered here denies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from sqlmodel import Session, col, func, select

from protocol.canonical import digest
from protocol.consent import CONSENT_TYPE, Consent
from protocol.envelope import Envelope, open_json
from protocol.errors import BadSignature, CloisterError, Malformed
from protocol.round import RefusalCode, RoundRequest
from protocol.signing import VerifyingKey
from protocol.study_kind import AnyPlan
from protocol.timestamp import timestamp
from site_agent.cohort.withdrawal import facts as withdrawal_facts
from site_agent.consent.tables import StudyGrant
from site_agent.database import DatabaseUnusable
from site_agent.evidence.facts import papers_facts
from site_agent.incidents.facts import LogReader, incident_facts
from site_agent.settings import SiteSettings
from site_agent.training.budget_store import spent
from site_agent.training.states import AttemptRefused, Budget
from site_agent.training.tables import CohortCharge, ForgottenCharge, RoundDecision
from site_agent.witness.repository import standing_alarms

if TYPE_CHECKING:  # the rule engine is loaded with the first round, not by an idle agent
    from policies.packs import Pack, Policy
    from site_agent.consent.facts import LocalData
    from site_agent.consent.governance import Governance

COORDINATORS = ("coordinator.", "study.dpia.", "study.records", "audit.cosign_quorum", "audit.last_")
"""Beginnings of the facts that the coordinator alone knows: rules over them, of packs that ship with Cloister, are its
to judge."""


class RoundRefused(AttemptRefused):
    """The gate stays shut. record: why, for this site's own book."""

    def __init__(self, code: RefusalCode, record: RoundDecision) -> None:
        super().__init__(code)
        self.record = record


@dataclass(frozen=True)
class _Rules:
    """The site's rules as compiled from bytes of this digest."""

    source: str
    governance: Governance
    policy: Policy
    packs: tuple[Pack, ...]


@dataclass(frozen=True)
class Taken:
    """What the gate goes by in one attempt."""

    request: RoundRequest
    plan: AnyPlan
    consent: Consent
    data: LocalData | None
    spent: Budget
    papers: Mapping[str, Any]
    incidents: Mapping[str, Any]
    withdrawals: Mapping[str, Any]
    log_sound: bool


class RoundGate:
    """One site's gate. Packs are compiled once, and again when a byte of them or of governance.toml changes."""

    def __init__(
        self, settings: SiteSettings, key: VerifyingKey, *, entropy: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._settings = settings
        self._key = key
        self._entropy = entropy
        self._log = LogReader(settings)
        self._rules: _Rules | None = None
        self._consents: dict[bytes, Consent] = {}
        self._spent: dict[tuple[object, ...], Budget] = {}
        self._told: dict[str, str] = {}

    def ask(
        self, session: Session, grant: StudyGrant, request: RoundRequest, plan: AnyPlan, *, now: datetime
    ) -> RoundDecision:
        """The record of a decision that lets this attempt go on; whoever charges for it stores it with the charge.

        Raises RoundRefused: POLICY_DENIED for a rule that is broken, a fact that nobody gathered, rules that can't be
        read, and where the hospital is under another law or fewer packs than when it granted; POLICY_HELD where
        evidence or an approval is owed; PLAN_NOT_GRANTED where this site's signed consent is to another plan.
        """
        try:
            rules = self._current()
        except DatabaseUnusable:
            raise
        except CloisterError as error:
            raise RoundRefused(RefusalCode.POLICY_DENIED, self._unreadable(request, error, now)) from None
        taken = Taken(
            request=request,
            plan=plan,
            consent=self._consent(grant),
            data=_data(session, grant.snapshot),
            spent=self._most_spent(session, grant.snapshot),
            papers=papers_facts(session, self._settings.site, on=now.date()),
            incidents=incident_facts(
                session, self._log.matters(session), study=request.study, sites=request.cohort, now=now
            ),
            withdrawals=withdrawal_facts(session),
            log_sound=not standing_alarms(session),
        )
        return self._decide(rules, taken, now)

    def _decide(self, rules: _Rules, taken: Taken, now: datetime) -> RoundDecision:
        from policies.evaluation import evaluate
        from policies.findings import Outcome

        salt = self._entropy(32)
        facts = round_facts(taken, self._settings.site, rules.governance)
        decision = evaluate("round", facts, rules.packs, rules.policy.parameters, now=now, salt=salt)
        lapsed = _lapsed(taken, self._settings.site, rules)
        outcome = Outcome.DENY if lapsed else decision.outcome
        document = {**decision.to_dict(), "lapsed": lapsed}
        told = _substance(document)
        record = RoundDecision(
            study=taken.request.study,
            plan_digest=taken.request.plan_digest,
            phase=taken.request.phase,
            round=taken.request.round,
            attempt=taken.request.attempt,
            outcome=outcome.value,
            rules=digest({"packs": decision.pack_digests, "parameters": decision.params_digest}),
            facts_digest=decision.facts_digest or "",
            at=timestamp(now),
        )
        if self._told.get(record.plan_digest) != told:
            record.document = json.dumps({**document, "facts": facts, "salt": salt.hex()}, sort_keys=True)
        if outcome is not Outcome.ALLOW:
            self._told.pop(record.plan_digest, None)
            code = RefusalCode.POLICY_HELD if outcome is Outcome.HOLD else RefusalCode.POLICY_DENIED
            raise RoundRefused(code, record)
        if not _instructed(taken):
            raise RoundRefused(RefusalCode.PLAN_NOT_GRANTED, record)
        self._told[record.plan_digest] = told
        return record

    def _current(self) -> _Rules:
        """Raises GovernanceUnset, BadPolicyDocument, BadParameter."""
        from site_agent.consent.governance import load_governance, local_policy, rules_digest

        home = self._settings.home
        source = rules_digest(home)
        if self._rules is None or self._rules.source != source:
            governance = load_governance(home)
            policy = local_policy(home, governance)
            self._rules = _Rules(source, governance, policy, own_packs(policy))
        return self._rules

    def _consent(self, grant: StudyGrant) -> Consent:
        """What this site's own key signed: the documented instruction. Raises AttemptRefused where it signed none."""
        known = self._consents.get(grant.consent)
        if known is None:
            keys = {self._key.key_id: self._key}
            try:
                document, _ = open_json(Envelope.from_bytes(grant.consent), CONSENT_TYPE, keys)
                known = Consent.model_validate(document)
            except (BadSignature, Malformed, ValidationError):
                raise AttemptRefused(RefusalCode.PLAN_NOT_GRANTED) from None
            self._consents = {grant.consent: known}
        return known

    def _most_spent(self, session: Session, snapshot: str) -> Budget:
        """Of either group, what its most-used patient was charged: summed anew when the charges changed."""
        charges = select(func.max(CohortCharge.id), func.count(), func.sum(CohortCharge.released))
        lost = session.exec(select(func.max(ForgottenCharge.id))).one()
        state = (snapshot, *session.exec(charges).one(), lost)
        known = self._spent.get(state)
        if known is None:
            groups = [spent(session, snapshot, held_out=held_out) for held_out in (False, True)]
            known = Budget(max(group.epsilon for group in groups), max(group.delta for group in groups))
            self._spent = {state: known}
        return known

    def _unreadable(self, request: RoundRequest, error: CloisterError, now: datetime) -> RoundDecision:
        return RoundDecision(
            study=request.study,
            plan_digest=request.plan_digest,
            phase=request.phase,
            round=request.round,
            attempt=request.attempt,
            outcome="deny",
            rules="",
            facts_digest="",
            document=json.dumps({"unreadable": error.code, "message": error.message, "remedy": error.remedy}),
            at=timestamp(now),
        )


def round_facts(taken: Taken, site: str, governance: Governance) -> dict[str, Any]:
    """The facts of the round gate at a site. What the plan asks was reserved when it was granted, so nothing more is
    requested of the ledger; epsilons are the plan's, which this site re-derived before it granted. Pure."""
    from policies.study_facts import document_facts
    from site_agent.consent.facts import dataset_facts, site_facts

    plan, request = taken.plan, taken.request
    return {
        **document_facts(plan, request.plan_digest, site=site),
        "dataset": {**dataset_facts(plan, governance, taken.data), **taken.withdrawals},
        "site": site_facts(site, governance, taken.data, taken.papers),
        "ledger": {
            "epsilon_spent": taken.spent.epsilon,
            "epsilon_limit": governance.epsilon_limit,
            "epsilon_requested": 0.0,
            "delta_spent": taken.spent.delta,
            "delta_limit": governance.delta_limit,
            "delta_requested": 0.0,
        },
        "round": {
            "number": request.round,
            "participants": len(request.cohort),
            "consented_digest": taken.consent.plan_digest,
            "plan_digest": request.plan_digest,
        },
        "incident": dict(taken.incidents),
        "audit": {"append_ok": taken.log_sound},
    }


def decisions(session: Session, study: str, limit: int = 50) -> list[RoundDecision]:
    """What the gate decided about a study's attempts, newest first."""
    of_study = select(RoundDecision).where(RoundDecision.study == study)
    return list(session.exec(of_study.order_by(col(RoundDecision.id).desc()).limit(limit)))


def why_lapsed(lapsed: Collection[str], study: str) -> tuple[str, str]:
    """(message, remedy) for a person: why a grant no longer holds, and what to do. lapsed: as a decision's document
    names it."""
    from site_agent.policy.federation import PREFIX

    packs = [name.removeprefix("pack ") for name in lapsed if name.startswith("pack ")]
    theirs = [name for name in packs if name.startswith(PREFIX)]
    ours = [name for name in packs if name not in theirs]
    told, todo = [], []
    if theirs:
        told.append(
            f"The federation put another set of packs in force, and the grant was given under {', '.join(theirs)}, by "
            "which this hospital therefore no longer decides."
        )
        todo.append(
            f"Ask for {study} to be proposed again under the set that is in force (cloister-site policy show tells "
            "what changed), and review and grant that plan: cloister-site studies review."
        )
    if ours:
        told.append(f"The grant was given under {', '.join(ours)}, and somebody here took that away since.")
        todo.append(f"Put it back, or withdraw: cloister-site studies withdraw {study}.")
    if "jurisdiction" in lapsed:
        told.append("The grant was given under another law than this hospital now says that it is under.")
        todo.append(f"Correct that with cloister-site governance set, or run cloister-site studies withdraw {study}.")
    return " ".join(told), " ".join(todo)


def _lapsed(taken: Taken, site: str, rules: _Rules) -> list[str]:
    """What the grant was given under and is here no longer: packs by name, and "jurisdiction". Whoever takes them away
    would otherwise have the rounds judged by fewer rules than the hospital agreed to."""
    packs = sorted(set(taken.consent.packs) - {pack.id for pack in rules.packs})
    same_law = site in taken.plan.names and taken.plan.site(site).jurisdiction == rules.governance.jurisdiction
    return [f"pack {name}" for name in packs] + ([] if same_law else ["jurisdiction"])


def _instructed(taken: Taken) -> bool:
    consent, request = taken.consent, taken.request
    signed = (consent.decision, consent.study, consent.plan_digest)
    same_data = taken.data is None or taken.data.snapshot == consent.snapshot
    return signed == ("grant", request.study, request.plan_digest) and same_data


def _data(session: Session, snapshot: str) -> LocalData | None:
    from site_agent.cohort.declaration import declared
    from site_agent.cohort.snapshot import current, registration
    from site_agent.consent.facts import LocalData

    row = current(session, snapshot)
    if row is None:
        return None
    told, said = registration(row), declared(session, row.digest)
    return LocalData(
        snapshot=snapshot,
        patients=row.patients,
        held_out=row.held_out,
        registered_patients=int(told["patients"]),
        registered_held_out=int(told["held_out"]),
        records_per_patient=None,
        told={} if said is None else said[1],
    )


def own_packs(policy: Policy) -> tuple[Pack, ...]:
    """The packs by which this hospital judges the round gate."""
    from policies.packs import builtin_packs
    from site_agent.policy.federation import PREFIX

    shipped = frozenset(builtin_packs())
    return tuple(_own_part(pack) if pack.id.removeprefix(PREFIX) in shipped else pack for pack in policy.packs)


def _own_part(pack: Pack) -> Pack:
    """Without the round rules that the coordinator alone can judge."""

    def judged_here(path: str) -> bool:
        return not path.startswith(COORDINATORS)

    def kept(rule: Any) -> bool:
        guard = rule.text.applies_when.facts if rule.text.applies_when else ()
        return all(judged_here(path) for path in (*rule.text.facts, *guard))

    return replace(pack, rules=tuple(rule for rule in pack.rules if kept(rule)))


def _substance(document: dict[str, Any]) -> str:
    """A digest of what a decision says, without the moment and the salted digests that differ each time."""
    said = {name: value for name, value in document.items() if name not in ("evaluated_at", "facts_digest", "findings")}
    found = [(item["pack"], item["rule"], item["kind"]) for item in document["findings"]]
    return digest({**said, "findings": [list(item) for item in found]})
