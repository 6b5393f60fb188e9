"""Erase what the retention gate lets go. The log tells of each erasure in the transaction that carries it out."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.appliance import Appliance
from coordinator.audit.append import LOCAL_ADMINISTRATOR, append
from coordinator.database import forget_erased, transaction
from coordinator.policy.decisions import index
from coordinator.retention.gate import Judged, plan
from coordinator.retention.inventory import chunk_store, uploads_of
from coordinator.retention.prune import Pruned, prune
from coordinator.retention.repository import RetentionRepository
from policies.packs import Policy
from policies.retention import RecordClass
from protocol.audit_event import EventType

ERASABLE = (RecordClass.UPDATE, RecordClass.CHECKPOINT, RecordClass.MODEL, RecordClass.POLICY)
"""What a run erases; a dossier that may go is left to two people (`dossier`)."""


@dataclass(frozen=True)
class Run:
    """What went, what of the log's payloads was pruned, and whether the database's files are rid of it."""

    purged: tuple[Judged, ...]
    pruned: Pruned
    forgotten: bool


def run(appliance: Appliance, policy: Policy) -> Run:
    """Erase all that goes. May be repeated: what a crash left undone is found again."""
    with transaction(appliance.engine) as session:
        judged = [one for one in plan(session, appliance, policy) if one.goes]
        going = tuple(one for one in judged if one.holding.record_class in ERASABLE)
        repository, chunks = RetentionRepository(session), list[str]()
        for one in going:
            held = one.holding
            match held.record_class:
                case RecordClass.UPDATE:
                    chunks += uploads_of(session, appliance, held.about)
                case RecordClass.CHECKPOINT:
                    repository.erase_checkpoints(held.about)
                case RecordClass.MODEL:
                    repository.erase_weights(held.about)
                case RecordClass.POLICY:
                    repository.erase_evidence(held.about)
            subject = f"release:{held.about}" if held.record_class is RecordClass.MODEL else held.about
            entry = append(
                session,
                appliance,
                EventType.RECORDS_PURGED,
                actor=LOCAL_ADMINISTRATOR,
                subject=subject,
                digests=one.decided.digests,
                labels={"class": held.record_class.value},
                payload=one.decided.payload(),
            )
            index(session, one.decided, entry=entry, subject=subject)
        pruned = prune(session, appliance, policy)
    store = chunk_store(appliance)
    for name in chunks:
        store.erase(name)
    return Run(going, pruned, forget_erased(appliance.engine))
