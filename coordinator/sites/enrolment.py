"""What is done with sites: invite, enrol, renew, revoke. Each is one transaction with its audit event."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.append import COORDINATOR, LOCAL_ADMINISTRATOR, append, site_label
from coordinator.audit.witnessing import build_policy, set_policy
from coordinator.errors import NotFound
from coordinator.policy.decisions import record
from coordinator.secrets import new_secret
from coordinator.sites.certificate_request import request_key
from coordinator.sites.gate import answer_of, decide_enrolment_gate
from coordinator.sites.repository import SiteRepository
from coordinator.sites.statements import Received, facts_of, keep, receive
from coordinator.sites.states import (
    TokenRefused,
    decide_enrolment,
    decide_invitation,
    decide_renewal,
)
from coordinator.sites.tables import Site, SiteCertificate, SiteDataset
from policies.findings import Decision
from policies.packs import Policy
from protocol.audit_event import EventType
from protocol.canonical import sha256_hex
from protocol.checkpoint import COSIGNER_TYPES
from protocol.enrolment import (
    TOKEN_HOURS,
    DatasetRegistration,
    EnrolmentRequest,
    EnrolmentResponse,
    Token,
    secret_hash,
    witness_name,
)
from protocol.errors import Malformed
from protocol.identifiers import require_name
from protocol.note import VerifierKey
from protocol.signing import VerifyingKey
from protocol.timestamp import timestamp


def invite(session: Session, appliance: Appliance, name: str) -> Token:
    """A one-time token (24 hours) for a new site, one that has not enrolled, or one that was revoked."""
    require_name(name, "The site's name")
    sites, now = SiteRepository(session), appliance.clock()
    site = sites.get(name)
    decide_invitation(name, site.status if site else None)
    if site is None:
        site = Site(name=name, status="invited", invited_at=timestamp(now))
    site.status, site.identity, site.witness, site.node_id = "invited", None, None, None
    site.serial, site.not_after, site.invited_at = None, None, timestamp(now)
    sites.save(site)
    secret = new_secret(appliance.entropy)
    sites.invite(name, secret_hash(secret), timestamp(now + timedelta(hours=TOKEN_HOURS)))
    append(session, appliance, EventType.SITE_INVITED, actor=LOCAL_ADMINISTRATOR, subject=site_label(name))
    return Token(
        kind="site",
        name=name,
        address=appliance.settings.address,
        ca=appliance.keys.authority.fingerprint,
        secret=secret,
    )


@dataclass(frozen=True)
class Examined:
    """An enrolment request that is in order but for the gate's decision."""

    site: Site
    identity: VerifyingKey
    witness: VerifierKey
    received: Received
    papers: dict[str, Any]


@dataclass(frozen=True)
class Enrolled:
    """What came of a request. response: None where the gate is shut."""

    decision: Decision
    response: EnrolmentResponse | None


def examine(session: Session, appliance: Appliance, request: EnrolmentRequest) -> Examined:
    """Everything about a request but the gate: its token, its keys, its statement. Nothing is stored.

    Raises TokenRefused, Refused, Conflict, Malformed or BadSignature.
    """
    sites, now = SiteRepository(session), appliance.clock()
    hashed = secret_hash(request.secret)
    invitation = sites.invitation(hashed)
    site = sites.get(request.site)
    identity = VerifyingKey.from_text(request.identity)
    witness = _witness_key(request.witness, request.site, identity)
    decide_enrolment(
        token_site=invitation.site if invitation else None, used_at=invitation.used_at if invitation else None,
        expires_at=invitation.expires_at if invitation else "", site=request.site,
        status=site.status if site else None, csr_key=request_key(request.csr), identity=identity,
        key_known=sites.key_known(identity.text), witness_known=sites.witness_known(witness.text, identity.text),
        now=now,
    )  # fmt: skip
    if site is None:
        raise RuntimeError("an invitation names a site")
    received = receive(session, appliance, site.name, identity, request.statement.encode())
    papers = facts_of(session, appliance, received, key_age_days=0)
    return Examined(site, identity, witness, received, papers)


def enrol(session: Session, appliance: Appliance, policy: Policy, request: EnrolmentRequest) -> Enrolled:
    """Enrol a site: its key becomes its identity, its witness joins the policy, it gets a 7-day certificate.

    Where the gate is shut the decision is logged and returned, nothing else is stored and the token stays good: the
    caller raises EnrolmentDenied after the commit. Raises what `examine` raises; then nothing is stored at all.
    """
    sites, now = SiteRepository(session), appliance.clock()
    examined = examine(session, appliance, request)
    site, identity, witness = examined.site, examined.identity, examined.witness
    decided = decide_enrolment_gate(appliance, policy, examined.papers, append_ok=True)
    record(session, appliance, decided, actor=COORDINATOR, subject=site_label(site.name))
    decision = decided.decision
    if not decision.allowed:
        return Enrolled(decision, None)
    if not sites.use_invitation(secret_hash(request.secret), timestamp(now)):
        raise TokenRefused("The token has been used already.", "Ask the coordinator's administrator for a new one.")
    site.status, site.identity, site.witness = "active", identity.text, witness.text
    site.enrolled_at = timestamp(now)
    pem = _issue(sites, appliance, site, identity)
    witnesses = build_policy(session, appliance, [row.witness for row in sites.active() if row.witness])
    if witnesses is None:
        raise RuntimeError("an enrolled site has a witness")
    receipt = keep(session, appliance, examined.received)
    entry = append(
        session, appliance, EventType.SITE_ENROLLED, actor=site_label(site.name), subject=site_label(site.name),
        digests={
            "identity": identity.key_id,
            "witness": sha256_hex(witness.text.encode()),
            "certificate": sha256_hex(pem.encode()),
            "witness_policy": witnesses.digest,
        },
        numbers={"witnesses": len(witnesses.witnesses), "quorum": witnesses.quorum},
    )  # fmt: skip
    set_policy(session, appliance, witnesses, entry=entry)
    response = EnrolmentResponse(
        certificate=pem,
        ca=appliance.keys.authority.pem,
        log=witnesses.log.text,
        coordinator=appliance.keys.coordinator.public.text,
        witness_policy=witnesses.to_document(),
        not_after=site.not_after or "",
        poll_seconds=appliance.settings.poll_seconds,
        receipt=receipt,
        warnings=answer_of(decision).warnings,
    )
    return Enrolled(decision, response)


def renew(session: Session, appliance: Appliance, name: str, csr: str) -> tuple[str, str]:
    """A new certificate (PEM, not_after) with a new serial over the site's own key. Raises Refused for another key."""
    sites = SiteRepository(session)
    site = sites.get(name)
    if site is None or site.status != "active":
        raise NotFound(f"There is no active site named {name}.", "Enrol with `cloister-site enrol TOKEN`.")
    key = request_key(csr)
    decide_renewal(key, site.identity)
    pem = _issue(sites, appliance, site, key)
    append(
        session, appliance, EventType.SITE_CERTIFICATE_RENEWED, actor=site_label(name), subject=site_label(name),
        digests={"certificate": sha256_hex(pem.encode())},
    )  # fmt: skip
    return pem, site.not_after or ""


def revoke(session: Session, appliance: Appliance, name: str) -> None:
    """Revoke a site: its next request is refused and its witness counts no more. Raises NotFound."""
    sites = SiteRepository(session)
    site = sites.get(name)
    if site is None:
        raise NotFound(f"There is no site named {name}.", "See `cloister-coordinator sites list`.")
    if site.status == "revoked":
        return
    was_active = site.status == "active"
    site.status, site.node_id = "revoked", None
    sites.save(site)
    sites.revoke_certificates(name, timestamp(appliance.clock()))
    sites.drop_invitations(name)
    policy = build_policy(session, appliance, [row.witness for row in sites.active() if row.witness])
    entry = append(
        session, appliance, EventType.SITE_REVOKED, actor=LOCAL_ADMINISTRATOR, subject=site_label(name),
        digests={"witness_policy": policy.digest} if policy and was_active else {},
    )  # fmt: skip
    if was_active:
        set_policy(session, appliance, policy, entry=entry)


def leave(session: Session, appliance: Appliance, name: str, *, retained: int, decision: str) -> None:
    """A site says that it leaves, and what it still holds; it is revoked with it."""
    append(
        session, appliance, EventType.SITE_LEFT, actor=site_label(name), subject=site_label(name),
        digests={"decision": decision}, numbers={"retained": retained},
    )  # fmt: skip
    revoke(session, appliance, name)


def register_dataset(
    session: Session, appliance: Appliance, site: str, name: str, registration: DatasetRegistration
) -> None:
    """Keep a site's newest snapshot under a name, in place of any earlier one. Raises Malformed for bad counts."""
    require_name(name, "The data set's name")
    if registration.held_out >= registration.patients:
        raise Malformed("More patients are held out than there are.", "Register the data set again.")
    SiteRepository(session).put_dataset(
        SiteDataset(site=site, name=name, registered_at=timestamp(appliance.clock()), **registration.model_dump())
    )
    append(
        session, appliance, EventType.DATASET_REGISTERED, actor=site_label(site), subject=f"dataset:{name}",
        digests={"schema": registration.schema_digest, "snapshot": registration.snapshot},
        numbers={"patients": registration.patients},
    )  # fmt: skip


def _issue(sites: SiteRepository, appliance: Appliance, site: Site, key: VerifyingKey) -> str:
    now = appliance.clock()
    certificate = appliance.keys.authority.issue_site(site.name, key, now=now, entropy=appliance.entropy)
    site.serial, site.not_after = f"{certificate.serial_number:x}", timestamp(certificate.not_valid_after_utc)
    sites.save(site)
    sites.add_certificate(
        SiteCertificate(
            serial=site.serial, site=site.name, identity=key.text, issued_at=timestamp(now), not_after=site.not_after
        )
    )
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def _witness_key(text: str, site: str, identity: VerifyingKey) -> VerifierKey:
    key = VerifierKey.parse(text)
    if key.type not in COSIGNER_TYPES or key.public == identity.raw:
        raise Malformed("The witness key is not a cosigner's own key.", "Enrol with `cloister-site enrol TOKEN`.")
    if key.name != witness_name(site):
        raise Malformed("The witness key bears another site's name.", f"Name it {witness_name(site)}.")
    return key
