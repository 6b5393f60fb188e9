"""Contributions that are too large for one message: offered, sent in chunks, and read by the driver once all are in.

A site offers its signed contribution and the manifest that the signature covers; the coordinator says which chunks it
lacks; only those are sent, however often the line or a process goes down in between. A site has one place in an open
attempt, as long as the plan's vector and no longer, and all of an attempt is erased when it closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from coordinator.appliance import Appliance
from coordinator.database import reading
from coordinator.errors import storage_problem
from coordinator.rounds.attempts import request_of
from coordinator.rounds.chunk_store import FOLDER, ChunkStore, Place, UploadClosed, attempt_name
from coordinator.rounds.contributions import Excluded, Offered, opened
from coordinator.rounds.repository import RoundRepository
from coordinator.studies.repository import StudyRepository, plan_of
from coordinator.studies.states import ACTIVE, StudyState
from coordinator.studies.tables import Study
from privacy.secagg.framing import Manifest
from privacy.secagg.refusals import Refused as SecAggRefused
from protocol.canonical import parse
from protocol.errors import Malformed
from protocol.errors import Refused as Declined
from protocol.plan import Plan
from protocol.round import MAX_CHUNK, Contribution, Packet, RoundRequest
from protocol.signing import VerifyingKey

MOST_CHUNKS = 4096
"""Of one contribution: as many files. 4 GiB in the chunks that sites send."""


class OfferRefused(Declined):
    """The contribution does not answer the open attempt; `code` is what it would be excluded for."""

    def __init__(self, code: str) -> None:
        super().__init__(f"The contribution is not accepted ({code}).", "Send the bytes that the site has stored.")
        self.code = code


@dataclass(frozen=True)
class OpenAttempt:
    """An attempt that takes contributions, as recorded."""

    request: RoundRequest
    study: Study


class StoredChunks:
    """What the driver reads of the store: contributions that have come in chunks, one chunk in memory at a time."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store

    def offered(self, request: RoundRequest, site: str) -> bytes | None:
        """The packet that a site has offered for this attempt, once every chunk of it is here."""
        place = Place.of(request.study, request.phase, request.round, request.attempt, site)
        data = self._store.offer(place)
        return data if data is not None and len(self._store.held(place)) >= len(_manifest(data).digests) else None

    def whole(self, contribution: Contribution, manifest: Manifest) -> bool:
        """Whether every chunk is here and as the manifest has it; one that is not is dropped, to be sent again."""
        place = _place(contribution)
        return all(self.sound(place, manifest, number) for number in range(len(manifest.digests)))

    def chunks(self, contribution: Contribution, manifest: Manifest) -> Iterator[tuple[int, bytes]]:
        """(number, chunk) of each, one at a time. Ends early where one is not here."""
        place = _place(contribution)
        for number in range(len(manifest.digests)):
            chunk = self._store.read(place, number)
            if chunk is None:
                return
            yield number, chunk

    def sound(self, place: Place, manifest: Manifest, number: int) -> bool:
        """Whether a chunk is here and as the manifest has it; one that is not is dropped, to be sent again."""
        chunk = self._store.read(place, number)
        if chunk is None:
            return False
        try:
            manifest.check(number, chunk)
        except SecAggRefused:
            self._store.drop(place, number)
            return False
        return True


class Uploads:
    """What sites and the driver do with the store. Every check is made against the database, so that a revoked site, a
    stopped study or a closed attempt counts from the very next request."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._store = ChunkStore(appliance.home / FOLDER)
        self.stored = StoredChunks(self._store)

    def offer(self, site: str, data: bytes) -> tuple[str, tuple[int, ...]]:
        """(the attempt's name, the numbers of the chunks that are still to be sent), for a packet of the contribution
        and its manifest.

        Raises Malformed, UploadClosed, OfferRefused, AnotherOffer, StorageFull.
        """
        claimed = _claimed(data)
        attempt = self._open(claimed)
        if attempt is None or site not in attempt.request.cohort:
            raise UploadClosed("No open attempt waits for this contribution.", "Wait for the next attempt.")
        offered = _verified(data, attempt.request, plan_of(attempt.study), site)
        manifest = offered.manifest
        if manifest is None or manifest.chunk_bytes > MAX_CHUNK or len(manifest.digests) > MOST_CHUNKS:
            raise OfferRefused("wrong-chunks")
        place = _place(offered.contribution)
        _guarded(lambda: self._store.begin(place, data))
        if self._open(claimed) is None:
            self._store.erase(place.attempt)  # it closed while we wrote: nothing may be left
            raise UploadClosed("The attempt is over.", "Wait for the next attempt.")
        held = {number for number in self._store.held(place) if self.stored.sound(place, manifest, number)}
        return place.attempt, tuple(number for number in range(len(manifest.digests)) if number not in held)

    def put(self, site: str, attempt: str, number: int, chunk: bytes) -> None:
        """Keep one chunk of what the site has offered for an attempt. Raises UploadClosed, StorageFull, and the
        library's Refused for a chunk that the manifest does not name."""
        place = Place.within(attempt, site)
        data = self._store.offer(place)
        if data is None or self._open(_claimed(data)) is None:
            raise UploadClosed("No open attempt waits for this chunk.", "Offer the contribution again.")
        _manifest(data).check(number, chunk)
        if number not in self._store.held(place):
            _guarded(lambda: self._store.put(place, number, chunk))

    def keep_open_only(self) -> None:
        """Erase what belongs to no open attempt of a study that runs. For the driver, which opens attempts, or while no
        driver is at work."""
        if not self._store.used:
            return
        with reading(self._appliance.engine) as session:
            rounds = RoundRepository(session)
            attempts = [(row.id, rounds.open_attempt(row.id)) for row in StudyRepository(session).active()]
        self._store.keep_only(
            {
                attempt_name(study, recorded.attempt.phase, recorded.attempt.round, recorded.attempt.attempt)
                for study, recorded in attempts
                if recorded is not None
            }
        )

    def _open(self, claimed: Contribution) -> OpenAttempt | None:
        """The attempt that the contribution names, while its study runs and it is open."""
        with reading(self._appliance.engine) as session:
            studies = StudyRepository(session)
            if not studies.exists(claimed.study):
                return None
            row = studies.get(claimed.study)
            recorded = RoundRepository(session).open_attempt(claimed.study)
            if recorded is None or StudyState(row.state) not in ACTIVE:
                return None
        request = request_of(recorded)
        named = (claimed.phase, claimed.round, claimed.attempt)
        return OpenAttempt(request, row) if named == (request.phase, request.round, request.attempt) else None


def _guarded(write: Callable[[], None]) -> None:
    """Write to the store. Raises UploadClosed where it was erased meanwhile, StorageFull."""
    try:
        write()
    except FileNotFoundError:
        raise UploadClosed("The attempt is over.", "Wait for the next attempt.") from None
    except OSError as error:
        raise (storage_problem(error) or error) from None


def _claimed(data: bytes) -> Contribution:
    """The contribution in a packet, before anybody has looked at its signature. Raises Malformed."""
    try:
        return Contribution.model_validate(parse(Packet.from_bytes(data).envelope.payload))
    except ValidationError:
        raise Malformed("The packet holds no contribution.", "Send the bytes that the site has stored.") from None


def _verified(data: bytes, request: RoundRequest, plan: Plan, site: str) -> Offered:
    length = plan.of_entry(request.entry).secure_sum(request.phase, request.cohort).length
    try:
        key = VerifyingKey.from_text(plan.site(site).identity)
        return opened(data, request, site=site, key=key, length=length)
    except Excluded as error:
        raise OfferRefused(error.code) from None


def _manifest(data: bytes) -> Manifest:
    return Manifest.from_dict(parse(Packet.from_bytes(data).body))


def _place(contribution: Contribution) -> Place:
    return Place.of(contribution.study, contribution.phase, contribution.round, contribution.attempt, contribution.site)
