"""Taking part in the studies that were granted: the fleet's questions and this site's answers.

Loaded when the first study is active: it brings every document of studies, Flower's connection and the uploads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import structlog

from protocol.errors import CloisterError
from site_agent.backoff import jitter
from site_agent.clock import Clock
from site_agent.coordinator_client import CoordinatorClient
from site_agent.durable_files import write_durably
from site_agent.federation.upload import Uploader
from site_agent.keystore import SiteKeys
from site_agent.settings import SiteSettings
from site_agent.training.budget_store import BudgetStore
from site_agent.training.participate import Participant
from site_agent.training.worker_client import WorkerClient

NODE_KEY = "fleet-node.pem"
FLEET_SECONDS = 0.08
_log = structlog.get_logger()


class Question(Protocol):
    """A packet that waits for an answer."""

    kind: str
    packet: bytes
    expires_at: float


class Link(Protocol):
    """How questions come and answers go: site_agent.federation.connection.FleetConnection."""

    def receive(self) -> Any:
        """The next Question, or None."""

    def reply(self, incoming: Any, packet: bytes) -> None:
        """Answer it."""

    def reconnect(self) -> None:
        """Open the link again, with the certificate as it is now."""

    def close(self) -> None:
        """Sign off."""


class StudyService:
    """Answers what the fleet asks while studies are active. For one thread.

    link: opens the way on which questions come; it raises CloisterError while there is none.
    """

    def __init__(
        self,
        settings: SiteSettings,
        keys: SiteKeys,
        store: BudgetStore,
        *,
        stop: threading.Event,
        client: Callable[[], CoordinatorClient],
        link: Callable[[], Link],
        worker: WorkerClient,
        clock: Clock,
    ) -> None:
        self._site = settings.site
        self._poll_seconds = settings.poll_seconds
        self._stop = stop
        self._open_link = link
        self._participant = Participant(settings=settings, keys=keys, store=store, worker=worker, clock=clock)
        self._uploader = Uploader(store, client, stop=stop)
        self._link: Link | None = None
        self._caught_up: set[str] = set()

    def serve(self, active: list[str]) -> None:
        """Answer questions for about one poll: a question in hand is answered to its end."""
        until = time.monotonic() + self._poll_seconds
        if self._link is None:
            self._link = self._open_link()
            _log.info("fleet-joined", site=self._site)
        try:
            self._catch_up(active)
            while not self._stop.is_set() and time.monotonic() < until:
                question = self._link.receive()
                if question is None:
                    self._stop.wait(FLEET_SECONDS)
                    continue
                self._reply(self._link, question, self._participant.answer(question.kind, question.packet))
        except CloisterError as error:
            _log.warning("fleet-trouble", code=error.code)
            self._stop.wait(jitter(0.2, 0.6))
            self._link.reconnect()

    def _catch_up(self, active: list[str]) -> None:
        """Once for each study after a start: deliver what an agent that was killed had stored and not wholly sent. The
        coordinator waits for it, and does not ask again before it has lost the attempt."""
        for study in active:
            if study not in self._caught_up:
                self._uploader.go_on(study, patience=self._poll_seconds)
                self._caught_up.add(study)

    def _reply(self, link: Link, question: Any, answer: bytes) -> None:
        """Send an answer, and before it the chunks of the vector that it announces; after trouble once more on a new
        connection. Should that fail too, the coordinator asks again and gets the stored bytes."""
        self._uploader.deliver(answer, until=question.expires_at)
        try:
            link.reply(question, answer)
        except CloisterError as error:
            _log.warning("reply-repeated", code=error.code)
            link.reconnect()
            link.reply(question, answer)

    def sign_off(self) -> None:
        """Close the way on which questions come, if it is open."""
        link, self._link = self._link, None
        if link is not None:
            link.close()


def fleet_connection(settings: SiteSettings, keys: SiteKeys) -> Link:
    """Flower's connection, open. Raises CloisterError."""
    from site_agent.federation.connection import FleetConnection

    connection = FleetConnection(
        settings.address,
        ca_file=keys.ca_path,
        certificate_file=keys.certificate_path,
        key_file=keys.identity_path,
        node_key_pem=_node_key(keys.folder / NODE_KEY),
    )
    return connection.__enter__()


def _node_key(path: Path) -> bytes:
    """The key by which Flower knows this node; made once."""
    from site_agent.federation.transport import generate_node_key

    try:
        return path.read_bytes()
    except FileNotFoundError:
        made = generate_node_key()
        write_durably(path, made)
        return made
