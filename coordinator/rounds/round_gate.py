"""The round's own gate as the driver asks it before each attempt: by the policy that is in force now, with what is on
record now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coordinator.appliance import Appliance
from coordinator.audit.health import LogHealth
from coordinator.database import reading
from coordinator.evidence.facts import study_papers
from coordinator.incidents.facts import frozen_sites, incident_facts
from coordinator.policy.active import active_policy
from coordinator.rounds.exchange import Exchange
from coordinator.rounds.freeze import StudyFrozen
from coordinator.rounds.gates import LogWatch, RoundGates
from coordinator.rounds.journal import Running
from coordinator.rounds.standing import Standing
from coordinator.rounds.states import Begin
from policies.decided import Decided

PAUSE_SECONDS = 0.2


class RoundGate:
    """One study's."""

    def __init__(
        self,
        appliance: Appliance,
        running: Running,
        standing: Standing,
        exchange: Exchange,
        watch: LogWatch,
        monotonic: Callable[[], float],
    ) -> None:
        self._appliance = appliance
        self._running = running
        self._standing = standing
        self._exchange = exchange
        self._watch = watch
        self._monotonic = monotonic
        self._gates: RoundGates | None = None

    def decide(self, begin: Begin, *, patience: float) -> Decided:
        """Whether the attempt may be sent. patience: seconds that sites are given to cosign the log. Raises StudyEnded,
        StudyFrozen."""
        health = self._healthy_log(patience)
        papers, incidents = self._papers(begin.cohort)
        return self.in_force().round(begin.round, health, papers, incidents, now=self._appliance.clock())

    def in_force(self) -> RoundGates:
        """The gates under the policy that is in force now: it may have changed since the last attempt."""
        with reading(self._appliance.engine) as session:
            policy = active_policy(session, self._appliance)
        if self._gates is None or self._gates.policy is not policy:
            self._gates = RoundGates.of(self._running.plan, self._running.plan_digest, policy)
        return self._gates

    def _papers(self, cohort: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is on record, and the open incidents. One that was opened in this very moment freezes the study; it
        does not fail it."""
        study, now = self._running.study, self._appliance.clock()
        with reading(self._appliance.engine) as session:
            self._standing.require_active(session)
            if frozen_sites(session) & set(cohort):
                raise StudyFrozen("A site of the cohort was frozen meanwhile.", "The driver begins again without it.")
            incidents = incident_facts(session, study=study, sites=cohort, now=now)
            return study_papers(session, self._appliance, self._running.plan.spec), incidents

    def _healthy_log(self, patience: float) -> LogHealth:
        """The log's health; sites that have just come back are given time to cosign before it is judged."""
        end = self._monotonic() + patience
        health = self._watch.health()
        while not health.quorum and self._monotonic() < end:
            self._exchange.wait(PAUSE_SECONDS)
            health = self._watch.health()
        return health
