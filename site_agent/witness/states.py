"""What a witness makes of a checkpoint, and of a new witness policy. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from protocol.audit_event import EventType
from protocol.canonical import parse, sha256_hex
from protocol.checkpoint import TreeHead
from protocol.enrolment import AUDITOR, auditor_witness_name, witness_name
from protocol.errors import Malformed
from protocol.witness_policy import WitnessPolicy


class Verdict(StrEnum):
    """What the served head is to the head that the site holds."""

    SAME = "same"
    EXTENDS = "extends"  # in size: that the entries lead there is yet to be shown
    ROLLBACK = "rollback"
    FORK = "fork"


class PolicyVerdict(StrEnum):
    """What becomes of a served witness policy."""

    SAME = "same"
    ACCEPT = "accept"
    WAIT = "wait"  # the mirrored log does not name it yet, or no longer
    OTHER_LOG = "policy-of-another-log"
    UNEXPLAINED_WITNESS = "policy-with-unexplained-witness"
    LEFT_OUT = "policy-without-this-site"


def judge(held: TreeHead | None, served: TreeHead) -> Verdict:
    """The verdict on a head that was fetched after `held` had been persisted.

    In that order a smaller size is no race: the log has published less than it once did.
    """
    if held is None or served.size > held.size:
        return Verdict.EXTENDS
    if served.size < held.size:
        return Verdict.ROLLBACK
    return Verdict.SAME if served.root == held.root else Verdict.FORK


@dataclass
class LogFacts:
    """What entries say of witnesses: policy digests in order, digests of keys that joined, names of those that left."""

    policies: list[str] = field(default_factory=list)
    enrolled: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)

    def read(self, entries: Iterable[bytes]) -> LogFacts:
        """Take in more entries, in order; those that are of another kind say nothing here."""
        for entry in entries:
            match _event(entry):
                case {"event": EventType.SITE_ENROLLED | EventType.WITNESS_JOINED, "digests": dict(digests)}:
                    self.enrolled.add(str(digests.get("witness")))
                case {"event": EventType.SITE_REVOKED, "subject": str(subject), "digests": dict(digests)}:
                    self.left.add(witness_name(subject.removeprefix("site:")))
                case {"event": EventType.WITNESS_REMOVED, "subject": str(subject), "digests": dict(digests)}:
                    self.left.add(auditor_witness_name(subject.removeprefix("auditor:")))
                case _:
                    continue
            if isinstance(policy := digests.get("witness_policy"), str):
                self.policies.append(policy)
        return self


def judge_policy(held: WitnessPolicy, served: WitnessPolicy, facts: LogFacts, own_witness: str) -> PolicyVerdict:
    """The verdict on a served policy. `facts`: over the whole mirrored log; `own_witness`: this site's vkey.

    Accepted is only the policy that the log names last, of the same log, with this site in it, whose every new witness
    the log tells of as enrolled or joined and whose every missing one it tells of as revoked or removed,
    with one auditor at most.
    (`WitnessPolicy` itself refuses a quorum below `required_quorum`.)
    """
    if served.log != held.log:
        return PolicyVerdict.OTHER_LOG
    if served == held:
        return PolicyVerdict.SAME
    if facts.policies[-1:] != [served.digest]:
        return PolicyVerdict.WAIT
    if own_witness not in {witness.text for witness in served.witnesses}:
        return PolicyVerdict.LEFT_OUT
    added = set(served.witnesses) - set(held.witnesses)
    removed = set(held.witnesses) - set(served.witnesses)
    if any(sha256_hex(witness.text.encode()) not in facts.enrolled for witness in added):
        return PolicyVerdict.UNEXPLAINED_WITNESS
    if not {witness.name for witness in removed} <= facts.left:
        return PolicyVerdict.UNEXPLAINED_WITNESS
    if sum(witness.name.endswith(AUDITOR) for witness in served.witnesses) > 1:
        return PolicyVerdict.UNEXPLAINED_WITNESS  # a quorum could stand on auditors alone
    return PolicyVerdict.ACCEPT


def _event(entry: bytes) -> object:
    try:
        return parse(entry)
    except Malformed:
        return None
