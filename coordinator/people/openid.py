"""OpenID Connect, the relying party's side: authorization code with PKCE (RFC 7636), state and nonce, and an ID token
that is taken at its word only once signature, issuer, audience, times and nonce hold (OpenID Connect Core 1.0, 3.1).
"""

from __future__ import annotations

import hmac
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from coordinator.people.identity_provider import IdentityProvider
from protocol.canonical import parse
from protocol.errors import CloisterError, Malformed, Refused

ALGORITHMS = ["RS256", "PS256", "ES256", "Ed25519", "EdDSA"]
"""Signatures by the provider's own key: never `none`, and no MAC under a secret that the coordinator holds too."""
MAX_ANSWER = 1 << 20
LEEWAY_SECONDS = 60
SIGNED_IN_WITHIN = 300
"""Seconds within which the provider must have asked the person to prove who they are: somebody else's session that was
left open at the provider is not enough."""


class ProviderRefused(Refused):
    """The provider's answer, or what came back through the browser, can't be relied on."""

    code = "identity-provider-refused"

    def __init__(self, what: str) -> None:
        super().__init__(
            f"Signing in through the identity provider failed: {what}.",
            "Begin again; if it goes on, ask the coordinator's administrator.",
        )


class ProviderUnreachable(CloisterError):
    """The provider does not answer, or not as its protocol says."""

    code = "identity-provider-unreachable"


@dataclass(frozen=True)
class Attempt:
    """What one attempt to sign in must bring back, kept in the browser, sealed: all but `state` stay secret."""

    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True)
class Proved:
    """Whom the provider vouches for. subject: unique at the issuer, and never given to another person (Core, 2)."""

    issuer: str
    subject: str
    multi_factor: bool


def authorization_url(provider: IdentityProvider, attempt: Attempt, redirect: str) -> str:
    """Where the browser goes. Raises ProviderUnreachable, ProviderRefused."""
    address = _text(_discovered(provider), "authorization_endpoint")
    challenge = create_s256_code_challenge(attempt.verifier)
    return str(
        prepare_grant_uri(
            address, provider.client_id, "code", redirect_uri=redirect, scope="openid", state=attempt.state,
            nonce=attempt.nonce, code_challenge=challenge, code_challenge_method="S256", max_age=SIGNED_IN_WITHIN,
        )
    )  # fmt: skip


def prove(
    provider: IdentityProvider, attempt: Attempt, redirect: str, *, state: str, code: str, issuer: str | None, now: int
) -> Proved:
    """Whom the provider vouches for, once its answer to this very attempt is verified. issuer: the answer's `iss`
    (RFC 9207), where it has one. now: seconds. Raises ProviderRefused, ProviderUnreachable."""
    if not hmac.compare_digest(state.encode(), attempt.state.encode()):
        raise ProviderRefused("the answer belongs to another attempt")
    if issuer is not None and issuer != provider.issuer:
        raise ProviderRefused("another provider answered")
    told = _discovered(provider)
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect,
        "code_verifier": attempt.verifier,
    }
    # RFC 6749, 2.3.1: id and secret are form-encoded before they become a user and a password.
    credentials = (quote(provider.client_id, safe=""), quote(provider.secret, safe=""))
    answer = _ask(provider, "POST", _text(told, "token_endpoint"), data=form, auth=credentials)
    keys = _ask(provider, "GET", _text(told, "jwks_uri"))
    return read_id_token(provider, _text(answer, "id_token"), keys, nonce=attempt.nonce, now=now)


def read_id_token(provider: IdentityProvider, text: str, keys: dict[str, Any], *, nonce: str, now: int) -> Proved:
    """What a verified ID token says. Raises ProviderRefused."""
    try:
        token = jwt.decode(text, KeySet.import_key_set(keys), algorithms=ALGORITHMS)  # type: ignore[arg-type]
        claims = CodeIDToken(
            token.claims,
            token.header,
            {
                "iss": {"essential": True, "value": provider.issuer},
                "aud": {"essential": True, "value": provider.client_id},
            },
            {"nonce": nonce, "client_id": provider.client_id, "max_age": SIGNED_IN_WITHIN},
        )
        claims.validate(now=now, leeway=LEEWAY_SECONDS)
    except (JoseError, ValueError, KeyError, TypeError):
        raise ProviderRefused("its token does not hold") from None
    subject, proved_at = claims["sub"], claims["auth_time"]
    if not isinstance(subject, str) or not 1 <= len(subject) <= 255:
        raise ProviderRefused("its token names nobody")
    if not now - SIGNED_IN_WITHIN - LEEWAY_SECONDS <= proved_at <= now + LEEWAY_SECONDS:
        raise ProviderRefused("it did not ask who you are just now")
    methods = claims.get("amr") or []
    return Proved(provider.issuer, subject, any(method in provider.multi_factor for method in methods))


def _discovered(provider: IdentityProvider) -> dict[str, Any]:
    told = _ask(provider, "GET", f"{provider.issuer.rstrip('/')}/.well-known/openid-configuration")
    if told.get("issuer") != provider.issuer:
        raise ProviderRefused("its configuration names another issuer")
    return told


def _ask(provider: IdentityProvider, method: str, address: str, **what: Any) -> dict[str, Any]:
    if not address.startswith("https://"):
        raise ProviderRefused("its configuration names an address without TLS")
    try:
        context = ssl.create_default_context(cafile=provider.ca)
        with httpx.Client(verify=context, trust_env=False, follow_redirects=False, timeout=10) as client:
            answer = client.request(method, address, headers={"accept": "application/json"}, **what)
        if answer.status_code != 200:
            raise ProviderRefused(f"it answered {answer.status_code}")
        document = parse(answer.content, limit=MAX_ANSWER)
    except (httpx.HTTPError, OSError):
        raise ProviderUnreachable(
            "The identity provider does not answer, or not under the expected certificate.",
            "Try again; sign in with your key or your password meanwhile.",
        ) from None
    except Malformed:
        raise ProviderRefused("its answer is not JSON") from None
    if not isinstance(document, dict):
        raise ProviderRefused("its answer is not of the agreed form")
    return document


def _text(document: dict[str, Any], field: str) -> str:
    value = document.get(field)
    if not isinstance(value, str):
        raise ProviderRefused(f"its answer has no {field}")
    return value
