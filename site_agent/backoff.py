"""How long to wait before the next try, with jitter, so that many sites do not come in step."""

from __future__ import annotations

import secrets

LONGEST_BACKOFF = 30.0


class Backoff:
    """Doubling waits with jitter, from one second to thirty: (1..2), (2..4), ..., then 15 to 30 seconds."""

    def __init__(self, first: float = 1.0) -> None:
        self._first = first
        self._next = first

    def reset(self) -> None:
        """All is well again."""
        self._next = self._first

    def wait(self) -> float:
        """Seconds to wait now."""
        upper = min(LONGEST_BACKOFF, 2 * self._next)
        self._next = min(LONGEST_BACKOFF / 2, 2 * self._next)
        return jitter(upper / 2, upper)


def jitter(low: float, high: float) -> float:
    """Seconds between `low` and `high`."""
    return low + (high - low) * secrets.randbelow(1 << 20) / (1 << 20)
