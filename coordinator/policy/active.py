"""The policy in force: read from the database and verified every time, compiled once per content and process."""

from __future__ import annotations

from functools import lru_cache

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.database import reading
from coordinator.errors import Unavailable
from coordinator.policy.repository import PolicyRepository
from coordinator.policy.tables import PolicySetRow
from policies.packs import Policy, policy_from
from protocol.activated_policy import ActivatedPolicy, verify
from protocol.envelope import Envelope
from protocol.policy_set import PolicySet


class NoPolicy(Unavailable):
    """No set of packs is in force, so that every gate stays shut."""

    code = "no-policy"


def active_policy(session: Session, appliance: Appliance) -> Policy:
    """What every gate here decides by. Raises NoPolicy; BadSignature or VerificationFailed where the database holds
    another set than the one that two people, or the package, put in force."""
    found = active_set(session, appliance)
    return _compiled(found.set.policy, tuple(sorted(found.documents.items())))


def policy_in_force(appliance: Appliance) -> Policy:
    """`active_policy` in a transaction of its own."""
    with reading(appliance.engine) as session:
        return active_policy(session, appliance)


def active_set(session: Session, appliance: Appliance) -> ActivatedPolicy:
    """The set in force, verified. Raises as `active_policy`."""
    row = PolicyRepository(session).active()
    if row is None:
        raise NoPolicy("No set of policy packs is in force.", "Restore the database, or make the coordinator anew.")
    return verified(session, appliance, row)


def verified(session: Session, appliance: Appliance, row: PolicySetRow) -> ActivatedPolicy:
    """A set that came into force at some time, with its signatures and documents. Raises as `active_policy`."""
    sets = PolicyRepository(session)
    named = set_of(row).documents
    votes = [vote.envelope for vote in sets.votes(row.digest)]
    key = appliance.keys.coordinator.public
    return verify(row.envelope, votes, row.activation or b"", sets.documents(named), key)


def set_of(row: PolicySetRow) -> PolicySet:
    """The document in a set's envelope."""
    return PolicySet.model_validate_json(Envelope.from_bytes(row.envelope).payload)


@lru_cache(maxsize=8)
def _compiled(policy: str, documents: tuple[tuple[str, bytes], ...]) -> Policy:
    del policy  # names the content in the cache's own terms
    return policy_from(dict(documents))
