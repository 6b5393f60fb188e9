"""The log over HTTP: a mirror can be built from it, sites cosign it, auditors export it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from coordinator.client.account import open_account, register, sign_in, sign_out
from coordinator.client.audit_bundle import verify_path
from coordinator.client.audit_export import fetch_bundle, write_bundle
from coordinator.client.connection import CoordinatorRefused
from coordinator.database import transaction
from coordinator.people import accounts
from coordinator.sites import enrolment
from protocol.checkpoint import cosigner_key, open_checkpoint
from protocol.enrolment import witness_name
from protocol.identifiers import Role
from protocol.merkle import Tree, leaf_hash
from protocol.note import VerifierKey
from protocol.signing import MlDsa44SigningKey
from protocol.tiles import Tile, decode_bundle, decode_tile, touched_bundles, touched_tiles
from protocol.witness_policy import WitnessPolicy
from tests.coordinator.appliances import Served, TestSite, exported

pytestmark = pytest.mark.processes
PASSPHRASE = b"correct horse battery"


def federation(served: Served, folder: Path, count: int) -> list[TestSite]:
    sites = [TestSite(f"site-{number}", folder) for number in range(count)]
    for site in sites:
        site.enrol_in(served.appliance)
    return sites


def current_note(served: Served) -> bytes:
    """The latest checkpoint, once it covers all that was appended."""
    deadline = time.monotonic() + 10
    with served.client() as client:
        while True:
            note = client.get("/v1/log/checkpoint").content
            size = int(note.split(b"\n")[1])
            if size == _entries(served):
                return note
            assert time.monotonic() < deadline, "the sequencer does not integrate"


def _entries(served: Served) -> int:
    with served.appliance.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM log_entry").scalar_one())


def cosign(served: Served, site: TestSite, note: bytes) -> int:
    with served.client(context=site.context(served.ca_path)) as client:
        answer = client.post("/v1/log/cosignatures", content=site.cosign(note, served.clock()))
    assert answer.status_code == 200, answer.text
    return int(answer.json()["size"])


def test_anyone_can_mirror_the_log(served: Served, tmp_path: Path) -> None:
    [site] = federation(served, tmp_path, 1)
    with transaction(served.appliance.engine) as session:
        for number in range(300):
            enrolment.invite(session, served.appliance, f"site-x{number}")
    note = current_note(served)
    assert site.response is not None
    checkpoint = open_checkpoint(note, VerifierKey.parse(site.response.log))
    entries: list[bytes] = []
    with served.client() as client:
        for bundle in touched_bundles(0, checkpoint.size):
            entries += decode_bundle(bundle, client.get(f"/v1/log/{bundle.path}").content)
        tree = Tree(leaf_hash(entry) for entry in entries)
        for tile in touched_tiles(0, checkpoint.size):
            hashes = decode_tile(tile, client.get(f"/v1/log/{tile.path}").content)
            first = tile.index * 256
            assert hashes == tuple(tree.read((tile.level or 0) * 8, first + offset) for offset in range(tile.width))
        narrower = Tile(None, 0, 3)
        assert decode_bundle(narrower, client.get(f"/v1/log/{narrower.path}").content) == tuple(entries[:3])
        for beyond in (Tile(0, 1, 60), Tile(0, 9), Tile(1, 0, 2), Tile(None, 1, 200)):
            assert client.get(f"/v1/log/{beyond.path}").status_code == 404
        for nonsense in (
            "tile/0/0",
            "tile/x/000",
            "tile/0/..%2f..%2fcoordinator.db",
            "tile/0/000.p/0",
            "tile/0/000.new",
        ):
            assert client.get(f"/v1/log/{nonsense}").status_code == 404
    assert (tree.size, tree.root()) == (checkpoint.size, checkpoint.root)


def test_cosignatures_gather_until_a_quorum(served: Served, tmp_path: Path) -> None:
    sites = federation(served, tmp_path, 3)
    note = current_note(served)
    for site in sites[:2]:
        assert cosign(served, site, note) == _entries(served)
    with served.client() as client:
        cosigned = client.get("/v1/log/checkpoint").content
        policy = WitnessPolicy.from_bytes(client.get("/v1/log/policy").content)
    assert set(policy.accept(cosigned).cosigners) == {witness_name(site.name) for site in sites[:2]}


def test_a_site_may_witness_with_a_post_quantum_key(served: Served, tmp_path: Path) -> None:
    lattice = TestSite("a" * 64, tmp_path, witness=MlDsa44SigningKey.generate())
    classical = TestSite("site-b", tmp_path)
    for site in (lattice, classical):
        site.enrol_in(served.appliance)
    note = current_note(served)
    assert cosign(served, lattice, note) == cosign(served, classical, note) == _entries(served)
    bundle = tmp_path / "bundle.tar"
    bundle.write_bytes(exported(served))
    report = verify_path(bundle)
    assert (report.problems, set(report.witnesses)) == ([], {witness_name(lattice.name), witness_name("site-b")})


def test_a_site_cannot_cosign_for_another(served: Served, tmp_path: Path) -> None:
    first, second = federation(served, tmp_path, 2)
    line = second.cosign(current_note(served), served.clock())
    with served.client(context=first.context(served.ca_path)) as client:
        refused = client.post("/v1/log/cosignatures", content=line)
    assert (refused.status_code, refused.json()["code"]) == (400, "bad-signature")
    with served.client() as client:
        assert client.post("/v1/log/cosignatures", content=line).status_code == 401
        assert b"witness" not in client.get("/v1/log/checkpoint").content


def test_before_any_site_there_is_no_policy(served: Served) -> None:
    with served.client() as client:
        assert client.get("/v1/log/policy").status_code == 404


def test_an_auditor_exports_and_verifies(served: Served, tmp_path: Path) -> None:
    sites = federation(served, tmp_path, 4)
    with transaction(served.appliance.engine) as session:
        token = accounts.invite(session, served.appliance, "ada", Role.AUDITOR)
    register(token.to_text(), tmp_path / "ada", PASSPHRASE)
    account = open_account(tmp_path / "ada")
    sign_in(account, account.unlock(PASSPHRASE))
    note = current_note(served)
    bundle = tmp_path / "bundle.tar"
    with account.connect() as connection, pytest.raises(CoordinatorRefused) as refused:
        write_bundle(bundle, lambda file: fetch_bundle(connection, file, wait_seconds=0, pause_seconds=0.01))
    assert refused.value.code == "unavailable"
    assert list(tmp_path.glob("*bundle*")) == []
    for site in sites[:3]:
        cosign(served, site, note)
    with account.connect() as connection:
        write_bundle(bundle, lambda file: fetch_bundle(connection, file, wait_seconds=0, pause_seconds=0.01))
    report = verify_path(bundle)
    assert (report.problems, report.cosignatures) == ([], 3)
    assert report.events["person.signed-in"] == 1
    assert current_note(served) != note, "the export itself is logged"
    sign_out(account)
    assert cosigner_key(witness_name("site-3"), sites[3].witness).name not in report.witnesses
