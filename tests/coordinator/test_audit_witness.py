"""An auditor as a witness below four hospitals: joined by the administrator, keeps what it saw before it signs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from coordinator.audit.auditors import join, remove
from coordinator.audit.repository import LogRepository
from coordinator.audit.sequencer import integrate_once, log_key
from coordinator.audit.witnessing import latest_note, policy_in_force, quorum_note, verify_auditor
from coordinator.cli import app as coordinator_app
from coordinator.client import audit_watch
from coordinator.client.account import AccountError
from coordinator.client.audit_bundle import verify_path
from coordinator.client.audit_monitor import LogAlarm, Watched
from coordinator.client.audit_witness import AuditWitness, Cosigned, make_witness, open_witness, take_part
from coordinator.client.cli import app
from coordinator.client.connection import Connection, CoordinatorRefused, pinned_context
from coordinator.database import reading, transaction
from coordinator.errors import Conflict, NotFound
from coordinator.sites import enrolment
from coordinator.sites.repository import SiteRepository
from protocol.checkpoint import TreeHead, cosign, cosigner_key, sign_checkpoint
from protocol.errors import BadSignature, Malformed, Refused
from protocol.note import KeyType, Note
from protocol.signing import MlDsa44SigningKey, SigningKey
from tests.coordinator.appliances import Made, Served, TestSite, exported

pytestmark = pytest.mark.processes


def witnesses_of(made: Made) -> list[str]:
    with reading(made.appliance.engine) as session:
        return [row.witness for row in SiteRepository(session).active() if row.witness]


def joined(made: Made, witness: AuditWitness) -> None:
    sites = witnesses_of(made)
    with transaction(made.appliance.engine) as session:
        join(session, made.appliance, witness.name, witness.vkey.text, site_witnesses=sites)


def integrated(served: Served) -> None:
    """Wait until the sequencer of the served coordinator has taken in all that was appended."""
    deadline = time.monotonic() + 10
    while True:
        with reading(served.appliance.engine) as session:
            log = LogRepository(session, served.appliance.settings.origin)
            if log.pending() == 0 and log.head().size == log.head().assigned:
                return
        assert time.monotonic() < deadline, "the sequencer does not integrate"


def quorum_size(made: Made) -> int:
    with reading(made.appliance.engine) as session:
        note = quorum_note(session, made.appliance, 1)
    return 0 if note is None else TreeHead.parse(Note.parse(note).text).size


def cosign_as_site(made: Made, site: TestSite, served: Served) -> None:
    with reading(made.appliance.engine) as session:
        line = site.cosign(latest_note(session, made.appliance), made.clock())
    with served.client(context=site.context(served.ca_path)) as client:
        assert client.post("/v1/log/cosignatures", content=line).status_code == 200


@contextmanager
def connected(served: Served) -> Iterator[Connection]:
    with Connection(served.address, pinned_context(served.ca_path)) as connection:
        yield connection


def take(served: Served, witness: AuditWitness) -> Cosigned:
    with connected(served) as connection:
        return take_part(
            witness, connection, log=log_key(served.appliance), policy=None, clock=lambda: int(time.time())
        )


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", "witness", *arguments])


@pytest.mark.parametrize("kind", ["ml-dsa-44", "ed25519"])
def test_an_auditor_joins_by_command_and_a_quorum_of_two_needs_them(served: Served, tmp_path: Path, kind: str) -> None:
    site, folder, vkey = TestSite("site-a", tmp_path), tmp_path / "witness", tmp_path / "vkey"
    site.enrol_in(served.appliance)
    made = command("init", str(folder), "--name", "ada", "--key", kind)
    assert made.exit_code == 0, made.output
    vkey.write_text(made.output.splitlines()[-1])
    home = str(served.appliance.home)
    told = CliRunner().invoke(
        coordinator_app, ["witness", "join", "ada", "--key-file", str(vkey), "--home", home], catch_exceptions=False
    )
    assert told.output == "2 witnesses, of whom 2 must cosign.\n"
    assert "ada" in CliRunner().invoke(coordinator_app, ["witness", "list", "--home", home]).output
    integrated(served)
    cosign_as_site(served, site, served)
    assert quorum_size(served) == 0, "the one site alone must not be a quorum"
    run = command(
        "run", str(folder), "--log-key", log_key(served.appliance).text, "--address", served.address,
        "--ca", str(served.ca_path),
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "cosigned as ada/auditor" in run.output
    bundle = tmp_path / "bundle.tar"
    bundle.write_bytes(exported(served))
    report = verify_path(bundle)
    assert (report.problems, set(report.witnesses)) == ([], {"site-a/witness", "ada/auditor"})
    removed = CliRunner().invoke(coordinator_app, ["witness", "remove", "ada", "--home", home])
    assert removed.output == "1 witnesses, of whom 1 must cosign.\n"
    integrated(served)
    assert isinstance(command("run", str(folder), "--address", served.address, "--ca", str(served.ca_path)).exception,
                      CoordinatorRefused)  # fmt: skip


def test_three_hospitals_and_an_auditor_bear_the_loss_of_one(served: Served, tmp_path: Path) -> None:
    sites = [TestSite(f"site-{letter}", tmp_path) for letter in "abc"]
    for site in sites:
        site.enrol_in(served.appliance)
    witness = make_witness(tmp_path / "witness", "ada", "ml-dsa-44")
    joined(served, witness)
    integrated(served)
    for site in sites[:2]:
        cosign_as_site(served, site, served)
    assert quorum_size(served) == 0
    assert take(served, witness).size == quorum_size(served) > 0


def test_it_keeps_what_it_saw_before_it_signs(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TestSite("site-a", tmp_path).enrol_in(served.appliance)
    witness = make_witness(tmp_path / "witness", "ada", "ed25519")
    joined(served, witness)
    integrated(served)
    happened: list[str] = []
    fsync, sign = os.fsync, SigningKey.sign

    def flushed(descriptor: int) -> None:
        happened.append("flushed")
        fsync(descriptor)

    def signed(key: SigningKey, data: bytes) -> bytes:
        happened.append("signed")
        assert Watched.from_bytes(witness.state.read_bytes()).frontier.size == int(data.split(b"\n")[3])
        return sign(key, data)

    monkeypatch.setattr(audit_watch.os, "fsync", flushed)
    monkeypatch.setattr(SigningKey, "sign", signed)
    take(served, witness)
    assert happened == ["flushed", "flushed", "signed"], "the file and its folder, then the signature"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    happened.clear()
    monkeypatch.setattr(audit_watch.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        take(served, witness)
    assert happened == [], "what can't be kept is not signed"


def test_a_log_that_contradicts_what_it_saw_gets_no_signature(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TestSite("site-a", tmp_path).enrol_in(served.appliance)
    witness = make_witness(tmp_path / "witness", "ada", "ml-dsa-44")
    joined(served, witness)
    integrated(served)
    size = take(served, witness).size
    state = witness.state.read_bytes()
    asked: list[str] = []
    monkeypatch.setattr(MlDsa44SigningKey, "sign", lambda *_: asked.append("signed"))
    download = Connection.download
    for lie in (TreeHead(log_key(served.appliance).name, size, b"\1" * 32),
                TreeHead(log_key(served.appliance).name, size - 1, b"\1" * 32)):  # fmt: skip
        note = sign_checkpoint(lie, served.appliance.keys.log).to_bytes()
        monkeypatch.setattr(
            Connection, "download",
            lambda self, path, *, note=note, **what: (
                note if path == "/v1/log/checkpoint" else download(self, path, **what)
            ),
        )  # fmt: skip
        with pytest.raises(LogAlarm):
            take(served, witness)
    assert asked == []
    assert witness.state.read_bytes() == state
    assert list(witness.folder.glob("state.json.alarm-*")), "the evidence is kept"


def test_nobody_cosigns_in_the_auditors_name(local: Made, tmp_path: Path) -> None:
    TestSite("site-a", tmp_path).enrol_in(local.appliance)
    witness, stranger = make_witness(tmp_path / "witness", "ada", "ed25519"), SigningKey.generate()
    joined(local, witness)
    integrate_once(local.appliance)
    with reading(local.appliance.engine) as session:
        head = TreeHead.parse(Note.parse(latest_note(session, local.appliance)).text)

        def attempt(name: str, key: SigningKey | MlDsa44SigningKey, *, over: TreeHead = head, size: int = head.size):
            line = cosign(over, name, key, timestamp=1_800_000_000).line.encode()
            return verify_auditor(session, local.appliance, size, line)

        assert attempt("ada/auditor", witness.key)[0] == witness.vkey.text
        other = TreeHead(head.origin, head.size, b"\2" * 32)
        for wrong, error in (
            (lambda: attempt("ada/auditor", stranger), BadSignature),
            (lambda: attempt("ada/auditor", witness.key, over=other), BadSignature),
            (lambda: attempt("eve/auditor", stranger), NotFound),
            (lambda: attempt("site-a/witness", stranger), NotFound),
            (lambda: attempt("ada/auditor", witness.key, size=head.size + 1), NotFound),
            (lambda: verify_auditor(session, local.appliance, head.size, b""), Malformed),
        ):
            with pytest.raises(error):
                wrong()


def test_who_may_join(local: Made, tmp_path: Path) -> None:
    ada, bob = (make_witness(tmp_path / name, name, "ed25519") for name in ("ada", "bob"))
    joined(local, ada)  # before the first site: the policy begins with that
    with reading(local.appliance.engine) as session:
        assert policy_in_force(session, local.appliance) is None
    site = TestSite("site-a", tmp_path)
    response = site.enrol_in(local.appliance)
    assert ada.vkey.text in response.witness_policy["witnesses"]
    assert response.witness_policy["quorum"] == 2
    with pytest.raises(Conflict, match="on auditors alone"):
        joined(local, bob)
    with transaction(local.appliance.engine) as session:
        remove(session, local.appliance, "ada", site_witnesses=witnesses_of(local))
    with pytest.raises(Conflict, match="before"):
        joined(local, ada)
    with transaction(local.appliance.engine) as session, pytest.raises(NotFound):
        remove(session, local.appliance, "ada", site_witnesses=[])
    for name, key in (
        ("bob", ada.vkey.text),
        ("bob", cosigner_key("site-a/witness", ada.key).text),
        ("bob", ada.vkey.text[:-3]),
        ("Bob", bob.vkey.text),
        ("bob", f"{log_key(local.appliance).text}"),
    ):
        with transaction(local.appliance.engine) as session, pytest.raises(Malformed):
            join(session, local.appliance, name, key, site_witnesses=witnesses_of(local))
    twin = cosigner_key("bob/auditor", site.witness)
    assert twin.type is KeyType.COSIGNATURE_V1
    with transaction(local.appliance.engine) as session, pytest.raises(Malformed, match="two names"):
        join(session, local.appliance, "bob", twin.text, site_witnesses=witnesses_of(local))


def test_four_hospitals_need_no_auditor(local: Made, tmp_path: Path) -> None:
    for letter in "abcd":
        TestSite(f"site-{letter}", tmp_path).enrol_in(local.appliance)
    with pytest.raises(Refused, match="4 hospitals"):
        joined(local, make_witness(tmp_path / "witness", "ada", "ed25519"))


def test_a_last_hospital_that_leaves_takes_the_policy_with_it(local: Made, tmp_path: Path) -> None:
    joined(local, make_witness(tmp_path / "witness", "ada", "ed25519"))
    TestSite("site-a", tmp_path).enrol_in(local.appliance)
    with transaction(local.appliance.engine) as session:
        enrolment.revoke(session, local.appliance, "site-a")
        assert policy_in_force(session, local.appliance) is None, "an auditor alone is no quorum"


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "witness"
    with pytest.raises(AccountError, match="holds no witness"):
        open_witness(folder)
    made = make_witness(folder, "ada", "ml-dsa-44")
    assert open_witness(folder).vkey == made.vkey
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    with pytest.raises(AccountError, match="not empty"):
        make_witness(folder, "ada", "ml-dsa-44")
    with pytest.raises(Malformed, match="kind of key"):
        make_witness(tmp_path / "other", "ada", "rsa")
    (folder / "witness.pem").chmod(0o644)
    with pytest.raises(AccountError, match="accessible to other users"):
        open_witness(folder)
