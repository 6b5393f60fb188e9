"""Who is calling: a site by its client certificate, a person by a session token. Both are looked up in the database on
every request, so a revocation or a disabled account counts from the very next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, cast

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from fastapi import Depends, Request

from coordinator.appliance import Appliance
from coordinator.database import reading, transaction
from coordinator.errors import Forbidden, Unauthenticated
from coordinator.people.accounts import token_hash
from coordinator.people.repository import PersonRepository
from coordinator.people.states import SEEN_EVERY, session_alive
from coordinator.people.tables import Person
from coordinator.sites.repository import SiteRepository
from coordinator.sites.states import SiteFacts, decide_access
from coordinator.sites.tables import Site
from protocol.enrolment import SPIFFE_DOMAIN
from protocol.identifiers import Role
from protocol.timestamp import moment, timestamp

PEER_CERTIFICATE = "cloister.peer_certificate"
"""Key in the ASGI scope: the peer's certificate (DER) that TLS has verified against our CA, or None."""

_SITE_URI = f"spiffe://{SPIFFE_DOMAIN}/site/"


def appliance_of(request: Request) -> Appliance:
    """The appliance that this application serves."""
    return cast(Appliance, request.app.state.appliance)


ApplianceOf = Annotated[Appliance, Depends(appliance_of)]


def current_site(request: Request) -> Site:
    """The active site whose unrevoked, unexpired certificate the caller has shown.

    Raises Unauthenticated without a certificate of a site, Forbidden for one that counts no more.
    """
    appliance = appliance_of(request)
    der = request.scope.get(PEER_CERTIFICATE)
    if not isinstance(der, bytes):
        raise Unauthenticated("This needs a site's client certificate.", "Enrol with `cloister-site enrol TOKEN`.")
    name, serial, key = read_certificate(der)
    with reading(appliance.engine) as session:
        sites = SiteRepository(session)
        site, certificate = sites.get(name), sites.certificate(serial)
        facts = SiteFacts.of(site, certificate, shown_key=key)
        decide_access(facts, now=appliance.clock())
    if site is None:
        raise Forbidden("This site is not enrolled here.", "Enrol with `cloister-site enrol TOKEN`.")
    return site


def read_certificate(der: bytes) -> tuple[str, str, bytes]:
    """(site, serial in hex, raw public key) of a client certificate. Raises Unauthenticated for any other kind."""
    refused = Unauthenticated("The client certificate is not a site's.", "Use the certificate from the enrolment.")
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        key = certificate.public_key().public_bytes_raw()  # type: ignore[union-attr]  # only Ed25519 is ever issued
    except (ValueError, x509.InvalidVersion, x509.ExtensionNotFound, AttributeError):
        raise refused from None
    uris = [name.value for name in names]
    if list(usages) != [ExtendedKeyUsageOID.CLIENT_AUTH] or len(uris) != 1 or not str(uris[0]).startswith(_SITE_URI):
        raise refused
    return str(uris[0])[len(_SITE_URI) :], f"{certificate.serial_number:x}", key


def signed_in(request: Request) -> Person:
    """The active person whose session token the caller has shown. Raises Unauthenticated."""
    appliance = appliance_of(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    refused = Unauthenticated("You are not signed in, or the session has ended.", "Run `cloister login`.")
    if scheme.lower() != "bearer" or not token:
        raise refused
    hashed, now = token_hash(token), appliance.clock()
    with reading(appliance.engine) as session:
        people = PersonRepository(session)
        row = people.session(hashed)
        person = people.get(row.person) if row else None
    if row is None or person is None or person.status != "active":
        raise refused
    if not session_alive(row.started_at, row.seen_at, now=now):
        raise refused
    if now - moment(row.seen_at) >= SEEN_EVERY:
        with transaction(appliance.engine) as session:
            PersonRepository(session).touch_session(hashed, timestamp(now))
    return person


def current_person(*roles: Role) -> Callable[[Request], Person]:
    """A dependency: the signed-in person, who must hold one of `roles` when any is given. Raises Forbidden."""

    def person(request: Request) -> Person:
        caller = signed_in(request)
        if roles and caller.role not in {role.value for role in roles}:
            needed = " or ".join(role.value for role in roles)
            raise Forbidden(f"This needs the role {needed}; you are a {caller.role}.", "Ask someone in that role.")
        return caller

    return person


CurrentSite = Annotated[Site, Depends(current_site)]
AnyPerson = Annotated[Person, Depends(current_person())]
