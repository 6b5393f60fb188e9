"""How the policy in force changes: the package's set at the beginning, then proposals and the votes on them."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import COORDINATOR, append, person_label
from coordinator.errors import Conflict
from coordinator.people.tables import Person
from coordinator.policy.active import active_set, set_of
from coordinator.policy.repository import PolicyRepository
from coordinator.policy.states import (
    PolicyRefused,
    Proposal,
    SetState,
    Vote,
    admit,
    admit_proposal,
    outcome,
)
from coordinator.policy.tables import PolicySetRow, PolicyVoteRow
from policies.packs import SHARED, builtin_packs, policy_from
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.envelope import Envelope, open_json, seal
from protocol.errors import Malformed
from protocol.identifiers import Role
from protocol.policy_set import (
    CASES,
    MAX_SET_BYTES,
    POLICY_ACTIVATION_TYPE,
    POLICY_SET_TYPE,
    POLICY_VOTE_TYPE,
    PolicyActivation,
    PolicySet,
    PolicyVote,
    check_documents,
)
from protocol.signing import VerifyingKey
from protocol.timestamp import timestamp

MAX_REASON = 2000


def begin_with_package(session: Session, appliance: Appliance) -> PolicySetRow:
    """Put the documents of the installed package in force on a new coordinator: the safe default, which needs nobody.
    The coordinator's key states where they come from."""
    documents = builtin_packs()
    now, key = timestamp(appliance.clock()), appliance.keys.coordinator
    given = PolicySet(
        origin="package",
        coordinator=appliance.settings.name,
        number=1,
        previous=None,
        documents={name: sha256_hex(data) for name, data in documents.items()},
        proposer=None,
        proposed_at=now,
    )
    row = PolicySetRow(
        digest=given.digest,
        policy=given.policy,
        number=1,
        state=SetState.PROPOSED.value,
        proposer_key=key.public.text,
        envelope=seal(POLICY_SET_TYPE, given.model_dump(mode="json"), key).to_bytes(),
        proposed_at=now,
    )
    PolicyRepository(session).add(row, documents)
    _activate(session, appliance, row, given, people={}, votes=[], actor=COORDINATOR)
    return row


def propose(
    session: Session, appliance: Appliance, person: Person, *, envelope: bytes, documents: Mapping[str, bytes]
) -> PolicySetRow:
    """Keep a set that this person signed, to be decided by two others.

    Raises PolicyRefused for a role that does not propose, BadSignature, Malformed, BadPolicyDocument or BadParameter
    for documents that do not compile, Conflict for a set that does not follow the one in force.
    """
    admit_proposal(Role(person.role))
    key = _key_of(person)
    opened = Envelope.from_bytes(envelope, limit=MAX_SET_BYTES)
    open_json(opened, POLICY_SET_TYPE, {key.key_id: key})
    given = _read_set(opened)
    if given.proposer != person.name or given.coordinator != appliance.settings.name or len(opened.signatures) != 1:
        raise PolicyRefused("The set is signed for somebody or somewhere else.", "Propose it with your own account.")
    check_documents(given.documents, documents)
    _require_whole(given, documents)
    sets, current = PolicyRepository(session), active_set(session, appliance).set
    if (given.previous, given.number) != (current.digest, current.number + 1):
        raise Conflict("The set does not follow the one in force.", "Propose it again: another one came into force.")
    if given.policy == current.policy:
        raise Conflict("These documents decide already.", "Propose documents that differ from those in force.")
    if sets.exists(given.digest):
        raise Conflict("This very set was proposed before.", "See `cloister policy list`.")
    row = PolicySetRow(
        digest=given.digest,
        policy=given.policy,
        number=given.number,
        state=SetState.PROPOSED.value,
        proposer=person.name,
        proposer_key=key.text,
        envelope=envelope,
        proposed_at=timestamp(appliance.clock()),
    )
    sets.add(row, documents)
    append(
        session,
        appliance,
        EventType.PACKS_PROPOSED,
        actor=person_label(appliance, person.name),
        subject=appliance.settings.name,
        digests={"set": row.digest, "policy": given.policy, "previous": current.digest},
        numbers={"number": row.number},
        labels={"role": person.role},
    )
    return row


def decide(
    session: Session, appliance: Appliance, person: Person, digest: str, *, envelope: bytes, reason: str
) -> PolicySetRow:
    """Record one signed vote; the second one in favour, by another person in another role, puts the set in force.

    Raises PolicyRefused, BadSignature or Malformed. `reason` is erasable: the log holds its salted hash.
    """
    sets = PolicyRepository(session)
    row = sets.get(digest)
    key = _key_of(person)
    vote = _read_vote(Envelope.from_bytes(envelope), key)
    if (vote.person, vote.role.value) != (person.name, person.role):
        raise PolicyRefused("The decision is signed for another person or role.", "Sign your own decision.")
    if not 1 <= len(reason) <= MAX_REASON or sha256_hex(reason.encode()) != vote.reason_hash:
        raise Malformed("The reason is missing, too long or not the one that was signed.", "Give --reason in words.")
    given, proposal = set_of(row), _proposal(row)
    if vote.policy != given.policy:
        raise PolicyRefused(
            "The decision is signed over other documents.", "Read the set again and sign what it shows."
        )
    current = sets.active()
    activate = vote.decision == "activate"
    mine = Vote(person.name, vote.role, key.text, person.registered_at or "9999", vote.set, activate)
    cast = [_vote(earlier) for earlier in sets.votes(digest)]
    admit(mine, cast, proposal, state=SetState(row.state), active=current.digest if current else None)
    sets.save(
        PolicyVoteRow(
            set_digest=digest,
            person=mine.person,
            role=mine.role.value,
            key=mine.key,
            registered_at=mine.registered_at,
            activate=activate,
            envelope=envelope,
            decided_at=timestamp(appliance.clock()),
        )
    )
    append(
        session,
        appliance,
        EventType.PACKS_APPROVED if activate else EventType.PACKS_REJECTED,
        actor=person_label(appliance, person.name),
        subject=appliance.settings.name,
        digests={"set": row.digest, "policy": given.policy},
        labels={"role": person.role},
        payload={"reason": reason, "person": person.name},
    )
    match outcome([*cast, mine], proposal):
        case SetState.ACTIVE:
            people = {mine.person: mine.key} | {other.person: other.key for other in cast}
            people[proposal.proposer] = proposal.proposer_key
            votes = [earlier.envelope for earlier in sets.votes(digest)]
            _activate(session, appliance, row, given, people=people, votes=votes, actor=_label(appliance, person))
        case SetState.REJECTED:
            row.state = SetState.REJECTED.value
            sets.save(row)
    return row


def _activate(
    session: Session,
    appliance: Appliance,
    row: PolicySetRow,
    given: PolicySet,
    *,
    people: Mapping[str, str],
    votes: list[bytes],
    actor: str,
) -> None:
    sets, now = PolicyRepository(session), timestamp(appliance.clock())
    for other in sets.all():
        if other.digest != row.digest and SetState(other.state) in (SetState.ACTIVE, SetState.PROPOSED):
            was_active = other.state == SetState.ACTIVE.value
            other.state = SetState.SUPERSEDED.value if was_active else SetState.STALE.value
            sets.save(other)
    statement = PolicyActivation(
        set=given.digest,
        policy=given.policy,
        people=dict(people),
        votes=tuple(map(sha256_hex, votes)),
        activated_at=now,
    )
    sealed = seal(POLICY_ACTIVATION_TYPE, statement.model_dump(mode="json"), appliance.keys.coordinator).to_bytes()
    row.state, row.activation, row.activated_at = SetState.ACTIVE.value, sealed, now
    sets.save(row)
    append(
        session,
        appliance,
        EventType.PACKS_ACTIVATED,
        actor=actor,
        subject=appliance.settings.name,
        digests={"set": given.digest, "policy": given.policy, "activation": sha256_hex(sealed)},
        numbers={"number": given.number},
        labels={"origin": given.origin},
    )


def _require_whole(given: PolicySet, documents: Mapping[str, bytes]) -> None:
    """Each pack stands under its own name, has cases, and all of it compiles."""
    policy = policy_from(dict(documents))
    names = {name for name in documents if not name.startswith(CASES)} - set(SHARED)
    if names != {pack.id for pack in policy.packs} or policy.digest != given.policy:
        raise Malformed("A pack does not stand under its own name.", "Name each file after the pack in it.")
    without = sorted(pack.id for pack in policy.packs if CASES + pack.id not in documents)
    if without:
        raise Malformed(f"These packs have no cases: {', '.join(without)}.", "Add cases/<pack>.yaml.")


def _read_set(envelope: Envelope) -> PolicySet:
    try:
        return PolicySet.model_validate_json(envelope.payload)
    except ValidationError:
        raise Malformed("The set is not of the agreed form.", "Update the command line tool.") from None


def _read_vote(envelope: Envelope, key: VerifyingKey) -> PolicyVote:
    _, verified = open_json(envelope, POLICY_VOTE_TYPE, {key.key_id: key})
    try:
        vote = PolicyVote.model_validate_json(envelope.payload)
    except ValidationError:
        raise Malformed("The decision is not of the agreed form.", "Update the command line tool.") from None
    if len(envelope.signatures) != len(verified):
        raise PolicyRefused("The decision carries a signature by an unknown key.", "Sign it with your own key alone.")
    return vote


def _proposal(row: PolicySetRow) -> Proposal:
    return Proposal(row.digest, row.proposer or "", row.proposer_key, row.proposed_at, set_of(row).previous)


def _vote(row: PolicyVoteRow) -> Vote:
    return Vote(row.person, Role(row.role), row.key, row.registered_at, row.set_digest, row.activate)


def _key_of(person: Person) -> VerifyingKey:
    if person.key is None:
        raise PolicyRefused(f"{person.name} has no registered key.", "Run `cloister login` with a new invitation.")
    return VerifyingKey.from_text(person.key)


def _label(appliance: Appliance, person: Person) -> str:
    return person_label(appliance, person.name)
