"""What the site knows when its consent gate is asked: the study's own papers, its data, its ledger, its log. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from policies.study_facts import Epsilons as PolicyEpsilons
from policies.study_facts import document_facts
from protocol.study_kind import AnyPlan
from site_agent.consent.governance import Governance
from site_agent.training.states import Budget, Charge


@dataclass(frozen=True)
class LocalData:
    """The site's snapshot under the study's schema. Counts as the site itself holds them. records_per_patient: the most
    that one patient has; None where nobody counted. told: further parts of `dataset.*`, as the hospital declared them
    of this very snapshot or a scan of it found them."""

    snapshot: str
    patients: int
    held_out: int
    registered_patients: int
    registered_held_out: int
    records_per_patient: int | None
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Epsilons:
    """What the site computed itself from the plan's noise: never the plan's own word. An exact evaluation has neither,
    nor has a plan without one: 0 and None. membership: of the audit, for members and non-members alike; None where
    there is none. checks: of those between rounds, for held-out patients; likewise."""

    training: float
    worst_site: float
    evaluation: float
    evaluation_worst_site: float | None
    membership: float | None = None
    membership_worst_site: float | None = None
    checks: float | None = None
    checks_worst_site: float | None = None


def consent_facts(
    plan: AnyPlan,
    plan_digest: str,
    *,
    site: str,
    governance: Governance,
    data: LocalData | None,
    epsilons: Epsilons,
    spent: Budget,
    charges: Sequence[Charge],
    log_sound: bool,
    papers: Mapping[str, Any],
) -> dict[str, Any]:
    """The facts of the consent gate. Without a snapshot its facts are absent, and the gate denies.

    papers: the parts of `site.*` that rest on what the hospital has on record.
    charges: what the plan asks of the training patients, whose ledger the gate is about.
    log_sound: the log's mirror at this site raised no alarm, so what was logged still stands.
    """
    return {
        **document_facts(
            plan,
            plan_digest,
            site=site,
            epsilons=PolicyEpsilons(
                epsilons.training,
                epsilons.worst_site,
                epsilons.evaluation_worst_site,
                epsilons.membership_worst_site,
                epsilons.checks_worst_site,
            ),
        ),
        "dataset": dataset_facts(plan, governance, data),
        "site": site_facts(site, governance, data, papers),
        "ledger": {
            "epsilon_spent": spent.epsilon,
            "epsilon_limit": governance.epsilon_limit,
            "epsilon_requested": sum(charge.epsilon for charge in charges),
            "delta_spent": spent.delta,
            "delta_limit": governance.delta_limit,
            "delta_requested": sum(charge.delta for charge in charges),
        },
        "audit": {"append_ok": log_sound},
    }


def dataset_facts(plan: AnyPlan, governance: Governance, data: LocalData | None) -> dict[str, Any]:
    """`dataset.*`, at every gate of the site: what the plan reads, what the hospital says of it, what the snapshot is.
    Counts are absent without a snapshot."""
    columns = [*plan.spec.dataset.columns, *plan.spec.dataset.label.columns]
    facts: dict[str, Any] = {
        "columns": columns,
        "direct_identifier_columns": [name for name in columns if name in governance.direct_identifiers],
        "categories": list(governance.categories),
        "collection_purpose": governance.collection_purpose,
    }
    if data is not None:
        facts |= {**data.told, "patients": data.patients, "max_records_per_patient": data.records_per_patient}
    return facts


def site_facts(site: str, governance: Governance, data: LocalData | None, papers: Mapping[str, Any]) -> dict[str, Any]:
    """`site.*`, at every gate of the site."""
    facts: dict[str, Any] = {
        **papers,
        "name": site,
        "jurisdiction": governance.jurisdiction,
        "hipaa_role": governance.hipaa_role,
    }
    if data is not None:
        facts |= {"cohort_n": data.patients - data.held_out}
    return facts
