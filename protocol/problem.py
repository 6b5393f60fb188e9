"""Problem documents: what an HTTP answer says when it is not the one asked for (RFC 9457)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from protocol.errors import CloisterError

MEDIA_TYPE = "application/problem+json"

_Text = Annotated[str, StringConstraints(max_length=2000)]


class Problem(BaseModel):
    """A problem document with two members more than RFC 9457's: a stable `code` and the `remedy`.

    `type` is "urn:cloister:problem:<code>" or "about:blank"; `status` is the HTTP status, 400 to 599.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # RFC 9457 3.2: unknown members are ignored

    type: Annotated[str, StringConstraints(pattern=r"^(about:blank|urn:cloister:problem:[a-z0-9-]{1,64})$")] = (
        "about:blank"
    )
    title: _Text
    status: Annotated[int, Field(strict=True, ge=400, le=599)]
    detail: _Text = ""
    code: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")]
    remedy: _Text = ""

    @classmethod
    def of(cls, error: CloisterError, *, status: int, title: str) -> Problem:
        """The document that tells an error: its code, its message as detail (cut at 2000 characters), its remedy."""
        return cls(
            type=f"urn:cloister:problem:{error.code}",
            title=title,
            status=status,
            detail=error.message[:2000],
            code=error.code,
            remedy=error.remedy[:2000],
        )
