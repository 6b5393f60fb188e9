"""Contributions too large for one message, over the coordinator's and the sites' own code: what is lost is sent again,
what was sent is not, and nobody can do more to the store than send the one vector that an attempt waits for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.database import transaction
from coordinator.rounds.chunk_store import AnotherOffer, Place, UploadClosed
from coordinator.rounds.exchange import Answer
from coordinator.rounds.uploads import OfferRefused, Uploads
from coordinator.studies.states import StudyState
from privacy.errors import PrivacyError
from privacy.secagg.framing import Manifest, chunked
from protocol.canonical import canonical, parse, sha256_hex
from protocol.envelope import seal
from protocol.errors import CloisterError, Malformed
from protocol.round import CONTRIBUTION_TYPE, Contribution, Packet
from site_agent.federation.upload import announced_in
from tests.simulator import invariants
from tests.simulator.federation import CHUNK, PASS, Delivery, Federation, UploadsHere

Begin = Callable[..., str]
LARGE = {"architecture": "mlp", "hidden": [64, 64]}
ROUNDS = {"rounds": 2, "sampling_rate": 0.25, "clip": 0.25, "learning_rate": 1.0}


@pytest.fixture
def study(begin: Begin) -> str:
    return begin(model=LARGE, training=ROUNDS)


def folder(federation: Federation) -> Path:
    return federation.appliance.home / "uploads"


def left(federation: Federation) -> list[str]:
    return sorted(path.name for path in folder(federation).iterdir()) if folder(federation).exists() else []


def at(group: str, site: str, deed: Callable[[Delivery], Answer | None]) -> Callable[[Delivery], Answer | None]:
    return lambda delivery: deed(delivery) if (delivery.group, delivery.site.name) == (group, site) else PASS


@dataclasses.dataclass
class Counting:
    """The coordinator's end, counting the bytes of chunks and failing where a test says so."""

    inner: UploadsHere
    fails_after: int = 10**9
    sent: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def offer_contribution(self, packet: bytes) -> tuple[str, tuple[int, ...]]:
        return self.inner.offer_contribution(packet)

    def put_chunk(self, attempt: str, number: int, chunk: bytes) -> None:
        if len(self.sent) >= self.fails_after:
            raise PowerCut
        self.inner.put_chunk(attempt, number, chunk)
        self.sent.append((number, chunk))


class PowerCut(Exception):
    """The process ends here."""


def test_a_study_whose_vectors_come_in_chunks(federation: Federation, study: str) -> None:
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    announced = [announced_in(said) for _, _, said in federation.exchange.answers]
    assert sum(found is not None for found in announced) == 2 * 4  # the evaluation's histogram is small
    assert all(len(found[1].digests) > 3 for found in announced if found)
    assert left(federation) == [], "nothing is left of an attempt that is over"


def test_an_agent_that_was_killed_sends_what_is_missing_from_its_disk_and_nobody_asks_it_again(
    federation: Federation, study: str
) -> None:
    site = federation.sites["berlin"]
    first = Counting(UploadsHere("berlin", federation.exchange.uploads), fails_after=2)
    second = Counting(first.inner)

    def killed(delivery: Delivery) -> Answer | None:
        packet = delivery.compute()
        uploader = site.uploader(delivery.uploads)
        uploader._client = lambda: first  # type: ignore[assignment,return-value]
        with pytest.raises(PowerCut):
            uploader.deliver(packet, until=1e12)
        site.restart()  # a new process, which got no message
        again = site.uploader(delivery.uploads)
        again._client = lambda: second  # type: ignore[assignment,return-value]
        assert again.go_on(study, patience=1.0)
        return None  # and says nothing over Flower

    federation.exchange.faults.append(at("train-1-1", "berlin", killed))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert federation.records(study)[0]["attempts"] == 1
    assert federation.records(study)[0]["contributed"] == list(federation.sites)
    assert {number for number, _ in first.sent}.isdisjoint(number for number, _ in second.sent)
    assert sum(len(chunk) for _, chunk in first.sent + second.sent) == 4 * federation.plan(study).parameters


def test_a_coordinator_that_was_restarted_keeps_the_chunks(federation: Federation, study: str) -> None:
    site = federation.sites["berlin"]
    counting = Counting(UploadsHere("berlin", federation.exchange.uploads), fails_after=3)

    def driver_dies(delivery: Delivery) -> Answer | None:
        packet = delivery.compute()
        uploader = site.uploader(delivery.uploads)
        uploader._client = lambda: counting  # type: ignore[assignment,return-value]
        with pytest.raises(PowerCut):
            uploader.deliver(packet, until=1e12)
        raise PowerCut

    federation.exchange.faults.append(at("train-2-1", "berlin", driver_dies))
    with pytest.raises(PowerCut):
        federation.driver(study).run()
    federation.exchange.faults.clear()
    # what a power cut may leave of a chunk: the store says it has it, and its digest says otherwise
    (attempt,) = left(federation)
    (torn,) = [path for path in (folder(federation) / attempt).rglob("0") if len(list(path.parent.iterdir())) == 4]
    torn.write_bytes(torn.read_bytes()[:100])
    counting.fails_after, before = 10**9, len(counting.sent)

    def on(delivery: Delivery) -> Answer | None:
        packet = delivery.compute()  # from disk: the request is the same
        uploader = site.uploader(delivery.uploads)
        uploader._client = lambda: counting  # type: ignore[assignment,return-value]
        assert uploader.deliver(packet, until=1e12)
        return packet

    federation.exchange.faults.append(at("train-2-1", "berlin", on))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    total = 4 * federation.plan(study).parameters
    assert sorted(number for number, _ in counting.sent[before:]) == [0, *range(3, -(-total // CHUNK))]
    assert {data for number, data in counting.sent if number == 0} == {counting.sent[0][1]}, "the same bytes"
    assert federation.charged(study, "berlin")[False] == 2
    assert left(federation) == []


def test_an_announced_vector_that_never_comes_is_left_out_by_a_code(federation: Federation, study: str) -> None:
    federation.exchange.faults.append(at("train-1-1", "dresden", lambda delivery: delivery.compute()))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert federation.records(study)[0]["excluded"] == {"dresden": "upload-incomplete"}
    assert left(federation) == []


def test_a_study_that_is_stopped_leaves_no_chunk(federation: Federation, study: str) -> None:
    def stop(delivery: Delivery) -> Answer | None:
        said = delivery.answer()
        assert left(federation)
        with transaction(federation.appliance.engine) as session:
            from coordinator.studies.repository import StudyRepository

            studies = StudyRepository(session)
            studies.set_state(studies.get(study), StudyState.STOPPED, reason="stopped-by-person")
        return said

    federation.exchange.faults.append(at("train-1-1", "dresden", stop))
    assert federation.driver(study).run() is StudyState.STOPPED
    assert left(federation) == []


# --- attacks on the store, by a site with a valid certificate, while the attempt is open


@dataclasses.dataclass
class Attacker:
    """berlin, with its key, its honest packet for the open attempt and its vector."""

    federation: Federation
    delivery: Delivery
    packet: bytes

    @property
    def uploads(self) -> Uploads:
        return self.delivery.uploads

    @property
    def contribution(self) -> Contribution:
        return Contribution.model_validate(parse(Packet.from_bytes(self.packet).envelope.payload))

    @property
    def manifest(self) -> Manifest:
        return Manifest.from_dict(parse(Packet.from_bytes(self.packet).body))

    @property
    def vector(self) -> bytes:
        announced = announced_in(self.packet)
        assert announced is not None
        return self.delivery.site.store.vector(announced[0], 0, self.manifest.length)

    def announcing(self, vector: bytes, chunk: int = CHUNK, **changes: Any) -> bytes:
        """A packet that this site's own key signs."""
        manifest = Manifest.of(vector, chunk)
        body = canonical(manifest.to_dict())
        fields = {"body": sha256_hex(body), "manifest": f"sha256:{manifest.digest().hex()}", **changes}
        document = self.contribution.model_copy(update=fields).model_dump(mode="json")
        return Packet(seal(CONTRIBUTION_TYPE, document, self.delivery.site.keys.identity), body).to_bytes()


def attack(federation: Federation, study: str, deed: Callable[[Attacker], None]) -> None:
    """Let berlin do its deed in round 1; the study then goes on as if nothing had been, with everybody."""
    ran: list[str] = []

    def during(delivery: Delivery) -> Answer | None:
        deed(Attacker(federation, delivery, delivery.compute()))
        ran.append(study)
        return PASS

    federation.exchange.faults.append(at("train-1-1", "berlin", during))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    assert ran
    invariants.check(federation, study)
    assert federation.records(study)[0]["excluded"] == {}
    assert left(federation) == []


def refused(error: type[Exception], code: str, ask: Callable[[], object]) -> None:
    with pytest.raises(error) as caught:
        ask()
    assert isinstance(caught.value, CloisterError | PrivacyError)
    assert caught.value.code == code
    assert caught.value.remedy


def test_offers_that_do_not_answer_the_attempt_are_refused(federation: Federation, study: str) -> None:
    def deed(berlin: Attacker) -> None:
        vector, offer = berlin.vector, berlin.uploads.offer
        longer, shorter = vector + bytes(4), vector[:-4]
        for changes, code in (
            ({"site": "aachen"}, "wrong-site"),
            ({"length": len(vector)}, "wrong-length"),
            ({"model": "sha256:" + "0" * 64}, "wrong-model"),
            ({"cohort": ("aachen", "berlin", "cologne")}, "wrong-cohort"),
            ({"body": "sha256:" + "0" * 64}, "wrong-body"),
            ({"manifest": "sha256:" + "0" * 64}, "wrong-manifest"),
        ):
            refused(OfferRefused, code, lambda changes=changes: offer("berlin", berlin.announcing(vector, **changes)))
        refused(OfferRefused, "wrong-length", lambda: offer("berlin", berlin.announcing(longer)))
        refused(OfferRefused, "wrong-length", lambda: offer("berlin", berlin.announcing(shorter)))
        refused(OfferRefused, "wrong-chunks", lambda: offer("berlin", berlin.announcing(vector, 1 << 21)))
        refused(UploadClosed, "upload-closed", lambda: offer("berlin", berlin.announcing(vector, attempt=2)))
        refused(UploadClosed, "upload-closed", lambda: offer("berlin", berlin.announcing(vector, study="another")))
        refused(OfferRefused, "bad-signature", lambda: offer("aachen", berlin.packet))
        refused(UploadClosed, "upload-closed", lambda: offer("mallory", berlin.packet))
        for junk in (b"", os.urandom(100), Packet.from_bytes(berlin.packet).envelope.to_bytes()):
            with pytest.raises(Malformed):
                offer("berlin", junk)
        (attempt,) = left(federation)
        place = Place.within(attempt, "berlin")
        assert not (folder(federation) / place.attempt / place.site).exists(), "what is refused takes no room"

    attack(federation, study, deed)


def test_a_second_vector_for_the_same_attempt_is_refused(federation: Federation, study: str) -> None:
    def deed(berlin: Attacker) -> None:
        berlin.uploads.offer("berlin", berlin.packet)
        refused(
            AnotherOffer,
            "upload-equivocation",
            lambda: berlin.uploads.offer("berlin", berlin.announcing(os.urandom(berlin.manifest.length))),
        )
        assert berlin.uploads.offer("berlin", berlin.packet)[1], "the first one stands"

    attack(federation, study, deed)


def test_chunks_that_the_manifest_does_not_name_are_refused(federation: Federation, study: str) -> None:
    def deed(berlin: Attacker) -> None:
        put = berlin.uploads.put
        attempt, missing = berlin.uploads.offer("berlin", berlin.packet)
        pieces = {number: bytes(piece) for number, piece in chunked(berlin.vector, berlin.manifest)}
        last = len(pieces) - 1
        for number, chunk in (
            (0, pieces[1]),  # in another's place
            (0, pieces[0][:-1]),
            (0, pieces[0] + b"\0"),  # over-long
            (0, bytes(len(pieces[0]))),
            (last, pieces[0]),
            (last + 1, pieces[0]),
            (-1, pieces[last]),
            (1 << 40, pieces[0]),
        ):
            refused(PrivacyError, "secagg-damaged-chunk", lambda n=number, c=chunk: put("berlin", attempt, n, c))
        assert berlin.uploads.offer("berlin", berlin.packet) == (attempt, missing), "nothing was taken"

    attack(federation, study, deed)


def test_nobody_can_touch_another_site_s_chunks(federation: Federation, study: str) -> None:
    def deed(berlin: Attacker) -> None:
        # aachen has contributed; berlin writes under the same attempt, as cologne and dresden would, before it offers.
        attempt = next(iter(left(federation)))
        before = {path: path.read_bytes() for path in folder(federation).rglob("*") if path.is_file()}
        for site in ("berlin", "mallory"):
            refused(UploadClosed, "upload-closed", lambda site=site: berlin.uploads.put(site, attempt, 0, b"x" * CHUNK))
        assert {path: path.read_bytes() for path in folder(federation).rglob("*") if path.is_file()} == before

    attack(federation, study, deed)


@pytest.mark.parametrize("attempt", ["..", "../../keys", "/etc", ".", "", "a" * 32, "0" * 31 + "/", "\0" * 32])
def test_no_name_of_an_attempt_leads_out_of_the_store(federation: Federation, attempt: str) -> None:
    """The address of the HTTP route takes 32 hexadecimal digits only; even what got past it would find no offer."""
    planted = federation.appliance.home / "keys" / "offer"
    with pytest.raises((UploadClosed, ValueError)):
        federation.exchange.uploads.put("berlin", attempt, 0, b"x")
    assert not planted.exists()


def test_a_flood_takes_no_more_room_than_the_vector(federation: Federation, study: str) -> None:
    def deed(berlin: Attacker) -> None:
        def size() -> int:
            return sum(path.stat().st_size for path in folder(federation).rglob("*") if path.is_file())

        others = size()
        attempt, _ = berlin.uploads.offer("berlin", berlin.packet)
        for _ in range(5):
            for number, piece in chunked(berlin.vector, berlin.manifest):
                berlin.uploads.put("berlin", attempt, number, bytes(piece))
            berlin.uploads.offer("berlin", berlin.packet)
        assert size() - others == berlin.manifest.length + len(berlin.packet)
        assert sum(1 for _ in folder(federation).iterdir()) == 1

    attack(federation, study, deed)


def test_an_attempt_that_is_over_takes_nothing(federation: Federation, study: str) -> None:
    kept: list[Attacker] = []

    def keep(delivery: Delivery) -> Answer | None:
        kept.append(Attacker(federation, delivery, delivery.answer()))
        return kept[0].packet

    federation.exchange.faults.append(at("train-1-1", "berlin", keep))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    (berlin,) = kept
    refused(UploadClosed, "upload-closed", lambda: berlin.uploads.offer("berlin", berlin.packet))
    refused(UploadClosed, "upload-closed", lambda: berlin.uploads.put("berlin", "0" * 32, 0, b"x" * CHUNK))
    assert left(federation) == []


def test_an_attempt_that_closes_while_a_chunk_is_written_leaves_nothing(
    federation: Federation, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deed(berlin: Attacker) -> None:
        attempt, _ = berlin.uploads.offer("berlin", berlin.packet)
        piece = bytes(next(chunked(berlin.vector, berlin.manifest))[1])
        check = Manifest.check

        def erased_meanwhile(self: Manifest, index: int, chunk: bytes) -> tuple[int, int]:
            berlin.uploads._store.erase(attempt)
            return check(self, index, chunk)

        with monkeypatch.context() as patch:
            patch.setattr(Manifest, "check", erased_meanwhile)
            refused(UploadClosed, "upload-closed", lambda: berlin.uploads.put("berlin", attempt, 0, piece))
        assert left(federation) == []

    ran: list[Delivery] = []

    def during(delivery: Delivery) -> Answer | None:
        deed(Attacker(federation, delivery, delivery.compute()))
        ran.append(delivery)
        return None

    federation.exchange.faults.append(at("train-1-1", "berlin", during))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    assert ran
    assert left(federation) == []


def test_a_full_disk_is_told_and_nothing_is_half_written(
    federation: Federation, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deed(berlin: Attacker) -> None:
        attempt, missing = berlin.uploads.offer("berlin", berlin.packet)
        piece = bytes(next(chunked(berlin.vector, berlin.manifest))[1])

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(berlin.uploads._store, "put", full)
            refused(CloisterError, "storage-full", lambda: berlin.uploads.put("berlin", attempt, 0, piece))
        assert berlin.uploads.offer("berlin", berlin.packet) == (attempt, missing)

    attack(federation, study, deed)


def test_a_poisoned_chunk_store_is_found_out_before_anything_is_added(federation: Federation, study: str) -> None:
    """Whoever can write the coordinator's disk can stop an attempt, and not change a sum."""

    def poison(delivery: Delivery) -> Answer | None:
        said = delivery.answer()
        (attempt,) = left(federation)
        mine = folder(federation) / attempt / Place.within(attempt, "berlin").site
        (mine / "2").write_bytes(os.urandom(CHUNK))
        return said

    federation.exchange.faults.append(at("train-1-1", "berlin", poison))
    assert federation.driver(study).run() is StudyState.CANDIDATE
    invariants.check(federation, study)
    assert federation.records(study)[0]["excluded"] == {"berlin": "upload-incomplete"}
