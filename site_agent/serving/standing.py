"""Whether the release that a running server answers with still stands, by the site's own copy of the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine

from protocol.checkpoint import TreeHead
from protocol.errors import CloisterError
from protocol.note import VerifierKey
from site_agent.database import transaction
from site_agent.releases.own_log import check_own_log
from site_agent.settings import SiteSettings
from site_agent.witness import repository

RECHECK_SECONDS = 2.0


class Standing:
    """Looks at most every RECHECK_SECONDS, and reads the log only when the agent has verified more of it. Thread-safe.

    now: monotonic seconds.
    """

    def __init__(
        self, settings: SiteSettings, engine: Engine, release: str, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._release = release
        self._now = now
        self._lock = threading.Lock()
        self._looked: float | None = None
        self._sound_at: TreeHead | None = None
        self._trouble: CloisterError | None = None

    def trouble(self) -> CloisterError | None:
        """Why nothing may be predicted now, or None: a suspension, or a log or database that can't be read."""
        with self._lock:
            now = self._now()
            if self._looked is None or now - self._looked >= RECHECK_SECONDS:
                try:
                    self._look()
                    self._trouble = None
                except CloisterError as error:
                    self._sound_at, self._trouble = None, error
                self._looked = now
            return self._trouble

    def _look(self) -> None:
        with transaction(self._engine) as session:
            held = repository.held(session, VerifierKey.parse(self._settings.log).name)
        head = None if held is None else held.head
        if head is None or head != self._sound_at:
            check_own_log(self._settings, self._engine, self._release, None)
            self._sound_at = head
