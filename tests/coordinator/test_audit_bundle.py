"""The audit bundle: what it holds, that anyone can check it offline, and that no byte of it can be changed unseen."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from sqlmodel import col, select

from coordinator.audit.append import append
from coordinator.audit.sequencer import LogTampered, integrate_once
from coordinator.audit.tables import LogEntry
from coordinator.audit.witnessing import accept_cosignatures, latest_note, policy_in_force
from coordinator.client.account import AccountError
from coordinator.client.audit_bundle import AUDIT_FILES, read_archive, verify_bundle, verify_path
from coordinator.client.audit_export import write_bundle
from coordinator.database import reading, transaction
from coordinator.errors import Unavailable
from protocol.audit_event import EventType
from protocol.bundle import pack
from protocol.canonical import canonical
from protocol.checkpoint import cosigner_key
from protocol.enrolment import witness_name
from protocol.errors import Malformed
from protocol.signing import SigningKey
from protocol.witness_policy import WitnessPolicy
from tests.coordinator.appliances import Made, TestSite, exported

SITES = 4


def export(made: Made, out: Path, *, minimum_size: int = 1) -> None:
    archive = exported(made, minimum_size=minimum_size)
    write_bundle(out, lambda file: file.write(archive))


def cosign_latest(made: Made, sites: list[TestSite]) -> None:
    integrate_once(made.appliance)
    for site in sites:
        with transaction(made.appliance.engine) as session:
            data = site.cosign(latest_note(session, made.appliance), made.clock())
            key = cosigner_key(witness_name(site.name), site.witness).text
            accept_cosignatures(session, made.appliance, key, data)


@pytest.fixture
def watched(local: Made, tmp_path: Path) -> tuple[Made, list[TestSite]]:
    """A log that four sites watch, with everything in it cosigned by all."""
    sites = [TestSite(f"site-{number}", tmp_path) for number in range(SITES)]
    for site in sites:
        site.enrol_in(local.appliance)
    with transaction(local.appliance.engine) as session:
        for number in range(12):
            append(
                session, local.appliance, EventType.STUDY_REFUSED, actor="site:site-0", subject=f"study:s{number}",
                numbers={"epsilon": number / 8}, payload={"reason": f"words {number}"},
            )  # fmt: skip
    cosign_latest(local, sites)
    return local, sites


@pytest.fixture
def files(watched: tuple[Made, list[TestSite]]) -> dict[str, bytes]:
    made, _ = watched
    return read_archive(exported(made))


@pytest.mark.parametrize("tamper", ["leaf", "order"])
def test_entries_that_are_not_those_signed_are_not_exported(watched: tuple[Made, list[TestSite]], tamper: str) -> None:
    made, _ = watched
    with transaction(made.appliance.engine) as session:
        row, other = session.exec(select(LogEntry).order_by(col(LogEntry.id).desc()).limit(2)).all()
        if tamper == "leaf":
            row.leaf = row.leaf.replace(b"site:site-0", b"site:site-1")
        else:
            row.leaf, other.leaf = other.leaf, row.leaf
    with pytest.raises(LogTampered):
        exported(made)
    assert not list(made.appliance.settings.log_folder.glob("tmp*"))


def test_a_true_bundle_is_verified(watched: tuple[Made, list[TestSite]], files: dict[str, bytes]) -> None:
    report = verify_bundle(files)
    assert report.problems == []
    assert (report.verified, report.entries, report.checkpoint_size) == (True, 31, 31)
    assert (report.cosignatures, report.payloads) == (SITES, 17)
    assert report.events == {
        "log.started": 1, "packs.activated": 1, "person.invited": 1, "site.invited": 4, "site.enrolled": 4,
        "study.refused": 12, "policy.decided": 4, "site.attested": 4,
    }  # fmt: skip
    assert "nothing was pinned" in report.anchor


def test_a_pin_decides_what_is_trusted(watched: tuple[Made, list[TestSite]], files: dict[str, bytes]) -> None:
    made, _ = watched
    with reading(made.appliance.engine) as session:
        policy = policy_in_force(session, made.appliance)
    assert policy is not None
    assert verify_bundle(files, policy=policy).verified
    assert verify_bundle(files, log=policy.log).verified
    strangers = [cosigner_key(f"else-{number}/witness", SigningKey.generate()) for number in range(2)]
    grown = WitnessPolicy(policy.log, (*policy.witnesses[:3], strangers[0]), 3)
    report = verify_bundle(files, policy=grown)
    assert (report.verified, "moved on" in report.anchor) == (True, True)
    other = WitnessPolicy(policy.log, (*policy.witnesses[:2], *strangers), 3)
    report = verify_bundle(files, policy=other)
    assert report.problems == ["2 of 4 witnesses cosigned; 3 must."]
    assert not verify_bundle(files, log=WitnessPolicy.from_document(_other_log(other)).log).verified


def test_erasing_a_payload_breaks_nothing(watched: tuple[Made, list[TestSite]]) -> None:
    made, _ = watched
    with transaction(made.appliance.engine) as session:
        row = session.exec(select(LogEntry).order_by(col(LogEntry.id).desc())).first()
        assert row is not None
        row.payload = row.salt = None
    report = verify_bundle(read_archive(exported(made)))
    assert (report.verified, report.payloads) == (True, 16)


def test_no_byte_of_any_file_can_change(files: dict[str, bytes]) -> None:
    """Every byte of the small files, and 400 places of the entries, each turned into another byte."""
    places = [(name, at) for name in AUDIT_FILES if name != "entries.jsonl" for at in range(len(files[name]))]
    generator = random.Random(7)
    entries = files["entries.jsonl"]
    places += [("entries.jsonl", generator.randrange(len(entries))) for _ in range(400)]
    places += [("entries.jsonl", 0), ("entries.jsonl", len(entries) - 1)]
    for name, at in places:
        changed = bytearray(files[name])
        changed[at] ^= 1 << generator.randrange(8)
        report = verify_bundle({**files, name: bytes(changed)})
        assert not report.verified, f"{name} byte {at}"


def test_no_byte_of_the_archive_can_change(watched: tuple[Made, list[TestSite]], tmp_path: Path) -> None:
    made, _ = watched
    archive = exported(made)
    generator = random.Random(11)
    bundle = tmp_path / "bundle.tar"
    for at in [*range(512), *(generator.randrange(len(archive)) for _ in range(200)), len(archive) - 1]:
        changed = bytearray(archive)
        changed[at] ^= 1 << generator.randrange(8)
        bundle.write_bytes(bytes(changed))
        assert not verify_path(bundle).verified, f"byte {at}"
    bundle.write_bytes(archive[:-512])
    assert not verify_path(bundle).verified
    bundle.write_bytes(archive)
    assert verify_path(bundle).verified


def test_entries_cannot_be_added_dropped_swapped_or_repeated(files: dict[str, bytes]) -> None:
    lines = files["entries.jsonl"].splitlines(keepends=True)
    for changed in (lines[:-1], lines[1:], [*lines, lines[-1]], [lines[1], lines[0], *lines[2:]], []):
        assert not verify_bundle({**files, "entries.jsonl": b"".join(changed)}).verified


def test_a_payload_cannot_be_replaced_even_with_a_fitting_salt(files: dict[str, bytes]) -> None:
    lines = [json.loads(line) for line in files["entries.jsonl"].splitlines()]
    lines[-1]["payload"] = {"reason": "other words"}
    report = verify_bundle({**files, "entries.jsonl": b"".join(canonical(line) + b"\n" for line in lines)})
    assert report.problems == ["Entry 30: the payload is not the one that was logged."]
    del lines[-1]["salt"]
    assert not verify_bundle({**files, "entries.jsonl": b"".join(canonical(line) + b"\n" for line in lines)}).verified


def test_a_policy_that_the_log_does_not_tell_is_refused(files: dict[str, bytes]) -> None:
    """The attacker has the log's checkpoint and a quorum, and hands on a policy with a stranger as fourth witness."""
    policy = WitnessPolicy.from_bytes(files["witness_policy.json"])
    stranger = cosigner_key("stranger/witness", SigningKey.generate())
    weaker = WitnessPolicy(policy.log, (*policy.witnesses[:3], stranger), 3)
    lines = files["checkpoint"].decode().splitlines(keepends=True)
    note = "".join(line for line in lines if not line.startswith(f"— {policy.witnesses[3].name} "))
    report = verify_bundle({**files, "witness_policy.json": weaker.to_bytes(), "checkpoint": note.encode()})
    assert report.problems == ["The witness policy is not the one that the log last put in force."]


def test_a_signature_line_that_nobody_can_check_is_refused(files: dict[str, bytes]) -> None:
    note = files["checkpoint"] + "— stranger/witness AAAAAAAA\n".encode()
    assert not verify_bundle({**files, "checkpoint": note}).verified


def test_without_a_quorum_nothing_is_exported(watched: tuple[Made, list[TestSite]], tmp_path: Path) -> None:
    made, sites = watched
    with transaction(made.appliance.engine) as session:
        append(session, made.appliance, EventType.PACKS_ACTIVATED, actor="coordinator", subject="x")
    size = integrate_once(made.appliance)
    with pytest.raises(Unavailable):
        export(made, tmp_path / "bundle.tar", minimum_size=size)
    assert list(tmp_path.glob("*bundle*")) == []
    cosign_latest(made, sites[:3])
    export(made, tmp_path / "bundle.tar", minimum_size=size)
    export(made, tmp_path / "bundle", minimum_size=size)
    for name in ("bundle", "bundle.tar"):
        report = verify_path(tmp_path / name)
        assert (report.problems, report.cosignatures, report.entries) == ([], 3, size)
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == sorted(AUDIT_FILES)
    with pytest.raises(AccountError, match="exists already"):
        export(made, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
def test_a_disk_that_fills_while_a_bundle_is_written_leaves_nothing(
    files: dict[str, bytes], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_bundle(tmp_path / "out" / name, lambda file: file.write(pack(files, AUDIT_FILES)))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_with_anything_else_in_it_is_no_bundle(files: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "more").write_bytes(b"")
    assert not verify_path(tmp_path).verified
    with pytest.raises(Malformed, match="no bundle"):
        verify_path(tmp_path / "nowhere")


OFFLINE = """
import socket, sys
def closed(*_, **__): raise AssertionError("the network is closed")
socket.socket = closed
socket.create_connection = closed
from coordinator.client.cli import main
import atexit
def check():
    loaded = [name for name in ("sqlalchemy", "sqlmodel", "fastapi", "httpx", "uvicorn", "flwr") if name in sys.modules]
    assert not loaded, loaded
atexit.register(check)
main()
"""


@pytest.mark.processes
def test_the_command_verifies_with_nothing_but_the_bundle(watched: tuple[Made, list[TestSite]], tmp_path: Path) -> None:
    made, _ = watched
    bundle, policy = tmp_path / "bundle.tar", tmp_path / "policy.json"
    export(made, bundle)
    policy.write_bytes(read_archive(bundle.read_bytes())["witness_policy.json"])

    def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", OFFLINE, "audit", "verify", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = verify(str(bundle), "--json", "--witness-policy", str(policy))
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    expected = {"entries": 31, "checkpoint_size": 31, "cosignatures": 4, "verified": True, "problems": []}
    assert {key: report[key] for key in expected} == expected
    assert "VERIFIED" in verify(str(bundle)).stdout
    data = bytearray(bundle.read_bytes())
    data[data.index(b"words 3")] ^= 1
    bundle.write_bytes(bytes(data))
    tampered = verify(str(bundle), "--json")
    assert tampered.returncode == 1
    assert json.loads(tampered.stdout)["verified"] is False
    assert "NOT VERIFIED" in verify(str(bundle)).stdout
    absent = verify(str(tmp_path / "nowhere.tar"))
    assert (absent.returncode, absent.stdout) == (1, "")
    assert "Traceback" not in absent.stderr
    assert "remedy:" in absent.stderr


def _other_log(policy: WitnessPolicy) -> dict[str, object]:
    from protocol.note import KeyType, VerifierKey

    other = VerifierKey(policy.log.name, KeyType.ED25519, SigningKey.generate().public.raw)
    return dict(WitnessPolicy(other, policy.witnesses, policy.quorum).to_document())
