"""A set of policy documents (fact catalogue, parameters, packs, their cases) and who put it in force.

The chain of sets is numbered and each names the one before it, so that an approval of one set is worth nothing for
another, and an earlier one can't be put back without two people saying so again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from protocol.canonical import digest, sha256_hex
from protocol.errors import VerificationFailed
from protocol.identifiers import Digest, Frozen, KeyText, Label, PersonName, Role, Timestamp

POLICY_SET_TYPE = "application/vnd.cloister.policy-set+json"
POLICY_VOTE_TYPE = "application/vnd.cloister.policy-vote+json"
POLICY_ACTIVATION_TYPE = "application/vnd.cloister.policy-activation+json"

REQUIRED_VOTES = 2
MAX_DOCUMENTS = 60
MAX_SET_BYTES = 4 << 20
CASES = "cases/"
ACTIVATING_ROLES = frozenset({Role.COMPLIANCE_OFFICER, Role.CLINICAL_LEAD})
"""A set comes into force when two people in these two roles have signed for it."""
PROPOSING_ROLES = frozenset({Role.COMPLIANCE_OFFICER, Role.CLINICAL_LEAD, Role.ADMINISTRATOR})

DocumentName = Annotated[str, StringConstraints(pattern=r"^(cases/)?[a-z][a-z0-9_-]{1,39}$")]


class PolicySet(Frozen):
    """What is put in force, by digest. Signed by its proposer's own key; a coordinator's first set (number 1, of origin
    "package": the documents that its installed package ships) by the coordinator's key, since nobody proposes it.

    documents: each document's name to the digest of its bytes; `organisation` holds the organisation's own values of
    the parameters. previous: the digest of the set that this one replaces.
    """

    version: Literal[1] = 1
    origin: Literal["package", "people"]
    coordinator: Label
    number: Annotated[int, Field(ge=1)]
    previous: Digest | None
    documents: Annotated[dict[DocumentName, Digest], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    proposer: PersonName | None
    proposed_at: Timestamp

    @model_validator(mode="after")
    def _coherent(self) -> PolicySet:
        first = self.number == 1
        if first != (self.previous is None) or first != (self.origin == "package") or first != (self.proposer is None):
            raise ValueError("the first set, and no other, comes with the package and replaces none")
        return self

    @property
    def digest(self) -> str:
        """What is signed for."""
        return digest(self.model_dump(mode="json"))

    @property
    def policy(self) -> str:
        """The digest of what decides: see `policy_digest`."""
        return policy_digest(deciding(self.documents))


class PolicyVote(Frozen):
    """One person's decision on a set, signed with their registered key. reason_hash: of words that can be erased."""

    set: Digest
    policy: Digest
    person: PersonName
    role: Role
    decision: Literal["activate", "reject"]
    reason_hash: Digest
    signed_at: Timestamp


class PolicyActivation(Frozen):
    """Signed by the coordinator's key: since when a set is in force, and under which keys its people signed.

    people: everybody who signed, the proposer among them, to their key; empty for a package's set. votes: digests of
    the votes' envelopes.
    """

    set: Digest
    policy: Digest
    people: dict[PersonName, KeyText]
    votes: tuple[Digest, ...]
    activated_at: Timestamp


def deciding(documents: Mapping[str, str]) -> dict[str, str]:
    """Those of a set's documents that decide: all but the cases, which only try them."""
    return {name: value for name, value in documents.items() if not name.startswith(CASES)}


def policy_digest(documents: Mapping[str, str]) -> str:
    """One digest over the digests of all documents that decide, by name."""
    return digest(dict(documents))


def check_documents(named: Mapping[str, str], documents: Mapping[str, bytes]) -> None:
    """Raises VerificationFailed unless `documents` are exactly the named ones, byte for byte."""
    found = {name: sha256_hex(data) for name, data in documents.items()}
    if found != dict(named):
        wrong = sorted(name for name in found.keys() | named.keys() if found.get(name) != named.get(name))
        raise VerificationFailed(
            f"These policy documents are not those of the signed set: {', '.join(wrong)[:200]}.",
            "Nothing is decided by them. Find out who changed them, and restore the set's own documents.",
        )
