"""Erase what the retention gate lets go. The log tells of each erasure in the transaction that carries it out."""

from __future__ import annotations

import json
from dataclasses import dataclass

from coordinator.appliance import Appliance
from coordinator.audit.append import LOCAL_ADMINISTRATOR, append
from coordinator.database import forget_erased, transaction
from coordinator.retention.gate import Judged, plan
from coordinator.retention.inventory import chunk_store, uploads_of
from coordinator.retention.prune import Pruned, prune
from coordinator.retention.repository import RetentionRepository
from policies.packs import Policy
from policies.retention import RecordClass
from protocol.audit_event import EventType
from protocol.canonical import digest

ERASABLE = (RecordClass.UPDATE, RecordClass.CHECKPOINT, RecordClass.MODEL, RecordClass.POLICY)
"""What a run erases; a dossier that may go is left to a person."""


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
            held, document = one.holding, one.decision.to_dict()
            match held.record_class:
                case RecordClass.UPDATE:
                    chunks += uploads_of(session, appliance, held.about)
                case RecordClass.CHECKPOINT:
                    repository.erase_checkpoints(held.about)
                case RecordClass.MODEL:
                    repository.erase_weights(held.about)
                case RecordClass.POLICY:
                    repository.erase_evidence(held.about)
            append(
                session,
                appliance,
                EventType.RECORDS_PURGED,
                actor=LOCAL_ADMINISTRATOR,
                subject=f"release:{held.about}" if held.record_class is RecordClass.MODEL else held.about,
                digests={"decision": digest(document)},
                labels={"class": held.record_class.value},
                payload={"decision": json.dumps(document, sort_keys=True)},
            )
        pruned = prune(session, appliance, policy)
    store = chunk_store(appliance)
    for name in chunks:
        store.erase(name)
    return Run(going, pruned, forget_erased(appliance.engine))
