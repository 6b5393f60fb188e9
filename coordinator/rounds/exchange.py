"""The port through which the driver reaches sites: opaque packets by site name, whatever carries them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from protocol.round import RoundKind

Kind = Literal["query.keys", "query.encapsulate", "query.establish"] | RoundKind


@dataclass(frozen=True)
class Unreached:
    """The transport's own word on why a site has no packet for us: a closed code such as offline or unreadable."""

    code: str


Answer = bytes | Unreached


class Exchange(Protocol):
    """What the driver needs of a transport. Any method may raise a CloisterError when the transport itself is lost."""

    def present(self) -> frozenset[str]:
        """The sites that are connected now."""

    def request(
        self,
        kind: Kind,
        packets: Mapping[str, bytes],
        *,
        group: str,
        deadline_seconds: float,
        on_answer: Callable[[str, Answer], None] | None = None,
        elsewhere: Callable[[], Collection[str]] = tuple,
    ) -> dict[str, Answer]:
        """Send each site its packet; the answers that came before the deadline. Absent: no answer.

        on_answer: called in this thread with each answer as it comes; then none is kept and the result is empty.
        elsewhere: asked now and then for sites whose answer came another way; they are waited for no longer.
        """

    def wait(self, seconds: float) -> None:
        """Let time pass while nothing can be asked."""
