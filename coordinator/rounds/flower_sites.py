"""The driver's exchange over Flower: sites by name on this side, Flower's node ids on the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from sqlalchemy import Engine

from coordinator.database import reading
from coordinator.federation.exchange import UNREADABLE, Failure, FlowerExchange, Reply
from coordinator.rounds.exchange import Answer, Kind, Unreached
from coordinator.sites.repository import SiteRepository


class FlowerSites:
    """Which node is which site's is read anew for every request: a site that came back may have another."""

    def __init__(self, flower: FlowerExchange, engine: Engine) -> None:
        self._flower = flower
        self._engine = engine

    def present(self) -> frozenset[str]:
        """The active sites whose node is online."""
        online = self._flower.nodes()
        return frozenset(site for site, node in self._nodes().items() if node in online)

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
        """As the port says. A revoked site, or one without a node, is offline."""
        nodes = self._nodes()
        names = {nodes[site]: site for site in packets if site in nodes}
        answers: dict[str, Answer] = {}
        tell = on_answer or answers.__setitem__
        for site in packets:
            if site not in nodes:
                tell(site, Unreached("offline"))
        self._flower.request(
            kind,
            {node: packets[site] for node, site in names.items()},
            group=group,
            deadline_seconds=deadline_seconds,
            on_reply=lambda node, reply: tell(names[node], _answer(reply)),
            elsewhere=lambda: {nodes[site] for site in elsewhere() if site in nodes},
        )
        return answers

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def _nodes(self) -> dict[str, int]:
        with reading(self._engine) as session:
            return {site.name: int(site.node_id) for site in SiteRepository(session).active() if site.node_id}


def _answer(reply: Reply) -> Answer:
    """The packet, or a closed code: words that came over the wire are not repeated."""
    return Unreached(_code(reply)) if isinstance(reply, Failure) else reply


def _code(failure: Failure) -> str:
    if failure.by_site:
        return "declined"
    return "unreadable" if failure.code == UNREADABLE else "offline"
