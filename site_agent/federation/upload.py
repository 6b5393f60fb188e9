"""Sends a contribution that is too large for one message: announced, then chunk by chunk, from disk.

The coordinator says which chunks it lacks and those are sent, again and again until it lacks none: after a line that
was cut, an agent that was killed or a coordinator that was restarted, nothing crosses twice but the piece that was
under way. Without Flower: plain HTTPS to the same port, under the same certificate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from privacy.secagg.framing import Manifest
from protocol.canonical import parse
from protocol.round import CONTRIBUTION_TYPE, Contribution, Packet
from site_agent.coordinator_client import (
    CoordinatorClient,
    CoordinatorMisbehaved,
    CoordinatorRefused,
    CoordinatorUnreachable,
)
from site_agent.training.budget_store import BudgetStore
from site_agent.training.states import AttemptKey

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
_log = structlog.get_logger()


class Uploader:
    """client: opens a connection to the coordinator. stop: ends the waiting between two tries."""

    def __init__(
        self,
        store: BudgetStore,
        client: Callable[[], CoordinatorClient],
        *,
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._client = client
        self._stop = stop
        self._clock = clock
        self._sent = 0

    def deliver(self, packet: bytes, *, until: float) -> bool:
        """Send what the packet announces: True when the coordinator has all of it, or the packet announces nothing;
        False where nobody waits for it any more, or the agent stops. Raises CoordinatorUnreachable once it is past
        `until` (seconds since 1970) and the line is still down."""
        announced = announced_in(packet)
        if announced is None:
            return True
        pause = FIRST_PAUSE
        while True:
            sent = self._sent
            try:
                with self._client() as client:
                    return self._send(client, packet, *announced)
            except CoordinatorRefused as error:
                if error.status < 500:
                    _log.warning("upload-refused", study=announced[0].study, code=error.code)
                    return False
                if self._clock() + pause >= until:
                    raise
            except CoordinatorUnreachable:
                if self._clock() + pause >= until:
                    raise
            _log.info("upload-interrupted", study=announced[0].study, chunks=self._sent - sent)
            pause = FIRST_PAUSE if self._sent > sent else pause  # a line that carries something is worth another try
            if self._stop.wait(pause):
                return False
            pause = min(LONGEST_PAUSE, 2 * pause)

    def go_on(self, study: str, *, patience: float) -> bool:
        """Deliver what the agent had stored and not delivered when it ended, if anybody waits for it still. Raises
        CoordinatorUnreachable."""
        packet = self._store.latest_announced(study)
        return packet is None or self.deliver(packet, until=self._clock() + patience)

    def _send(self, client: CoordinatorClient, packet: bytes, key: AttemptKey, manifest: Manifest) -> bool:
        attempt, missing = client.offer_contribution(packet)
        for number in missing:
            if number >= len(manifest.digests):
                raise CoordinatorMisbehaved("The coordinator asks for a chunk that there is not.", "Ask its operator.")
            if self._stop.is_set():
                return False
            chunk = self._store.vector(key, *manifest.span(number))
            manifest.check(number, chunk)
            client.put_chunk(attempt, number, chunk)
            self._sent += 1
        _log.info("uploaded", study=key.study, round=key.round, attempt=key.attempt, chunks=len(missing))
        return True


def announced_in(packet: bytes) -> tuple[AttemptKey, Manifest] | None:
    """What a packet of our own announces; None where it holds all that it says, or refuses."""
    opened = Packet.from_bytes(packet)
    if opened.envelope.payload_type != CONTRIBUTION_TYPE:
        return None
    said = Contribution.model_validate(parse(opened.envelope.payload))
    if said.manifest is None:
        return None
    return AttemptKey(said.study, said.phase, said.round, said.attempt), Manifest.from_dict(parse(opened.body))
