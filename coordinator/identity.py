"""Who is calling: a site by its client certificate, a person by a session's token or cookie. Both are looked up in the
database on every request, so a revocation or a disabled account counts from the very next one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, cast
from urllib.parse import parse_qs

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from fastapi import Depends, Request, Response

from coordinator.appliance import Appliance
from coordinator.database import reading, transaction
from coordinator.errors import Forbidden, Unauthenticated
from coordinator.people.accounts import token_hash
from coordinator.people.facts import Actor
from coordinator.people.repository import PersonRepository
from coordinator.people.states import (
    SEEN_EVERY,
    AuthLevel,
    Medium,
    Permission,
    require_not_read_only,
    require_permission,
    require_request_of_ours,
    session_alive,
)
from coordinator.people.tables import Person
from coordinator.sites.repository import SiteRepository
from coordinator.sites.states import SiteFacts, decide_access
from coordinator.sites.tables import Site
from protocol.enrolment import SPIFFE_DOMAIN
from protocol.identifiers import Role
from protocol.timestamp import moment, timestamp

PEER_CERTIFICATE = "cloister.peer_certificate"
"""Key in the ASGI scope: the peer's certificate (DER) that TLS has verified against our CA, or None."""

SESSION_COOKIE = "__Host-cloister-session"
CSRF_HEADER = "x-cloister-csrf"
MAX_FIELDS = 100
_FORM = "application/x-www-form-urlencoded"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
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


@dataclass(frozen=True)
class Caller:
    """A signed-in person and their session. csrf: what a page of ours puts into the field `csrf` of its forms, or into
    the header X-Cloister-CSRF, for each request of this session that changes anything."""

    person: Person
    level: AuthLevel
    medium: Medium
    started_at: str
    token_hash: str
    csrf: str

    @property
    def actor(self) -> Actor:
        """Who asks, for a policy decision."""
        return Actor(self.person, self.level)


async def csrf_shown(request: Request) -> str | None:
    """The token that a browser's request shows, in the header or in a form's field `csrf`."""
    header = request.headers.get(CSRF_HEADER)
    if header is not None or not request.headers.get("content-type", "").startswith(_FORM):
        return header
    fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=MAX_FIELDS)
    return fields.get("csrf", [None])[0]


def signed_in(request: Request, shown: Annotated[str | None, Depends(csrf_shown)]) -> Caller:
    """The active person whose session the caller has shown: a bearer token, or the cookie of a browser, which changes
    nothing without the session's CSRF token. Raises Unauthenticated, Forbidden."""
    appliance = appliance_of(request)
    refused = Unauthenticated("You are not signed in, or the session has ended.", "Run `cloister login`.")
    token, medium = _token(request)
    if not token:
        raise refused
    hashed, now = token_hash(token), appliance.clock()
    with reading(appliance.engine) as session:
        people = PersonRepository(session)
        row = people.session(hashed)
        person = people.get(row.person) if row else None
    # A token counts where it was given: a cookie's value is worth nothing as a bearer token, and the other way round.
    if row is None or person is None or person.status != "active" or row.medium != medium.value:
        raise refused
    if not session_alive(row.started_at, row.seen_at, now=now):
        raise refused
    csrf = csrf_token(appliance, hashed)
    if medium is Medium.BROWSER and request.method not in _SAFE:
        require_request_of_ours(
            shown=shown, expected=csrf, origin=request.headers.get("origin"), host=request.headers.get("host", "")
        )
    if now - moment(row.seen_at) >= SEEN_EVERY:
        with transaction(appliance.engine) as session:
            PersonRepository(session).touch_session(hashed, timestamp(now))
    return Caller(person, AuthLevel(row.level), medium, row.started_at, hashed, csrf)


def csrf_token(appliance: Appliance, hashed: str) -> str:
    """What a page of the session with this token hash shows to prove that it is ours: a MAC, so nothing is stored."""
    return hmac.new(appliance.keys.challenge_secret, b"cloister csrf\0" + hashed.encode(), hashlib.sha256).hexdigest()


def set_session_cookie(response: Response, token: str) -> None:
    """Give a browser its session: a cookie of this host alone, over TLS, that no script reads and no other site's page
    sends along. It ends with the browser; the coordinator ends it when it is idle."""
    response.set_cookie(SESSION_COOKIE, token, secure=True, httponly=True, samesite="strict", path="/")


def clear_session_cookie(response: Response) -> None:
    """Take it back."""
    response.delete_cookie(SESSION_COOKIE, secure=True, httponly=True, samesite="strict", path="/")


def _token(request: Request) -> tuple[str, Medium]:
    header = request.headers.get("authorization")
    if header is None:
        return request.cookies.get(SESSION_COOKIE, ""), Medium.BROWSER
    scheme, _, token = header.partition(" ")
    return token if scheme.lower() == "bearer" else "", Medium.COMMAND_LINE


CallerOf = Annotated[Caller, Depends(signed_in)]


def may(*permissions: Permission) -> Callable[[Caller], Person]:
    """A dependency: the signed-in person, whose role must have one of the permissions (people.states.PERMISSIONS)."""

    def person(caller: CallerOf) -> Person:
        require_permission(caller.person.role, *permissions)
        return caller.person

    return person


def current_person(*roles: Role) -> Callable[[Request, Caller], Person]:
    """A dependency: the signed-in person, who must hold one of `roles` when any is given, and no role that only reads
    where the request changes something and none is given. Raises Forbidden."""

    def person(request: Request, caller: CallerOf) -> Person:
        if not roles and request.method not in _SAFE:
            require_not_read_only(caller.person.role)
        if roles and caller.person.role not in {role.value for role in roles}:
            needed = " or ".join(role.value for role in roles)
            raise Forbidden(
                f"This needs the role {needed}; you are a {caller.person.role}.", "Ask someone in that role."
            )
        return caller.person

    return person


CurrentSite = Annotated[Site, Depends(current_site)]
AnyPerson = Annotated[Person, Depends(current_person())]
