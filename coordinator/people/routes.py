"""HTTP for people: register a key or a password, sign in by either, sign out.

A command line gets a session's token, a browser a cookie (`browser: true`) and the token that its forms must show.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import Field, SecretStr, StringConstraints

from coordinator import problems
from coordinator.appliance import Appliance
from coordinator.database import reading, transaction
from coordinator.errors import Forbidden, NotFound
from coordinator.identity import ApplianceOf, CallerOf, clear_session_cookie, csrf_token, may, set_session_cookie
from coordinator.people import accounts, federated_sign_in, local_sign_in, openid, reviews
from coordinator.people.challenge import make_challenge
from coordinator.people.repository import PersonRepository
from coordinator.people.states import Medium, Permission, require_fresh, same_origin
from coordinator.people.tables import Person
from coordinator.policy.active import active_policy
from protocol.enrolment import secret_hash
from protocol.errors import Malformed
from protocol.identifiers import Frozen, KeyText, PersonName

router = APIRouter(prefix="/v1/people", tags=["people"])
problems.register(openid.ProviderUnreachable, 503)
_Reader = Annotated[Person, Depends(may(Permission.READ_PEOPLE))]
_Certifier = Annotated[Person, Depends(may(Permission.CERTIFY_PEOPLE))]
_Disabler = Annotated[Person, Depends(may(Permission.DISABLE_PEOPLE))]
_Secret = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{43}$")]
ATTEMPT_COOKIE = "__Host-cloister-attempt"
_Echo = Annotated[str, Query(max_length=2000)]
_Code = Annotated[str, StringConstraints(pattern=r"^[0-9]{6}$")]
_Signature = Annotated[str, Field(max_length=100)]


class Registration(Frozen):
    """`proof`: base64 of the key's signature over `registration_message`."""

    secret: _Secret
    name: PersonName
    key: KeyText
    proof: _Signature


class ChallengeRequest(Frozen):
    name: PersonName


class SignIn(Frozen):
    """`signature`: base64 of the key's signature over `session_message`."""

    name: PersonName
    challenge: Annotated[str, Field(max_length=200)]
    signature: _Signature


class Password(Frozen):
    """A new password of somebody who is signed in."""

    password: Annotated[SecretStr, Field(max_length=1000)]


class InvitedPassword(Password):
    """A new password of somebody who has a one-time token."""

    secret: _Secret
    name: PersonName


class Code(Frozen):
    """A one-time code."""

    code: _Code


class InvitedCode(Code):
    """The code that confirms an invited person's password."""

    secret: _Secret
    name: PersonName


class Certification(Frozen):
    """`shared`: the account was found to be used by others too."""

    shared: bool = False


class LocalSignIn(Password, Code):
    """Password and code. `browser`: answer with a cookie instead of a token."""

    name: PersonName
    browser: bool = False


@router.post("/register", status_code=201)
def register(body: Registration, appliance: ApplianceOf) -> dict[str, str]:
    with transaction(appliance.engine) as session:
        person = accounts.register(
            session, appliance, secret=body.secret, name=body.name, key=body.key, proof=_bytes(body.proof)
        )
    return {"name": person.name, "role": person.role}


@router.post("/challenge")
def challenge(body: ChallengeRequest, appliance: ApplianceOf) -> dict[str, str]:
    # Anyone may ask for any name: the answer is alike for a name that does not exist, and nothing is stored.
    text = make_challenge(
        appliance.keys.challenge_secret, body.name, now=appliance.clock(), nonce=appliance.entropy(16)
    )
    return {"challenge": text}


@router.post("/session", status_code=201)
def sign_in(body: SignIn, appliance: ApplianceOf) -> dict[str, str]:
    with transaction(appliance.engine) as session:
        token = accounts.sign_in(
            session, appliance, name=body.name, challenge=body.challenge, signature=_bytes(body.signature)
        )
        person = PersonRepository(session).get(body.name)
    if person is None:
        raise NotFound("There is no such person.", "Ask the coordinator's administrator.")
    return {"token": token, "name": person.name, "role": person.role}


@router.post("/register-password")
def register_password(body: InvitedPassword, appliance: ApplianceOf) -> dict[str, str]:
    """What an authenticator app needs; the account is active once a code is shown at …/confirm."""
    invitation = secret_hash(body.secret)
    made = local_sign_in.begin(appliance, body.name, body.password.get_secret_value(), invitation=invitation)
    return {"secret": made.secret, "uri": made.uri}


@router.post("/register-password/confirm", status_code=201)
def confirm_registration(body: InvitedCode, appliance: ApplianceOf) -> dict[str, str]:
    with transaction(appliance.engine) as session:
        person = local_sign_in.confirm(session, appliance, body.name, body.code, invitation=secret_hash(body.secret))
    return {"name": person.name, "role": person.role}


@router.post("/local-session", status_code=201)
def sign_in_locally(body: LocalSignIn, appliance: ApplianceOf, request: Request, response: Response) -> dict[str, str]:
    if not same_origin(request.headers.get("origin"), request.headers.get("host", "")):
        raise Forbidden("The request does not come from a page of this coordinator.", "Sign in at its own address.")
    medium = Medium.BROWSER if body.browser else Medium.COMMAND_LINE
    person, token = local_sign_in.sign_in(appliance, body.name, body.password.get_secret_value(), body.code, medium)
    told = {"name": person.name, "role": person.role}
    if medium is Medium.COMMAND_LINE:
        return {"token": token, **told}
    set_session_cookie(response, token)
    return {"csrf": csrf_token(appliance, accounts.token_hash(token)), **told}


@router.get("/federated/start")
def start_federated(appliance: ApplianceOf) -> Response:
    """To the identity provider; what its answer must match goes along in a cookie of this browser."""
    provider, attempt = federated_sign_in.provider_of(appliance), federated_sign_in.new_attempt(appliance)
    answer = RedirectResponse(openid.authorization_url(provider, attempt, _redirect(appliance)), 303)
    # Lax: the provider sends the browser back from another site.
    answer.set_cookie(
        ATTEMPT_COOKIE, federated_sign_in.seal_attempt(appliance, attempt), max_age=federated_sign_in.ATTEMPT_SECONDS,
        secure=True, httponly=True, samesite="lax", path="/",
    )  # fmt: skip
    return answer


@router.get("/federated/callback")
def finish_federated(
    request: Request, appliance: ApplianceOf, state: _Echo = "", code: _Echo = "", iss: _Echo | None = None
) -> Response:
    """Back from the identity provider. A page of ours, not a redirect: a strict cookie is not sent along with a
    navigation that began at another site."""
    attempt = federated_sign_in.open_attempt(appliance, request.cookies.get(ATTEMPT_COOKIE, ""))
    if not code:
        raise openid.ProviderRefused("it did not let you through")
    proved = openid.prove(
        federated_sign_in.provider_of(appliance), attempt, _redirect(appliance), state=state, code=code, issuer=iss,
        now=int(appliance.clock().timestamp()),
    )  # fmt: skip
    with transaction(appliance.engine) as session:
        _, token = federated_sign_in.sign_in(session, appliance, proved)
    answer = HTMLResponse(
        '<!doctype html><meta charset="utf-8"><title>Signed in</title>'
        '<meta http-equiv="refresh" content="0;url=/console">'
        '<p>You are signed in. <a href="/console">Go on</a></p>',
        headers={
            "cache-control": "no-store",
            "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
            "referrer-policy": "no-referrer",
        },
    )
    answer.delete_cookie(ATTEMPT_COOKIE, secure=True, httponly=True, samesite="lax", path="/")
    set_session_cookie(answer, token)
    return answer


@router.delete("/session", status_code=204)
def sign_out(caller: CallerOf, appliance: ApplianceOf, response: Response) -> None:
    with transaction(appliance.engine) as session:
        PersonRepository(session).end_session(caller.token_hash)
    if caller.medium is Medium.BROWSER:
        clear_session_cookie(response)


@router.get("/me")
def me(caller: CallerOf) -> dict[str, str | None]:
    """Who is signed in, by what, and what a page needs for its forms."""
    person = caller.person
    told = {"name": person.name, "role": person.role, "key": person.key, "level": caller.level.value}
    return told | ({"csrf": caller.csrf} if caller.medium is Medium.BROWSER else {})


@router.get("")
def get_people(_: _Reader, appliance: ApplianceOf) -> list[dict[str, Any]]:
    """Everybody, with whose role has to be confirmed again."""
    with reading(appliance.engine) as session:
        values = active_policy(session, appliance).parameters.values
        longest = int(values["recertification_max_age_days"])  # type: ignore[arg-type]
        return reviews.review(session, appliance, longest=longest)


@router.post("/{name}/certification", status_code=201)
def post_certification(
    name: PersonName, body: Certification, by: _Certifier, appliance: ApplianceOf
) -> dict[str, str | None]:
    with transaction(appliance.engine) as session:
        person = reviews.certify(session, appliance, name, by=by, shared=body.shared)
    return {"name": person.name, "role": person.role, "certified_at": person.certified_at}


@router.post("/{name}/disable", status_code=204)
def post_disable(name: PersonName, by: _Disabler, appliance: ApplianceOf) -> None:
    with transaction(appliance.engine) as session:
        accounts.disable(session, appliance, name, by=by)


@router.post("/me/password")
def change_password(body: Password, caller: CallerOf, appliance: ApplianceOf) -> dict[str, str]:
    """A new password and a new code secret, which count once a code is shown at …/confirm."""
    require_fresh(caller.started_at, caller.level, now=appliance.clock())
    made = local_sign_in.begin(appliance, caller.person.name, body.password.get_secret_value())
    return {"secret": made.secret, "uri": made.uri}


@router.post("/me/password/confirm", status_code=204)
def confirm_password(body: Code, caller: CallerOf, appliance: ApplianceOf) -> None:
    require_fresh(caller.started_at, caller.level, now=appliance.clock())
    with transaction(appliance.engine) as session:
        local_sign_in.confirm(session, appliance, caller.person.name, body.code)


def _redirect(appliance: Appliance) -> str:
    return f"https://{appliance.settings.address}{router.prefix}/federated/callback"


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("A signature is not base64.", "Use padded standard base64.") from None
