"""The auditor as a witness of the log, beside hospitals that are too few to bear the loss of one.

Below four hospitals a quorum is all of them or nearly; an auditor who cosigns too makes it hold without one, and is a
party that no hospital and no coordinator owns. One at most: a quorum never stands on auditors alone.
"""

from __future__ import annotations

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import LOCAL_ADMINISTRATOR, append
from coordinator.audit.repository import LogRepository
from coordinator.audit.states import decide_joining
from coordinator.audit.tables import LogWitness
from coordinator.audit.witnessing import build_policy, set_policy
from coordinator.errors import NotFound
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.checkpoint import COSIGNER_TYPES
from protocol.enrolment import auditor_witness_name
from protocol.errors import Malformed
from protocol.identifiers import require_name
from protocol.note import VerifierKey
from protocol.timestamp import timestamp
from protocol.witness_policy import WitnessPolicy


def join(
    session: Session, appliance: Appliance, name: str, vkey: str, *, site_witnesses: list[str]
) -> WitnessPolicy | None:
    """Take an auditor's verifier key into the witness policy; the policy from now on, None while no site is enrolled.

    site_witnesses: the vkeys of the enrolled sites. Raises Malformed for a key that is not this auditor's cosigner key
    or is another witness's, Conflict where another auditor witnesses already, Refused from four sites on.
    """
    require_name(name, "The auditor's name")
    key, log = VerifierKey.parse(vkey.strip()), LogRepository(session, appliance.settings.origin)
    if key.type not in COSIGNER_TYPES or key.name != auditor_witness_name(name):
        raise Malformed(
            f"The key is not the cosigner key of {auditor_witness_name(name)}.",
            f"Take the key that `cloister audit witness init FOLDER --name {name}` printed.",
        )
    decide_joining(len(site_witnesses), [row.name for row in log.auditors()], key_known=log.auditor_key_known(key.text))
    log.save_auditor(LogWitness(key=key.text, name=name, joined_at=timestamp(appliance.clock())))
    return _in_force(session, appliance, EventType.WITNESS_JOINED, name, key, site_witnesses)


def remove(session: Session, appliance: Appliance, name: str, *, site_witnesses: list[str]) -> WitnessPolicy | None:
    """Take an auditor out of the witness policy; the policy from now on. Raises NotFound."""
    log = LogRepository(session, appliance.settings.origin)
    row = next((row for row in log.auditors() if row.name == name), None)
    if row is None:
        raise NotFound(f"No auditor named {name} is a witness.", "See `cloister-coordinator witness list`.")
    row.removed_at = timestamp(appliance.clock())
    log.save_auditor(row)
    return _in_force(
        session, appliance, EventType.WITNESS_REMOVED, name, VerifierKey.parse(row.key), site_witnesses
    )  # fmt: skip


def _in_force(
    session: Session, appliance: Appliance, event: EventType, name: str, key: VerifierKey, sites: list[str]
) -> WitnessPolicy | None:
    policy = build_policy(session, appliance, sites)
    digests = {"witness": sha256_hex(key.text.encode())}
    entry = append(
        session, appliance, event, actor=LOCAL_ADMINISTRATOR, subject=f"auditor:{name}",
        digests=digests if policy is None else {**digests, "witness_policy": policy.digest},
        numbers={} if policy is None else {"witnesses": len(policy.witnesses), "quorum": policy.quorum},
    )  # fmt: skip
    if policy is not None:
        set_policy(session, appliance, policy, entry=entry)
    return policy
