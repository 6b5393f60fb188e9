"""The witness policy in force, the cosignatures that came in, and what a quorum of them vouches for."""

from __future__ import annotations

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.repository import LogRepository
from coordinator.audit.sequencer import log_key, tile_store
from coordinator.audit.tables import LogCheckpoint
from coordinator.errors import Conflict, NotFound, Unavailable
from protocol.checkpoint import TreeHead, verify_cosignature
from protocol.errors import BadSignature
from protocol.merkle import inclusion_proof, verify_inclusion
from protocol.note import Note, NoteSignature, VerifierKey, parse_signatures
from protocol.tlog_proof import TlogProof
from protocol.witness_policy import WitnessPolicy, required_quorum

RECENT = 256  # a cosignature may come in some checkpoints late; an older one says nothing that a newer doesn't


class StaleCosignature(Conflict):
    """A cosignature that is over none of the recent checkpoints."""

    code = "stale-cosignature"


def build_policy(session: Session, appliance: Appliance, sites: list[str]) -> WitnessPolicy | None:
    """The policy for these sites' cosigner keys (vkeys) and an auditor's, if one has joined; None without any site."""
    if not sites:
        return None
    auditors = LogRepository(session, appliance.settings.origin).auditors()
    keys = tuple(VerifierKey.parse(text) for text in (*sites, *(row.key for row in auditors)))
    return WitnessPolicy(log_key(appliance), keys, required_quorum(len(keys)))


def set_policy(session: Session, appliance: Appliance, policy: WitnessPolicy | None, *, entry: int) -> None:
    """Put a policy in force in the transaction of the entry that tells its digest."""
    LogRepository(session, appliance.settings.origin).set_policy(entry, policy.to_bytes() if policy else None)


def policy_in_force(session: Session, appliance: Appliance) -> WitnessPolicy | None:
    """The witness policy; None while no site is active."""
    row = LogRepository(session, appliance.settings.origin).policy()
    return None if row is None or row.document is None else WitnessPolicy.from_bytes(row.document)


def cosigned_note(repository: LogRepository, checkpoint: LogCheckpoint) -> bytes:
    """The checkpoint with the cosignatures that it has so far."""
    note = Note.parse(checkpoint.note)
    lines = "".join(line for _, line in sorted(repository.cosignatures(checkpoint.size).items()))
    return note.with_signatures(*parse_signatures(lines.encode())).to_bytes() if lines else checkpoint.note


def latest_note(session: Session, appliance: Appliance) -> bytes:
    """The latest checkpoint with its cosignatures so far. Raises NotFound before the first."""
    repository = LogRepository(session, appliance.settings.origin)
    checkpoint = repository.latest_checkpoint()
    if checkpoint is None:
        raise NotFound("The log has no checkpoint yet.", "Start `cloister-coordinator serve` and retry.")
    return cosigned_note(repository, checkpoint)


def verify_cosignatures(
    session: Session, appliance: Appliance, site_witness: str, data: bytes
) -> list[tuple[int, str]]:
    """(checkpoint size, line) of each line that this site's witness made over a recent checkpoint. Writes nothing.

    All lines must be by the caller's own key. Raises BadSignature for a line by another key, StaleCosignature when
    a line verifies over none of the newest 256 checkpoints: our own roots at their sizes.
    """
    repository = LogRepository(session, appliance.settings.origin)
    witness = VerifierKey.parse(site_witness)
    recent = [_head(row) for row in repository.recent_checkpoints(RECENT)]
    verified = []
    for line in parse_signatures(data):
        if (line.name, line.key_id) != (witness.name, witness.key_id):
            raise BadSignature(
                "A cosignature is not by this site's witness key.", "Send only the site's own cosignature."
            )
        verified.append((_cosigned_size(recent, line, witness), line.line))
    return verified


def verify_auditor(session: Session, appliance: Appliance, size: int, data: bytes) -> tuple[str, str]:
    """(witness, line) of the one line in `data`, by an auditor who is a witness, over the checkpoint of that size.

    The signature is what says who calls. Raises NotFound for another signer or a size without a checkpoint,
    BadSignature, Malformed. Writes nothing.
    """
    repository = LogRepository(session, appliance.settings.origin)
    lines = parse_signatures(data)
    keys = {key.name: key for key in (VerifierKey.parse(row.key) for row in repository.auditors())}
    if len(lines) != 1 or lines[0].name not in keys:
        raise NotFound(
            "No auditor of that name is a witness of this log.",
            "Have the coordinator's administrator run `cloister-coordinator witness join NAME --key VKEY`.",
        )
    checkpoint = repository.checkpoint(size)
    if checkpoint is None:
        raise NotFound(f"The log has no checkpoint of {size} entries.", "Fetch the latest checkpoint and cosign it.")
    key = keys[lines[0].name]
    verify_cosignature(_head(checkpoint), lines[0], key)
    return key.text, lines[0].line


def accept_cosignatures(session: Session, appliance: Appliance, site_witness: str, data: bytes) -> int:
    """Verify, then keep; the largest size that was cosigned. Raises what `verify_cosignatures` raises."""
    return keep_cosignatures(
        session, appliance, site_witness, verify_cosignatures(session, appliance, site_witness, data)
    )


def keep_cosignatures(
    session: Session, appliance: Appliance, site_witness: str, verified: list[tuple[int, str]]
) -> int:
    """Store verified lines; the largest size among them."""
    repository = LogRepository(session, appliance.settings.origin)
    for size, line in verified:
        repository.add_cosignature(size, site_witness, line)
    return max(size for size, _ in verified)


def quorum_note(session: Session, appliance: Appliance, minimum_size: int) -> bytes | None:
    """The largest checkpoint of at least `minimum_size` leaves with a quorum of cosignatures; None if there is none.

    It covers the entry that put the policy in force. Only the policy's witnesses stand on it.
    """
    repository = LogRepository(session, appliance.settings.origin)
    row = repository.policy()
    if row is None or row.document is None:
        return None
    policy, since = WitnessPolicy.from_bytes(row.document), repository.index_of(row.entry)
    if since is None:
        return None
    witnesses = [witness.text for witness in policy.witnesses]
    checkpoint = repository.largest_cosigned(witnesses, policy.quorum, max(minimum_size, since + 1))
    if checkpoint is None:
        return None
    lines = repository.cosignatures(checkpoint.size)
    signatures = parse_signatures("".join(lines[key] for key in witnesses if key in lines).encode())
    note = Note.parse(checkpoint.note).with_signatures(*signatures).to_bytes()
    policy.accept(note)
    return note


def proof_for(session: Session, appliance: Appliance, entry: int, *, extra: bytes = b"") -> bytes:
    """The receipt (C2SP tlog-proof) of an entry under a checkpoint that a quorum has cosigned.

    Raises NotFound for an unknown entry, Unavailable until it is integrated and a quorum has cosigned.
    """
    repository = LogRepository(session, appliance.settings.origin)
    index = repository.index_of(entry)
    note = None if index is None else quorum_note(session, appliance, index + 1)
    if index is None or note is None:
        raise Unavailable(
            "The entry is not yet in a checkpoint that a quorum of sites has cosigned.",
            "Wait for the sites' agents to cosign, then retry.",
        )
    head = TreeHead.parse(Note.parse(note).text)
    reader = tile_store(appliance).reader(head.size)
    hashes = inclusion_proof(index, head.size, reader)
    verify_inclusion(reader(0, index), index, head.size, hashes, head.root)  # damaged tiles prove nothing to anyone
    return TlogProof(index, hashes, note, extra).to_bytes()


def _cosigned_size(recent: list[TreeHead], line: NoteSignature, witness: VerifierKey) -> int:
    for head in recent:
        try:
            verify_cosignature(head, line, witness)
        except BadSignature:
            continue
        return head.size
    raise StaleCosignature(
        "The cosignature is over none of this log's recent checkpoints.", "Fetch the latest checkpoint and cosign it."
    )


def _head(checkpoint: LogCheckpoint) -> TreeHead:
    return TreeHead.parse(Note.parse(checkpoint.note).text)
