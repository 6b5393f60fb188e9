"""Which Flower node is which site's: kept on the site's row, answered from memory."""

from __future__ import annotations

import threading

from sqlalchemy import Engine

from coordinator.database import reading, transaction
from coordinator.sites.repository import SiteRepository


class NodeRegistry:
    """Durable and thread-safe; `node_of` never touches the database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        with reading(engine) as session:
            self._nodes = {row.name: int(row.node_id) for row in SiteRepository(session).all() if row.node_id}

    def node_of(self, site: str) -> int | None:
        """The site's node id, None before it has activated one."""
        return self._nodes.get(site)

    def record(self, site: str, node_id: int) -> None:
        """Remember the node that the site has activated. Raises NodeTaken when another site holds that node."""
        from coordinator.federation.gateway import NodeTaken  # Flower's imports belong to `serve` alone

        with self._lock, transaction(self._engine) as session:
            sites = SiteRepository(session)
            holder = sites.with_node(node_id)
            if holder is not None and holder.name != site:
                raise NodeTaken
            sites.set_node(site, node_id)
            self._nodes[site] = node_id
