"""Moments as both parties write them: UTC, whole seconds, "YYYY-MM-DDTHH:MM:SSZ" (RFC 3339).

The text form sorts as the moments do, so it can be compared as text.
"""

from __future__ import annotations

from datetime import UTC, datetime

from protocol.errors import Malformed

_FORM = "%Y-%m-%dT%H:%M:%SZ"


def timestamp(moment: datetime) -> str:
    """The text of an aware `moment`, cut to the second. ValueError for a moment without a time zone."""
    if moment.tzinfo is None:
        raise ValueError("a moment needs a time zone")
    return moment.astimezone(UTC).strftime(_FORM)


def moment(text: str) -> datetime:
    """The aware UTC moment that `timestamp` wrote. Raises Malformed for any other text."""
    try:
        value = datetime.strptime(text, _FORM).replace(tzinfo=UTC)
    except ValueError:
        raise Malformed("A time is not in the agreed form.", "Write it as YYYY-MM-DDTHH:MM:SSZ, in UTC.") from None
    if timestamp(value) != text:
        raise Malformed("A time is not in the agreed form.", "Write it as YYYY-MM-DDTHH:MM:SSZ, in UTC.")
    return value
