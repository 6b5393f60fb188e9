"""One attempt: the signed request, and what its answers come to. Pure but for the key that signs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from coordinator.rounds.contributions import Excluded, Offered, opened
from coordinator.rounds.exchange import Answer, Unreached
from coordinator.rounds.repository import RecordedAttempt
from coordinator.rounds.states import Attempt, Begin
from privacy.entropy import Float64
from privacy.errors import MissingContributors
from privacy.parameters import Grid, plan_grid
from privacy.secagg.framing import Manifest
from privacy.secagg.refusals import Refused
from privacy.secagg.server import SecureSum
from protocol.canonical import digest, parse, sha256_hex
from protocol.envelope import Envelope, seal
from protocol.plan import Plan
from protocol.plan import SecureSum as PlannedSum
from protocol.round import ROUND_REQUEST_TYPE, Contribution, Packet, RoundRequest
from protocol.signing import SigningKey, VerifyingKey
from protocol.timestamp import timestamp

CLOCK_SKEW_SECONDS = 5
"""How far a site's clock may be from ours before it takes a fresh request for an expired one."""


@dataclass(frozen=True)
class Outcome:
    """Who contributed and who did not, with a closed code each. digests: of the contributions, by site; engines: of
    the code that computed them."""

    contributed: tuple[str, ...]
    excluded: dict[str, str]
    digests: dict[str, str]
    engines: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether the whole cohort is in, so that the sum is more than noise."""
        return not self.excluded

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of the contributions by site: what the log holds of them."""
        return digest(self.digests)


class UploadIncomplete(Exception):
    """Some chunks of a contribution are not there."""


class Chunks(Protocol):
    """Where contributions that came in chunks lie: coordinator.rounds.uploads.StoredChunks."""

    def offered(self, request: RoundRequest, site: str) -> bytes | None:
        """The packet of a site's contribution, once every chunk of it is there."""

    def whole(self, contribution: Contribution, manifest: Manifest) -> bool:
        """Whether every chunk is there and as the manifest has it."""

    def chunks(self, contribution: Contribution, manifest: Manifest) -> Iterable[tuple[int, bytes]]:
        """The chunks, one at a time."""


class Intake:
    """One attempt's answers as they come: each is verified, added to the running sum and forgotten, so that memory
    does not grow with the sites. A site that is excluded spoils nothing: the attempt is abandoned, and its sum with it.

    uploads: where the chunks of a contribution lie that came in chunks; without it none is taken.
    """

    def __init__(self, request: RoundRequest, plan: Plan, uploads: Chunks | None = None) -> None:
        self._request = request
        self._plan = plan
        self._uploads = uploads
        self._planned = plan.of_entry(request.entry).secure_sum(request.phase, request.cohort)
        self._sum: SecureSum | None = SecureSum(request.cohort, self._planned.length)
        self._digests: dict[str, str] = {}
        self._engines: dict[str, str] = {}
        self._excluded: dict[str, str] = {}
        self._unfinished: set[str] = set()

    def take(self, site: str, answer: Answer) -> None:
        """One site's answer; of two from one site the first counts. One whose chunks are not all there yet is waited
        for: `collect` takes it once they are."""
        if self._settled(site) or site not in self._request.cohort:
            return
        try:
            self._digests[site] = self._add(site, answer)
        except UploadIncomplete:
            self._unfinished.add(site)
        except Excluded as error:
            self._excluded[site] = error.code
            self._sum = None  # the cohort can't be complete any more: without all of them it is noise

    def collect(self) -> tuple[str, ...]:
        """Take the contributions that have come in chunks meanwhile, whether or not a message told of them; their
        sites. An agent that was killed goes on with its upload, and nobody asks it again."""
        if self._uploads is None:
            return ()
        before = [site for site in self._request.cohort if not self._settled(site)]
        for site in before:
            packet = self._uploads.offered(self._request, site)
            if packet is not None:
                self.take(site, packet)
        return tuple(site for site in before if self._settled(site))

    def _settled(self, site: str) -> bool:
        return site in self._digests or site in self._excluded

    def outcome(self) -> Outcome:
        """What has come so far; a site that has said nothing is excluded as no-answer."""
        cohort = self._request.cohort
        codes = dict.fromkeys(cohort, "no-answer") | dict.fromkeys(self._unfinished, "upload-incomplete")
        codes |= self._excluded
        excluded = {site: codes[site] for site in cohort if site not in self._digests}
        digests = {site: self._digests[site] for site in cohort if site in self._digests}
        return Outcome(tuple(digests), excluded, digests, {site: self._engines[site] for site in digests})

    def unmasked(self) -> Float64:
        """(length,) float64: the sum of the whole cohort's vectors, masks cancelled. The running sum is given up.

        Raises MissingContributors where anybody is missing.
        """
        total, self._sum = self._sum, None
        if total is None:
            raise MissingContributors(self.outcome().excluded)
        return total.result(grid_of(self._planned))

    def _add(self, site: str, answer: Answer) -> str:
        if isinstance(answer, Unreached):
            raise Excluded(answer.code)
        key = VerifyingKey.from_text(self._plan.site(site).identity)
        offered = opened(answer, self._request, site=site, key=key, length=self._planned.length)
        if offered.manifest is not None:
            self._add_chunks(site, offered, offered.manifest)
        elif self._sum is not None:
            self._sum.add(site, offered.vector)
        self._engines[site] = offered.contribution.engine
        return offered.contribution.body

    def _add_chunks(self, site: str, offered: Offered, manifest: Manifest) -> None:
        """All chunks are looked at before the first is added; what is wrong after all ends the attempt."""
        if self._uploads is None or not self._uploads.whole(offered.contribution, manifest):
            raise UploadIncomplete
        if self._sum is None:
            return
        self._sum.expect(site, manifest)
        try:
            for number, chunk in self._uploads.chunks(offered.contribution, manifest):
                self._sum.add_chunk(site, number, chunk)
        except Refused:
            raise Excluded("upload-damaged") from None
        if site in self._sum.missing:
            raise Excluded("upload-damaged")


def compose(
    begin: Begin,
    *,
    study: str,
    plan_digest: str,
    model_digest: str,
    entry: int,
    signer: SigningKey,
    now: datetime,
    deadline_seconds: float,
) -> RecordedAttempt:
    """The attempt with its signed request, to be recorded and then sent."""
    lifetime = timedelta(seconds=math.ceil(deadline_seconds) + CLOCK_SKEW_SECONDS)
    request = RoundRequest(
        study=study,
        plan_digest=plan_digest,
        phase=begin.phase,
        round=begin.round,
        attempt=begin.attempt,
        cohort=begin.cohort,
        model=model_digest,
        entry=entry,
        issued_at=timestamp(now),
        expires_at=timestamp(now + lifetime),
    )
    envelope = seal(ROUND_REQUEST_TYPE, request.model_dump(mode="json"), signer)
    return RecordedAttempt(
        attempt=Attempt(begin.phase, begin.round, begin.attempt, begin.cohort),
        request=envelope.to_bytes(),
        model_digest=model_digest,
        issued_at=request.issued_at,
    )


def packet_of(recorded: RecordedAttempt, model: bytes) -> bytes:
    """The bytes to send: the recorded request and the model it names. ValueError for another model."""
    if sha256_hex(model) != recorded.model_digest:
        raise ValueError("the model at hand is not the one that the recorded request names")
    return Packet(Envelope.from_bytes(recorded.request), model).to_bytes()


def request_of(recorded: RecordedAttempt) -> RoundRequest:
    """The request that was signed."""
    return RoundRequest.model_validate(parse(Envelope.from_bytes(recorded.request).payload))


def unmasked_sum(planned: PlannedSum, cohort: tuple[str, ...], bodies: Mapping[str, bytes]) -> Float64:
    """(length,) float64: the sum of the whole cohort's vectors, masks cancelled.

    Raises MissingContributors where anybody is missing, ProtocolViolation for a wrong length.
    """
    running = SecureSum(cohort, planned.length)
    for site, body in bodies.items():
        running.add(site, body)
    return running.result(grid_of(planned))


def grid_of(planned: PlannedSum) -> Grid:
    """The grid that both ends derive from the plan and the cohort."""
    if planned.noise_multiplier is None:
        return Grid(planned.exact_step)
    return plan_grid(
        planned.clip, planned.sites, planned.tolerated, planned.largest_batch, planned.noise_multiplier
    ).grid
