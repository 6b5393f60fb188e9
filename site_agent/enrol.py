"""Enrolment: from a one-time token to a home folder that trusts one coordinator, and is trusted by it.

Nothing but the request for the CA is sent before the CA's fingerprint has been compared with the token's; the secret
goes out only over TLS that this CA vouches for. The home appears whole, by one rename, or not at all.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import ssl
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from protocol.attestation import SiteStatement, make_statement, seal_statement
from protocol.enrolment import EnrolmentRequest, EnrolmentResponse, GateAnswer, Token
from protocol.errors import CloisterError, VerificationFailed
from protocol.note import VerifierKey
from protocol.timestamp import timestamp
from protocol.witness_policy import WitnessPolicy
from site_agent.certificates import Issued, certificate_authority, check_issued, request_certificate
from site_agent.clock import Clock
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import create_database, transaction
from site_agent.durable_files import PRIVATE_FOLDER, sync_folder, write_durably
from site_agent.evidence.files import WholePapers, read_papers
from site_agent.evidence.record import attest, import_records
from site_agent.evidence.statement import keep_receipt, statement_now
from site_agent.keystore import SiteKeys, trusting
from site_agent.settings import SiteDocument, SiteHome
from site_agent.witness.names import own_witness
from site_agent.witness.tables import AcceptedWitnessPolicy

_Answer = TypeVar("_Answer")


class EnrolmentRefused(CloisterError):
    """This token or this folder can't be used."""

    code = "enrolment-refused"


@dataclass(frozen=True)
class Enrolled:
    """What a new home trusts, for a person to read."""

    home: SiteHome
    site: str
    address: str
    identity: str
    not_after: str
    witnesses: int
    quorum: int
    warnings: tuple[str, ...] = ()


def enrol(token_text: str, home: SiteHome, clock: Clock, papers: Path, *, witness_key: str = "ed25519") -> Enrolled:
    """Enrol this machine as the token's site, into `home`, which must not exist or be an empty folder. papers: the YAML
    file with what the hospital attests and has on record (site_agent.evidence.files).

    witness_key: what cosigns the log, ed25519 or ml-dsa-44 (FIPS 204).
    Raises EnrolmentRefused for a person's token and a folder in use, Malformed for what is no token or no papers,
    VerificationFailed when the coordinator is not the token's or its answer does not hold together, the client's
    errors (a used token and a shut gate are CoordinatorRefused) and OSError. After any of them the home is as it was.
    """
    token, told = _token(token_text), _papers(papers, token_text)
    _refuse_occupied(home)
    ca = _fetch_authority(token)
    with _staging(home) as staged:
        keys = SiteKeys.generate(staged.keys, witness=witness_key)
        write_durably(keys.ca_path, ca.public_bytes(serialization.Encoding.PEM))
        engine = create_database(staged.database)
        try:
            with transaction(engine) as session:
                import_records(session, token.name, told.records, now=clock())
                attest(session, told.safeguards, now=clock())
                made = statement_now(session, token.name, token.ca, now=clock())
            answer = _ask(token, keys, made, CoordinatorClient.enrol)
            issued, policy = _check(answer, token, keys, now=clock())
            write_durably(keys.certificate_path, answer.certificate.encode())
            with transaction(engine) as session:
                row = AcceptedWitnessPolicy(
                    policy_json=policy.to_bytes().decode(), digest=policy.digest, accepted_at=timestamp(clock())
                )
                session.add(row)
                keep_receipt(session, made, answer.receipt)
        finally:
            engine.dispose()
        document = SiteDocument(
            site=token.name,
            address=token.address,
            log=answer.log,
            coordinator=answer.coordinator,
            poll_seconds=answer.poll_seconds,
        )
        write_durably(staged.settings, document.to_toml().encode())
        os.replace(staged.path, home.path)
    sync_folder(home.path.parent)
    return Enrolled(
        home=home,
        site=token.name,
        address=token.address,
        identity=keys.identity.public.text,
        not_after=timestamp(issued.not_after),
        witnesses=len(policy.witnesses),
        quorum=policy.quorum,
        warnings=tuple(f"{item.rule}: {item.message} {item.remedy}" for item in answer.warnings),
    )


def check(token_text: str, clock: Clock, papers: Path) -> GateAnswer:
    """What the coordinator's enrolment gate says to these papers: with keys that are made for the question and thrown
    away. Nothing is kept on either side, and the token stays good. Raises as `enrol`."""
    token, told = _token(token_text), _papers(papers, token_text)
    with tempfile.TemporaryDirectory() as folder:
        keys = SiteKeys.generate(Path(folder) / "keys")
        write_durably(keys.ca_path, _fetch_authority(token).public_bytes(serialization.Encoding.PEM))
        attestation = told.safeguards.attested(clock().date())
        records = [record for record in told.records if record.scope == "site"]
        made = make_statement(token.name, token.ca, attestation, records, now=clock())
        return _ask(token, keys, made, CoordinatorClient.check_enrolment)


def _token(text: str) -> Token:
    token = Token.from_text(text)
    if token.kind != "site":
        raise EnrolmentRefused("This token is for a person, not for a site.", "Use it with cloister login.")
    return token


def _papers(file: Path, token_text: str) -> WholePapers:
    return read_papers(file, _token(token_text).name).whole()


def _refuse_occupied(home: SiteHome) -> None:
    if home.path.is_symlink() or (home.path.exists() and not _is_empty_folder(home)):
        raise EnrolmentRefused(
            f"{home.path} is already in use.",
            "Choose another folder with --home, or move this one away: it may hold a site's keys and ledger.",
        )


def _is_empty_folder(home: SiteHome) -> bool:
    return home.path.is_dir() and not any(home.path.iterdir())


def _fetch_authority(token: Token) -> x509.Certificate:
    """The CA that the token names, fetched from whoever answers at its address."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.minimum_version = ssl.TLSVersion.TLSv1_3
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE  # the fingerprint decides, before anything else is said
    with CoordinatorClient.with_context(token.address, anybody) as client:
        return certificate_authority(client.ca(), token.ca)


def _ask(
    token: Token,
    keys: SiteKeys,
    statement: SiteStatement,
    ask: Callable[[CoordinatorClient, EnrolmentRequest], _Answer],
) -> _Answer:
    request = EnrolmentRequest(
        secret=token.secret,
        site=token.name,
        csr=request_certificate(token.name, keys.identity),
        identity=keys.identity.public.text,
        witness=own_witness(token.name, keys).text,
        statement=seal_statement(statement, keys.identity).decode(),
    )
    with CoordinatorClient.with_context(token.address, trusting(keys.ca_path)) as client:
        return ask(client, request)


def _check(answer: EnrolmentResponse, token: Token, keys: SiteKeys, *, now: datetime) -> tuple[Issued, WitnessPolicy]:
    """What the answer says, once it holds together."""
    certificate_authority(answer.ca.encode(), token.ca)
    issued = check_issued(answer.certificate, keys.ca_path.read_bytes(), token.name, keys.identity.public, now=now)
    policy = WitnessPolicy.from_document(answer.witness_policy)
    if policy.log != VerifierKey.parse(answer.log):
        raise VerificationFailed(
            "The witness policy is of another log than the coordinator's.",
            "Report it to the coordinator's administrator.",
        )
    if own_witness(token.name, keys) not in policy.witnesses:
        raise VerificationFailed(
            "The witness policy leaves this site out.", "Report it to the coordinator's administrator."
        )
    return issued, policy


@contextlib.contextmanager
def _staging(home: SiteHome) -> Iterator[SiteHome]:
    """A private folder beside the home, removed unless it was renamed away."""
    home.path.parent.mkdir(parents=True, exist_ok=True)
    staged = SiteHome(home.path.with_name(f".{home.path.name}.enrolling-{secrets.token_hex(6)}"))
    staged.path.mkdir(mode=PRIVATE_FOLDER)
    try:
        for folder in (staged.keys, staged.snapshots, staged.mirror, staged.releases):
            folder.mkdir(mode=PRIVATE_FOLDER)
        yield staged
    finally:
        shutil.rmtree(staged.path, ignore_errors=True)
