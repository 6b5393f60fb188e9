"""A policy set with the signatures that put it in force, as the coordinator keeps it and shows it to sites.

Whoever holds the coordinator's public key verifies all of it, in order: the coordinator's statement, the set, the
votes under the keys that the statement names, two of them in two roles, and the documents byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from protocol.canonical import canonical, parse, sha256_hex
from protocol.envelope import Envelope, open_json
from protocol.errors import BadSignature, Malformed, VerificationFailed
from protocol.policy_set import (
    ACTIVATING_ROLES,
    MAX_SET_BYTES,
    POLICY_ACTIVATION_TYPE,
    POLICY_SET_TYPE,
    POLICY_VOTE_TYPE,
    REQUIRED_VOTES,
    PolicyActivation,
    PolicySet,
    PolicyVote,
    check_documents,
)
from protocol.signing import VerifyingKey

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class ActivatedPolicy:
    """Built by `verify` alone: every signature in it holds, and the documents are the signed ones."""

    set: PolicySet
    activation: PolicyActivation
    votes: tuple[PolicyVote, ...]
    documents: dict[str, bytes]


def bundle(
    envelope: bytes, votes: Sequence[bytes], activation: bytes, documents: Mapping[str, bytes]
) -> dict[str, Any]:
    """What `read_bundle` reads: envelopes as JSON, documents as text."""
    return {
        "set": parse(envelope),
        "votes": [parse(vote) for vote in votes],
        "activation": parse(activation),
        "documents": {name: data.decode() for name, data in documents.items()},
    }


def read_bundle(data: bytes, coordinator: VerifyingKey) -> ActivatedPolicy:
    """`verify` over a bundle's bytes. Raises Malformed and what `verify` raises."""
    match parse(data, limit=MAX_SET_BYTES):
        case {"set": dict(given), "votes": list(votes), "activation": dict(stated), "documents": dict(texts), **rest}:
            if rest or not all(isinstance(text, str) for text in texts.values()):
                raise _not_agreed()
            documents = {name: str(text).encode() for name, text in texts.items()}
            cast = [canonical(vote) for vote in votes]
            return verify(canonical(given), cast, canonical(stated), documents, coordinator)
    raise _not_agreed()


def verify(
    envelope: bytes,
    votes: Sequence[bytes],
    activation: bytes,
    documents: Mapping[str, bytes],
    coordinator: VerifyingKey,
) -> ActivatedPolicy:
    """Raises BadSignature, Malformed, or VerificationFailed saying what does not hold."""
    opened = Envelope.from_bytes(activation)
    statement = _read(PolicyActivation, _open(opened, POLICY_ACTIVATION_TYPE, coordinator))
    sealed = Envelope.from_bytes(envelope)
    claimed = _read(PolicySet, sealed.payload)
    signer = coordinator
    if claimed.proposer is not None:
        signer = _key(statement, claimed.proposer)
    given = _read(PolicySet, _open(sealed, POLICY_SET_TYPE, signer))
    if (given.digest, given.policy) != (statement.set, statement.policy):
        raise _wrong("the coordinator's statement is about another set")
    if tuple(map(sha256_hex, votes)) != statement.votes:
        raise _wrong("the votes are not those that the coordinator's statement names")
    cast = tuple(_vote(data, statement, given) for data in votes)
    if given.origin == "people":
        _require_two(cast, given, statement)
    elif votes or statement.people:
        raise _wrong("a set that comes with the package has no votes")
    check_documents(given.documents, documents)
    return ActivatedPolicy(given, statement, cast, dict(documents))


def _vote(data: bytes, statement: PolicyActivation, given: PolicySet) -> PolicyVote:
    envelope = Envelope.from_bytes(data)
    claimed = _read(PolicyVote, envelope.payload)
    vote = _read(PolicyVote, _open(envelope, POLICY_VOTE_TYPE, _key(statement, claimed.person)))
    if (vote.set, vote.policy, vote.decision) != (given.digest, given.policy, "activate"):
        raise _wrong(f"the vote of {vote.person} is about another set, or against it")
    if vote.role not in ACTIVATING_ROLES or vote.person == given.proposer:
        raise _wrong(f"{vote.person} may not decide on this set")
    return vote


def _require_two(cast: Sequence[PolicyVote], given: PolicySet, statement: PolicyActivation) -> None:
    distinct = (
        {vote.person for vote in cast},
        {vote.role for vote in cast},
        {statement.people[vote.person] for vote in cast} - {statement.people.get(given.proposer or "")},
    )
    if any(len(members) < REQUIRED_VOTES for members in distinct):
        raise _wrong("two people in two roles, neither the proposer, have not signed for it")


def _open(envelope: Envelope, kind: str, key: VerifyingKey) -> bytes:
    _, verified = open_json(envelope, kind, {key.key_id: key})
    if len(envelope.signatures) != len(verified):
        raise BadSignature("A policy document carries a signature by an unknown key.", "Have it signed anew.")
    return envelope.payload


def _key(statement: PolicyActivation, person: str) -> VerifyingKey:
    if person not in statement.people:
        raise _wrong(f"the statement names no key of {person}")
    return VerifyingKey.from_text(statement.people[person])


def _read(model: type[M], payload: bytes) -> M:
    try:
        return model.model_validate_json(payload)
    except ValidationError:
        raise _not_agreed() from None


def _wrong(why: str) -> VerificationFailed:
    return VerificationFailed(
        f"The policy set does not verify: {why}.", "Decide nothing by it; tell the coordinator's administrator."
    )


def _not_agreed() -> Malformed:
    return Malformed("The policy set is not of the agreed form.", "Update both sides to the same version.")
