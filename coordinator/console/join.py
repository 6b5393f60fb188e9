"""Begin with an invitation and no command line: choose a password, take the secret into an authenticator app, show a
code. The one-time token travels in forms alone, never in an address."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from coordinator.appliance import Appliance
from coordinator.console.pages import page, redirect
from coordinator.database import transaction
from coordinator.errors import Forbidden
from coordinator.identity import MAX_FIELDS, ApplianceOf
from coordinator.people import local_sign_in
from coordinator.people.states import same_origin
from protocol.enrolment import Token, secret_hash
from protocol.errors import CloisterError, Malformed

router = APIRouter()
_FORM_LIMIT = 8192


@router.get("/join")
def join_page() -> Response:
    return page("join.html", caller=None, trouble=None)


@router.post("/join")
async def join(request: Request, appliance: ApplianceOf) -> Response:
    """Token and password: the secret for the app, and a form for its first code."""
    fields = await form(request)
    return await run_in_threadpool(_begin, appliance, fields)


@router.post("/join/confirm")
async def confirm(request: Request, appliance: ApplianceOf) -> Response:
    """The first code: from now on the account is active."""
    fields = await form(request)
    return await run_in_threadpool(_confirm, appliance, fields)


async def form(request: Request) -> dict[str, str]:
    """The fields of a form of ours, one value each. Raises Forbidden for another site's, or one that is too long."""
    if not same_origin(request.headers.get("origin"), request.headers.get("host", "")):
        raise Forbidden("The request does not come from a page of this coordinator.", "Use its own address.")
    body = await request.body()
    if len(body) > _FORM_LIMIT:
        raise Forbidden("The form is too long.", "Use the page itself.")
    try:
        fields = parse_qs(body.decode("utf-8"), max_num_fields=MAX_FIELDS, keep_blank_values=True)
    except ValueError:
        raise Malformed("The form can't be read.", "Use the page itself.") from None
    return {name: values[0] for name, values in fields.items()}


def _begin(appliance: Appliance, fields: dict[str, str]) -> Response:
    text = fields.get("token", "")
    try:
        token = _token(text, appliance)
        made = local_sign_in.begin(
            appliance, token.name, fields.get("password", ""), invitation=secret_hash(token.secret)
        )
    except CloisterError as error:
        return page("join.html", status=403, caller=None, trouble=f"{error.message} {error.remedy}")
    return page("join_code.html", caller=None, trouble=None, token=text, secret=made.secret, uri=made.uri)


def _confirm(appliance: Appliance, fields: dict[str, str]) -> Response:
    try:
        token = _token(fields.get("token", ""), appliance)
        with transaction(appliance.engine) as session:
            local_sign_in.confirm(
                session, appliance, token.name, fields.get("code", ""), invitation=secret_hash(token.secret)
            )
    except CloisterError as error:
        return page("join.html", status=403, caller=None, trouble=f"{error.message} {error.remedy}")
    return redirect("/sign-in")


def _token(text: str, appliance: Appliance) -> Token:
    token = Token.from_text(text)
    if token.kind != "person" or token.ca != appliance.keys.authority.fingerprint:
        raise Malformed("The token is for a site, or from another coordinator.", "Paste the one you were given.")
    return token
