"""The evidence report: what a verified bundle of the log shows, in the order in which an auditor asks for it.

Everything in it is read from the bundle; nothing is judged. Times are the coordinator's own word; that entries were not
changed, dropped or reordered since is what the hospitals' cosignatures vouch for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.client.audit_bundle import AuditBundle
from coordinator.client.audit_query import AuditQuery, FoundEvent, find
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.merkle import leaf_hash
from protocol.note import KeyType
from protocol.witness_policy import WitnessPolicy

MAX_EVENTS = 2000
"""Entries that are listed one by one; where there are more, the report says how many it leaves to the export."""
RELEASE_EVENTS = (EventType.RELEASE_SEALED, EventType.RELEASE_SUSPENDED, EventType.RELEASE_REVOKED)


@dataclass(frozen=True)
class Witness:
    """A witness of the policy. kind: of its key; key: SHA-256 of the verifier key's text; cosigned_at: POSIX seconds,
    None where it did not cosign this checkpoint."""

    name: str
    kind: str
    key: str
    cosigned_at: int | None


@dataclass(frozen=True)
class ListedEvent:
    """An entry in the report; details: labels, numbers and groups, as they stand in the leaf."""

    index: int
    at: str
    event: str
    actor: str
    subject: str
    details: str
    leaf_hash: str


@dataclass(frozen=True)
class EvidenceReport:
    """What is printed. files: the checkpoint, the witness policy and the log's key, byte by byte, by name."""

    origin: str
    study: str | None
    made_at: str
    ca: str
    log_key: str
    size: int
    root: str
    quorum: int
    witnesses: tuple[Witness, ...]
    entries: int
    first_at: str
    last_at: str
    counts: tuple[tuple[str, int], ...]
    decisions: tuple[tuple[str, str, int], ...]
    releases: tuple[ListedEvent, ...]
    listed: tuple[ListedEvent, ...]
    not_listed: int
    files: dict[str, bytes] = field(default_factory=dict)


def make_report(bundle: AuditBundle, *, study: str | None, made_at: str, ca: str) -> EvidenceReport:
    """The report on a whole log, or on one study and its releases. made_at: now; ca: the CA's fingerprint.

    The bundle is verified as anybody would: raises VerificationFailed for one that does not hold.
    """
    verified, found = find(bundle, AuditQuery.of(study=study))
    policy = WitnessPolicy.from_bytes(bundle.small["witness_policy.json"])
    checkpoint = policy.accept(bundle.small["checkpoint"])
    listed = [_listed(item) for item in (found if study is not None else _about_releases(found))]
    times = [item.event.at for item in found]
    return EvidenceReport(
        origin=policy.log.name, study=study, made_at=made_at, ca=ca, log_key=policy.log.text,
        size=checkpoint.size, root=checkpoint.root.hex(), quorum=policy.quorum,
        witnesses=tuple(
            Witness(
                key.name, "ML-DSA-44" if key.type is KeyType.ML_DSA_44 else "Ed25519", sha256_hex(key.text.encode()),
                checkpoint.cosigners.get(key.name),
            )
            for key in policy.witnesses
        ),
        entries=verified.entries, first_at=min(times, default=""), last_at=max(times, default=""),
        counts=tuple(sorted(Counter(item.event.event.value for item in found).items())),
        decisions=_decisions(found), releases=tuple(_listed(item) for item in _about_releases(found)),
        listed=tuple(listed[:MAX_EVENTS]), not_listed=max(0, len(listed) - MAX_EVENTS),
        files={name: bundle.small[name] for name in ("checkpoint", "witness_policy.json", "log.vkey")},
    )  # fmt: skip


def _about_releases(found: Iterable[FoundEvent]) -> list[FoundEvent]:
    return [item for item in found if item.event.event in RELEASE_EVENTS]


def _decisions(found: Iterable[FoundEvent]) -> tuple[tuple[str, str, int], ...]:
    """(gate, outcome, how many) of policy's decisions."""
    told = Counter(
        (item.event.labels.get("gate", ""), item.event.labels.get("outcome", ""))
        for item in found
        if item.event.event is EventType.POLICY_DECIDED
    )
    return tuple((gate, outcome, count) for (gate, outcome), count in sorted(told.items()))


def _listed(item: FoundEvent) -> ListedEvent:
    event = item.event
    groups = {name: ",".join(members) for name, members in event.groups.items()}
    told = {**event.labels, **event.numbers, **groups, **event.digests}
    return ListedEvent(
        item.index, event.at, event.event.value, event.actor, event.subject,
        " ".join(f"{name}={value}" for name, value in sorted(told.items())), leaf_hash(event.leaf()).hex(),
    )  # fmt: skip
