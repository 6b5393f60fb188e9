"""Pages as strings: templates that ship with the package, escaped by default, and the headers that go with each."""

from __future__ import annotations

from typing import Any

from fastapi import Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

PREFIX = "/console"
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with it, a browser sends no Origin with a form, and no form would be taken.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "publickey-credentials-get=(self), publickey-credentials-create=(self)",
    "Cache-Control": "no-store",
}
_TEMPLATES = Environment(
    loader=PackageLoader("coordinator.console"), autoescape=True, undefined=StrictUndefined, auto_reload=False
)


def page(name: str, /, *, status: int = 200, **values: Any) -> Response:
    """A template with its values. A value that is missing is an error, and none is ever markup."""
    return HTMLResponse(_TEMPLATES.get_template(name).render(prefix=PREFIX, **values), status, headers=_HEADERS)


def redirect(path: str) -> Response:
    """On to another page, by GET."""
    return RedirectResponse(f"{PREFIX}{path}", 303, headers=_HEADERS)


def asset(content: bytes, media_type: str) -> Response:
    """The script or the style, under the same headers."""
    return Response(content, media_type=media_type, headers=_HEADERS)
