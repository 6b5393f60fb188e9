"""The enrolment gate: whether a site's papers, and the coordinator's own, are such that the site may come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordinator.appliance import Appliance
from coordinator.audit.append import site_label
from policies.decided import Decided, decide
from policies.findings import Decision, Finding, reasons
from policies.packs import Policy
from protocol.enrolment import GateAnswer, Shortcoming
from protocol.errors import Refused

MAX_NAMED = 12


class EnrolmentDenied(Refused):
    """The enrolment gate is shut; the message lists what is missing, `facts` holds the findings. The token is good
    still."""

    code = "enrolment-denied"

    def __init__(self, decision: Decision) -> None:
        owed = reasons(decision)
        listed = " ".join(f"{item.rule} ({item.citation}): {item.message}" for item in owed[:MAX_NAMED])
        remedies = " ".join(dict.fromkeys(item.remedy for item in owed[:MAX_NAMED]))
        super().__init__(f"The enrolment gate is shut, and the token stays good: {listed}", remedies)
        self.facts: dict[str, Any] = {"findings": [finding.to_dict() for finding in decision.findings]}


def decide_enrolment_gate(
    appliance: Appliance, policy: Policy, papers: Mapping[str, Any], *, append_ok: bool
) -> Decided:
    """Evaluate the gate over the papers. append_ok: whether the log takes the decision's entry.

    Who asks is the site itself: it holds the one-time token, and a key that signed its papers and its certificate
    request and that no other site has ever had.
    """
    actor = {
        "id": site_label(papers["site"]["name"]),
        "authenticated": True,
        "shared_account": False,
        "auth_level": "key",
    }
    facts = {**papers, "actor": actor, "audit": {"append_ok": append_ok}}
    return decide("enrolment", facts, policy, now=appliance.clock(), salt=appliance.entropy(32))


def answer_of(decision: Decision) -> GateAnswer:
    """The decision as a site is told of it."""
    owed = reasons(decision)
    warnings = [finding for finding in decision.findings if finding not in owed]
    return GateAnswer(open=decision.allowed, owed=tuple(map(_told, owed)), warnings=tuple(map(_told, warnings)))


def _told(finding: Finding) -> Shortcoming:
    return Shortcoming(
        rule=finding.rule,
        citation=finding.citation[:2000],
        message=finding.message[:2000],
        remedy=finding.remedy[:2000],
    )
