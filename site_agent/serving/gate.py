"""The serving gate, at the site: asked when a release is installed, when one is switched to, when serving begins, and
every few seconds while it goes on. What it rests on is read again each time, so evidence that expires shuts it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from policies.decided import Decided, decide
from policies.findings import Decision, reasons
from policies.packs import Policy
from policies.study_facts import document_facts
from protocol.canonical import digest
from protocol.errors import CloisterError
from protocol.serving import MOST_RULES, Moment
from protocol.timestamp import timestamp
from site_agent.clock import Clock
from site_agent.consent.governance import Governance, load_governance, local_policy, rules_digest
from site_agent.database import transaction
from site_agent.evidence.facts import records_facts
from site_agent.incidents.facts import LogReader, open_reviews
from site_agent.policy.decisions import keep
from site_agent.releases.sealed import Sealed
from site_agent.serving.deployment import DeploymentRecord, said
from site_agent.serving.log import ServingLog
from site_agent.serving.reports import Served, tell_refusal
from site_agent.serving.standing import RECHECK_SECONDS
from site_agent.serving.tables import ServingDecision
from site_agent.settings import SiteSettings
from site_agent.witness.repository import standing_alarms

COMPILE_SECONDS = 60.0
Records = list[dict[str, Any]]


class ServingRefused(CloisterError):
    """This hospital's own rules do not let the release be served."""

    code = "serving-refused"

    def __init__(self, message: str, remedy: str, rules: tuple[str, ...] = ()) -> None:
        """rules: those that shut the gate, as pack:rule."""
        super().__init__(message, remedy)
        self.rules = rules


def serving_facts(
    release: Sealed,
    *,
    site: str,
    governance: Governance,
    said: DeploymentRecord | None,
    about_site: Records,
    about_deployment: Records,
    log_enabled: bool,
    log_sound: bool,
    reviews: int,
    invalidated: int,
) -> dict[str, Any]:
    """The facts of the serving gate. Without a deployment record its facts are absent, and the gate denies.

    about_site, about_deployment: evidence on record, as `protocol.evidence.standing` has it.
    log_enabled: the serving log could be written just now. log_sound: no alarm about the coordinator's log stands.
    reviews: the open ones of this model, after patients withdrew; invalidated: the sites in its plan whose legal basis
    was found invalid; both by this site's own copy of the log.
    """
    subject = release.subject
    facts = {
        **document_facts(release.plan, release.plan_digest, site=site),
        "release": {
            "digest": subject.digest,
            "intended_use": subject.intended_use,
            "decision_mode": subject.use_mode,
            "recipients": list(subject.recipients),
            "files": list(release.names),
            "signature_valid": release.signed,
            "provenance_log_bound": release.logged,
            "contributors_invalidated": invalidated,
        },
        "site": {
            "name": site,
            "jurisdiction": governance.jurisdiction,
            "hipaa_role": governance.hipaa_role,
            "records": about_site,
        },
        "deployment": {"log_enabled": log_enabled, "records": about_deployment},
        "withdrawal": {"open": reviews},
        "audit": {"append_ok": log_sound},
    }
    if said is not None:
        facts["coordinator"] = {"country": said.coordinator_country}
        facts["deployment"] |= {
            "care": said.use == "care",
            "oversight_named": said.oversight is not None,
            "log_retention_days": said.log_retention_days,
        }
    return facts


def refusal(release: str, decision: Decision) -> ServingRefused:
    """The error that tells every finding that keeps the gate shut."""
    found = reasons(decision)
    told = " ".join(f"{finding.message} ({finding.pack} {finding.rule}, {finding.citation})" for finding in found)
    remedies = " ".join(dict.fromkeys(finding.remedy for finding in found))
    rules = tuple(dict.fromkeys(f"{finding.pack}:{finding.rule}" for finding in found))[:MOST_RULES]
    return ServingRefused(f"This hospital's own rules do not let {release} be served: {told}", remedies, rules)


def gate_of(settings: SiteSettings, engine: Engine, release: Sealed, clock: Clock) -> ServingGate:
    """The gate of a release, with its own serving log."""
    log = ServingLog(settings.home, release.subject.release, release.subject.digest, clock)
    return ServingGate(settings, engine, release, log, clock)


@dataclass(frozen=True)
class _Compiled:
    """source: digest of the documents; compiled: monotonic seconds."""

    source: str
    compiled: float
    policy: Policy


class ServingGate:
    """The gate of one release. Thread-safe. now: monotonic seconds."""

    def __init__(
        self,
        settings: SiteSettings,
        engine: Engine,
        release: Sealed,
        log: ServingLog,
        clock: Clock,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._engine, self._release, self.log = settings, engine, release, log
        self._clock, self._now = clock, now
        self._follow = LogReader(settings)
        self._lock = threading.Lock()
        self._policy: _Compiled | None = None
        self._looked: float | None = None
        self._told: tuple[str, ...] | None = None
        self._trouble: CloisterError | None = None

    def decide(self) -> Decision:
        """Gather and evaluate; nothing is written. Raises GovernanceUnset, DatabaseUnusable, BadPolicyDocument."""
        return self._decided().decision

    def _decided(self) -> Decided:
        governance = load_governance(self._settings.home)
        policy = self._compiled(governance)
        with transaction(self._engine) as session:
            facts = self._facts(session, governance)
        return decide("serving", facts, policy, now=self._clock(), salt=os.urandom(32))

    def require(self, moment: Moment) -> Decision:
        """Decide and keep the decision. Raises ServingRefused when the gate does not open."""
        decided = self._decided()
        decision = decided.decision
        self._keep(moment, decided)
        if not decision.allowed:
            raise refusal(self._release.subject.release, decision)
        return decision

    def trouble(self) -> CloisterError | None:
        """Why nothing may be predicted now, or None; looked at anew when RECHECK_SECONDS have passed."""
        with self._lock:
            now = self._now()
            if self._looked is None or now - self._looked >= RECHECK_SECONDS:
                try:
                    decided = self._decided()
                    decision = decided.decision
                    self._changed(decided)
                    allowed = decision.allowed
                    self._trouble = None if allowed else refusal(self._release.subject.release, decision)
                except CloisterError as error:  # what can't be read opens no gate
                    self._trouble = error
                self._looked = now
            return self._trouble

    def _changed(self, decided: Decided) -> None:
        """Keep a decision that says something else than the one before."""
        decision = decided.decision
        says = (decision.outcome.value, *(f"{finding.pack} {finding.rule}" for finding in decision.findings))
        if says != self._told:
            self._keep("running", decided)
            self._told = says

    def _keep(self, moment: Moment, decided: Decided) -> None:
        decision = decided.decision
        row = ServingDecision(
            moment=moment,
            release=self._release.subject.release,
            subject_digest=self._release.subject.digest,
            outcome=decision.outcome.value,
            decision=json.dumps(decision.to_dict(), sort_keys=True),
            decided_at=timestamp(decision.evaluated_at),
        )
        with transaction(self._engine) as session:
            session.add(row)
            keep(session, decided, subject=f"release:{self._release.subject.release}")
            if moment != "running" and not decision.allowed:  # a running server tells of itself
                served = Served.of(self._settings.site, self._release.subject)
                tell_refusal(session, served, moment, decision, digest(decision.to_dict()), self._clock)

    def _facts(self, session: Session, governance: Governance) -> dict[str, Any]:
        site, today = self._settings.site, self._clock().date()
        matters = self._follow.matters(session)
        return serving_facts(
            self._release,
            site=site,
            governance=governance,
            said=said(session, self._release.subject.study),
            about_site=records_facts(session, on=today),
            about_deployment=records_facts(session, on=today, scope="deployment"),
            log_enabled=self.log.usable(),
            log_sound=not standing_alarms(session),
            reviews=len(open_reviews(session, matters, self._release.subject.study)),
            invalidated=len(matters.invalidated(self._release.plan.names)),
        )

    def _compiled(self, governance: Governance) -> Policy:
        """The site's packs and the federation's that it adopted, compiled again where a document or a parameter changed
        or a set was adopted, and every COMPILE_SECONDS."""
        source = rules_digest(self._settings.home)
        known, now = self._policy, self._now()
        if known is None or known.source != source or now - known.compiled >= COMPILE_SECONDS:
            known = self._policy = _Compiled(source, now, local_policy(self._settings.home, governance))
        return known.policy
