"""Enrolment: the one-time token that hospital IT is handed, and the documents that follow.

The token carries the coordinator's address and the CA's fingerprint, so the site checks the coordinator before it
says anything secret, and nothing else has to be typed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from protocol.attestation import MAX_RECORDS, STATEMENT_LIMIT
from protocol.canonical import canonical, parse
from protocol.errors import Malformed
from protocol.identifiers import Digest, Frozen, KeyText, Label, SiteName, Timestamp
from protocol.proposal import MINIMUM_CELL

TOKEN_SECRET_BYTES = 32
TOKEN_HOURS = 24
CERTIFICATE_DAYS = 7
MAX_WITNESS_KEY = 2000  # characters: an ML-DSA-44 vkey under the longest name of a site has 1834
AUDITOR = "/auditor"
SPIFFE_DOMAIN = "cloister"
Kind = Literal["site", "person"]
Address = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.\-\[\]:]{1,255}:[0-9]{1,5}$")]


class Token(Frozen):
    """What an invitation prints. `secret`: 256 bits, base64url; only its hash is stored at the coordinator."""

    kind: Kind
    name: SiteName
    address: Address
    ca: Digest
    secret: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{43}$")]

    def to_text(self) -> str:
        """One line: cloister-<kind>.<base64url of the canonical document>."""
        body = base64.urlsafe_b64encode(canonical(self.model_dump())).decode().rstrip("=")
        return f"cloister-{self.kind}.{body}"

    @staticmethod
    def from_text(text: str) -> Token:
        """Raises Malformed for anything but a whole token."""
        remedy = "Copy the whole line that the invitation printed; ask for a new invitation if it is lost."
        head, _, body = text.strip().partition(".")
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            token = Token.model_validate(parse(data))
        except (binascii.Error, ValidationError, ValueError, Malformed) as error:
            raise Malformed("This is not a Cloister token.", remedy) from error
        if head != f"cloister-{token.kind}":
            raise Malformed("This is not a Cloister token.", remedy)
        return token


def secret_hash(secret: str) -> str:
    """What the coordinator stores of a one-time secret (256 bits of entropy: a plain hash is enough)."""
    return "sha256:" + hashlib.sha256(b"cloister one-time secret\0" + secret.encode()).hexdigest()


def site_uri(site: str) -> str:
    """The URI SAN of a site's certificate (SPIFFE-shaped)."""
    return f"spiffe://{SPIFFE_DOMAIN}/site/{site}"


def witness_name(site: str) -> str:
    """The name of a site's cosigner key: one site, one witness."""
    return f"{site}/witness"


def auditor_witness_name(name: str) -> str:
    """The name of an auditor's cosigner key: no site has it."""
    return f"{name}{AUDITOR}"


class EnrolmentRequest(Frozen):
    """Site -> coordinator. `csr`: PEM, self-signed by the site key made on site; `witness`: the vkey that cosigns
    checkpoints; `identity`: the same Ed25519 key as in the CSR; `statement`: the site's papers, a DSSE envelope under
    that key (protocol.attestation), as its JSON text."""

    secret: str
    site: SiteName
    csr: Annotated[str, StringConstraints(max_length=10_000)]
    identity: KeyText
    witness: Annotated[str, StringConstraints(max_length=MAX_WITNESS_KEY)]
    statement: Annotated[str, StringConstraints(max_length=2 * STATEMENT_LIMIT)]


_Words = Annotated[str, StringConstraints(max_length=2000)]


class Shortcoming(Frozen):
    """Why a gate stays shut, or what it warns of: the rule, where it stands, what is wrong and what to do."""

    rule: Label
    citation: _Words
    message: _Words
    remedy: _Words


class GateAnswer(Frozen):
    """Coordinator -> site: what the enrolment gate says to a site's papers. owed: what keeps it shut, none where it is
    open."""

    open: bool
    owed: Annotated[tuple[Shortcoming, ...], Field(max_length=200)] = ()
    warnings: Annotated[tuple[Shortcoming, ...], Field(max_length=200)] = ()


class StatementReceipt(Frozen):
    """Coordinator -> site: a statement was taken. clock_skew: seconds between the two clocks when it came.
    not_counted: digests of records in it that were revoked here before."""

    made_at: Timestamp
    clock_skew: Annotated[float, Field(ge=0)]
    not_counted: Annotated[tuple[Digest, ...], Field(max_length=MAX_RECORDS)] = ()


class EnrolmentResponse(Frozen):
    """Coordinator -> site: what the site pins. `log`: vkey of the log; `coordinator`: the orchestration key;
    `receipt`: of its statement."""

    certificate: str
    ca: str
    log: str
    coordinator: KeyText
    witness_policy: dict[str, Any]
    not_after: Timestamp
    poll_seconds: Annotated[float, Field(gt=0)] = 1.0
    receipt: StatementReceipt
    warnings: Annotated[tuple[Shortcoming, ...], Field(max_length=200)] = ()


class DatasetRegistration(Frozen):
    """Site -> coordinator: a snapshot by its digest and its counts, which are above the minimum cell."""

    schema_digest: Digest
    snapshot: Digest
    patients: Annotated[int, Field(gt=MINIMUM_CELL, le=1_000_000_000)]
    held_out: Annotated[int, Field(ge=0, le=1_000_000_000)]


def registration_message(secret: str, name: str, key: str) -> bytes:
    """What a person's new key signs to show that whoever holds the one-time secret holds the key too."""
    return b"cloister-register\0" + canonical([secret, name, key])


def session_message(ca: str, name: str, challenge: str) -> bytes:
    """What a person's key signs to sign in. `ca`: the coordinator's CA fingerprint, so that another coordinator
    can't have its own challenge answered here."""
    return b"cloister-session\0" + canonical([ca, name, challenge])
