"""The coordinator's round gate for each site: what it has on record of the site decides whether the site is in the next
attempt. A site whose gate is shut is left out, with the reason in the log; the agreed minimum decides whether the round
goes on without it. The site asks its own gate as well, with its own packs.

Rules about the site's data and ledger are the site's to judge; those that need nothing of the site are judged once for
the round (coordinator.rounds.gates). Here are the rules in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.policy.active import active_policy
from coordinator.sites.statements import site_papers
from coordinator.studies.repository import StudyRepository
from policies.decided import Decided, decide
from policies.packs import Pack, Policy
from policies.replay import sites_part
from policies.study_facts import document_facts
from protocol.study_kind import AnyPlan


class SiteGates:
    """One study's gate for each of its sites, by the policy in force. A decision is taken anew when that, or what is on
    record, changes, and each day."""

    def __init__(self, appliance: Appliance, study: str, plan: AnyPlan, plan_digest: str) -> None:
        self._appliance = appliance
        self._study = study
        self._plan = plan
        self._plan_digest = plan_digest
        self._policy: Policy | None = None
        self._packs: tuple[Pack, ...] = ()
        self._known: dict[str, tuple[dict[str, Any], date, Decided]] = {}

    def decide(self, session: Session, sites: Iterable[str]) -> dict[str, Decided]:
        """The gate's decision on each of these sites, now. Raises NoPolicy."""
        now, policy = self._appliance.clock(), active_policy(session, self._appliance)
        if policy is not self._policy:
            self._policy, self._packs, self._known = policy, tuple(map(sites_part, policy.packs)), {}
        consents = StudyRepository(session).consents(self._study)
        decisions = {}
        for site in sites:
            consent = consents.get(site)
            papers = site_papers(session, self._appliance, site)
            granted = consent.plan_digest if consent is not None and consent.decision == "grant" else ""
            decisions[site] = self._decide(site, papers, granted, policy, now)
        return decisions

    def _decide(self, site: str, papers: Mapping[str, Any], granted: str, policy: Policy, now: datetime) -> Decided:
        facts: dict[str, Any] = {**papers, "round": {"consented_digest": granted, "plan_digest": self._plan_digest}}
        known = self._known.get(site)
        if known is None or known[:2] != (facts, now.date()):
            documents = document_facts(self._plan, self._plan_digest, site=site)
            decided = decide(
                "round", {**documents, **facts}, policy, now=now, salt=self._appliance.entropy(32), packs=self._packs
            )
            known = self._known[site] = (facts, now.date(), decided)
        return known[2]
