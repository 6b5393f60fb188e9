"""A decision together with what it was taken on, so that it can be shown again and taken again.

The facts may hold people's names: they belong in the audit log's erasable payload, never in its leaf.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from policies.evaluation import evaluate
from policies.facts import BadFact, Facts
from policies.findings import Decision
from policies.packs import Gate, Pack, Policy
from protocol.canonical import digest


@dataclass(frozen=True)
class Decided:
    """decision; policy: the digest of all that it was decided by; facts: normalised, None where they were refused;
    salt: of the digests in the decision."""

    decision: Decision
    policy: str
    facts: dict[str, Any] | None
    salt: bytes

    @property
    def digest(self) -> str:
        """The digest of the decision's document."""
        return digest(self.decision.to_dict())

    @property
    def digests(self) -> dict[str, str]:
        """What a log entry about the decision names: the decision, the policy, each pack."""
        packs = {f"pack_{name.replace('-', '_')}": value for name, value in self.decision.pack_digests.items()}
        return {"decision": self.digest, "policy": self.policy, **packs}

    def payload(self) -> dict[str, object]:
        """What can be erased: the decision in words, the facts, the salt of their digest."""
        return {
            "decision": json.dumps(self.decision.to_dict(), sort_keys=True),
            "facts": json.dumps(self.facts, sort_keys=True),
            "salt": self.salt.hex(),
        }


def decide(
    gate: Gate,
    supplied: Mapping[str, Any],
    policy: Policy,
    *,
    now: datetime,
    salt: bytes = b"",
    packs: Sequence[Pack] | None = None,
) -> Decided:
    """Decide as `evaluate` does. packs: a part of the policy's own, where somebody else judges the rest."""
    judging = policy.packs if packs is None else packs
    try:
        facts: Facts | None = Facts.of(policy.catalogue, supplied)
    except BadFact:
        facts = None  # `evaluate` refuses them in words
    decision = evaluate(gate, supplied if facts is None else facts, judging, policy.parameters, now=now, salt=salt)
    return Decided(decision, policy.digest, None if facts is None else facts.to_json(), salt)
