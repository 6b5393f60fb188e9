"""What a site's gates are told of incidents and reviews: its own copy of the log, and its own reports."""

from __future__ import annotations

import threading
from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlmodel import Session

from site_agent.cohort.withdrawal import waiting_notices
from site_agent.incidents.matters import Matters, touches
from site_agent.incidents.report import happened, unfinished
from site_agent.settings import SiteSettings
from site_agent.witness import repository
from site_agent.witness.mirror import Mirror


class LogReader:
    """Follows the site's copy of the log for one process; each entry is read once. Thread-safe."""

    def __init__(self, settings: SiteSettings) -> None:
        self._settings = settings
        self._matters = Matters()
        self._lock = threading.Lock()

    def matters(self, session: Session) -> Matters:
        """As of the head that the site has verified. Raises MirrorDamaged."""
        with self._lock:
            size = repository.size(session)
            if size < self._matters.size:  # the database was put back
                self._matters = Matters()
            self._matters.read(Mirror(self._settings.home.mirror).entries(size, start=self._matters.size))
            return self._matters


def incident_facts(
    session: Session, matters: Matters, *, study: str, sites: Collection[str], now: datetime
) -> dict[str, Any]:
    """`incident.*` at this site. sites: the cohort, this one among them. Its own reports count from the moment they are
    stored, whatever the coordinator made of them."""
    logged = matters.incidents(study=study, sites=sites)
    own = {row.incident for row in unfinished(session) if touches(happened(row), study=study, sites=sites)}
    late = [name for name in logged if matters.overdue(name, now=now)]
    return {"open": len(logged.keys() | own), "overdue": len(late)}


def open_reviews(session: Session, matters: Matters, study: str) -> list[str]:
    """The reviews of a study's model that stand here: those of the log, and this site's own notices that the log does
    not tell of, whatever the coordinator made of them."""
    own = [row.review for row in waiting_notices(session, study) if not matters.review_told(row.review)]
    return sorted({*matters.reviews(study), *own})
