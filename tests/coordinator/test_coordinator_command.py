"""`cloister-coordinator` as an operator meets it: init, settings, keys, errors with a remedy, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from sqlmodel import col, select

from coordinator.appliance import open_appliance
from coordinator.audit.tables import LogEntry
from coordinator.database import reading, transaction
from coordinator.initialise import initialise
from coordinator.keystore import KeystoreError, load_keys, renew_server_certificate
from coordinator.server import listening
from coordinator.serving_lock import CannotServe, serving_lock
from coordinator.settings import SettingsError, default_listen, load_settings, split_address
from protocol.enrolment import Token
from tests.coordinator.appliances import Made, bound_socket, trusting


def coordinator(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coordinator.cli", *arguments, "--home", str(home)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The error, once it is known to be one clear message with a remedy."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "remedy"], done.stderr
    return done.stderr


@pytest.mark.processes
def test_init_makes_a_private_home_and_prints_the_only_secret(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = coordinator("init", "--address", "localhost:8443", "--administrator", "grace", "--json", home=home)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    token = Token.from_text(made["token"])
    assert (token.kind, token.name, token.address, token.ca) == ("person", "grace", "localhost:8443", made["ca"])
    everything = [home, *home.rglob("*")]
    assert [path for path in everything if path.stat().st_mode & 0o077] == []
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    for path in everything:
        assert path.is_dir() or token.secret.encode() not in path.read_bytes()
    again = coordinator("init", "--address", "localhost:8443", home=home)
    assert "exists already" in told(again)
    assert json.loads(coordinator("status", "--json", home=home).stdout)["people"] == {"invited": 1}


@pytest.mark.processes
def test_every_error_is_one_message_with_a_remedy(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert "no coordinator" in told(coordinator("status", home=home))
    assert "HOST:PORT" in told(coordinator("init", "--address", "nonsense", home=home))
    assert "postgresql+psycopg://" in told(
        coordinator("init", "--address", "h:1", "--database", "mysql://x", home=home)
    )
    assert "name" in told(coordinator("init", "--address", "h:1", "--administrator", "Grace H", home=home))
    assert list(tmp_path.iterdir()) == [], "nothing half-written"
    assert coordinator("init", "--address", "localhost:8443", home=home).returncode == 0
    assert "valid name" in told(coordinator("sites", "invite", "Not A Name", home=home))
    assert "no site named" in told(coordinator("sites", "revoke", "nobody", home=home))
    assert "no person named" in told(coordinator("people", "disable", "nobody", home=home))
    usage = coordinator("people", "add", "ada", "--role", "king", home=home)
    assert (usage.returncode, usage.stdout) == (2, "")
    failed = coordinator("sites", "revoke", "nobody", "--json", home=home)
    assert failed.returncode != 0
    (home / "coordinator.toml").write_text("address = [", encoding="utf-8")
    assert "not valid TOML" in told(coordinator("status", home=home))


@pytest.mark.processes
def test_people_and_sites_are_managed_from_the_command_line(tmp_path: Path) -> None:
    home = tmp_path / "home"
    coordinator("init", "--address", "localhost:8443", home=home)
    added = json.loads(coordinator("people", "add", "ada", "--role", "researcher", "--json", home=home).stdout)
    assert Token.from_text(added["token"]).kind == "person"
    assert "one person holds one role" in told(coordinator("people", "add", "ada", "--role", "auditor", home=home))
    invited = json.loads(coordinator("sites", "invite", "site-a", "--json", home=home).stdout)
    assert Token.from_text(invited["token"]).kind == "site"
    assert coordinator("people", "disable", "ada", home=home).returncode == 0
    people = {
        row["name"]: row["status"] for row in json.loads(coordinator("people", "list", "--json", home=home).stdout)
    }
    assert people == {"ada": "disabled", "administrator": "invited"}
    assert coordinator("sites", "revoke", "site-a", home=home).returncode == 0
    sites = json.loads(coordinator("sites", "list", "--json", home=home).stdout)
    assert [(row["name"], row["status"]) for row in sites] == [("site-a", "revoked")]


@pytest.mark.processes
def test_serve_answers_refuses_a_second_and_ends_when_told(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with bound_socket() as taken:
        port = taken.getsockname()[1]
        coordinator("init", "--address", f"127.0.0.1:{port}", home=home)
        taken.listen()
        assert f"Port {port} on 127.0.0.1 is in use" in told(coordinator("serve", home=home))
    command = [sys.executable, "-m", "coordinator.cli", "serve", "--home", str(home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready at https://127.0.0.1:{port}\n"
        with httpx.Client(verify=trusting(home / "keys/ca.pem"), trust_env=False, timeout=20) as client:
            health = client.get(f"https://127.0.0.1:{port}/v1/health").json()
            assert health["parts"].keys() == {"log", "federation", "rounds"}
        assert json.loads(coordinator("status", "--json", home=home).stdout)["served"] is True
        assert "already being served" in told(coordinator("serve", home=home))
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert "Traceback" not in out + err
    assert json.loads(coordinator("status", "--json", home=home).stdout)["served"] is False


@pytest.mark.processes
def test_a_log_that_was_tampered_with_is_not_served(local: Made) -> None:
    with transaction(local.appliance.engine) as session:
        entry = session.exec(select(LogEntry).where(LogEntry.log_index == 0)).one()
        entry.leaf = entry.leaf.replace(b"coordinator", b"coordinatox", 1)
    local.appliance.engine.dispose()
    assert "not the one that was signed" in told(coordinator("serve", home=local.appliance.home))


@pytest.mark.processes
def test_init_on_postgresql_uses_an_empty_database_and_leaves_it_so_when_it_fails(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coordinator import initialise as module

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_private", full)
        with pytest.raises(OSError, match="No space"):
            initialise(tmp_path / "home", address="localhost:8443", database=postgresql_url)
    assert list(tmp_path.iterdir()) == []
    initialise(tmp_path / "home", address="localhost:8443", database=postgresql_url)
    with pytest.raises(SettingsError, match="not empty"):
        initialise(tmp_path / "other", address="localhost:8443", database=postgresql_url)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    appliance = open_appliance(tmp_path / "home")
    appliance.engine.dispose()


def test_a_failure_at_any_step_of_init_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coordinator import initialise as module

    for step in ("make_keys", "upgrade", "append", "integrate_once", "write_private"):

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(module, step, full)
            with pytest.raises(OSError, match="No space"):
                initialise(tmp_path / "home", address="localhost:8443")
        assert list(tmp_path.iterdir()) == [], step


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("cloister.example.org:8443", ("cloister.example.org", 8443)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "host:0", "host:65536", "::1:1", "[x]:1", "ho st:1", "-h:1", "h:1:1", "h:١"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(SettingsError, match="HOST:PORT"):
        split_address(address)


def test_where_to_listen_by_default() -> None:
    assert default_listen("127.0.0.1:8443") == "127.0.0.1:8443"
    assert default_listen("localhost:8443") == "127.0.0.1:8443"
    assert default_listen("[::1]:8443") == "[::1]:8443"
    assert default_listen("cloister.example.org:8443") == "0.0.0.0:8443"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("sequencer_interval = -1", "sequencer_interval"),
        ("listen = 7", "listen"),
        ("unknown = 1", "unknown"),
        ('home = "/elsewhere"', "home"),
        ("round_deadline = nan", "round_deadline"),
    ],
)
def test_a_wrong_setting_is_named(local: Made, change: str, named: str) -> None:
    path = local.appliance.home / "coordinator.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(change.partition(" ")[0])]
    path.write_text("\n".join([*lines, change]))
    with pytest.raises(SettingsError, match=named):
        load_settings(local.appliance.home)


def test_settings_survive_their_file(local: Made) -> None:
    assert load_settings(local.appliance.home) == local.appliance.settings


def test_exposed_missing_and_foreign_keys_are_refused(local: Made, tmp_path: Path) -> None:
    folder, settings = local.appliance.settings.keys_folder, local.appliance.settings
    (folder / "log.key.pem").chmod(0o640)
    with pytest.raises(KeystoreError, match="other users"):
        load_keys(settings)
    (folder / "log.key.pem").chmod(0o600)
    other = initialise(tmp_path / "other", address="localhost:1").settings
    good = (folder / "ca.pem").read_bytes()
    (folder / "ca.pem").write_bytes((other.keys_folder / "ca.pem").read_bytes())
    with pytest.raises(KeystoreError, match="belong together"):
        load_keys(settings)
    (folder / "ca.pem").write_bytes(good)
    (folder / "coordinator.key.pem").write_bytes(b"nonsense")
    with pytest.raises((KeystoreError, Exception), match=r"damaged|PEM"):
        load_keys(settings)
    (folder / "coordinator.key.pem").unlink()
    with pytest.raises(KeystoreError, match="missing"):
        load_keys(settings)


def test_no_secret_in_a_repr(local: Made) -> None:
    shown = repr(local.appliance)
    assert local.appliance.keys.pseudonym_secret.hex() not in shown
    assert repr(local.appliance.keys.pseudonym_secret) not in shown


def test_the_servers_certificate_is_renewed_in_time_and_for_a_new_address(local: Made) -> None:
    keys, now, entropy = local.appliance.keys, datetime.now(UTC), local.appliance.entropy
    address = local.appliance.settings.address

    def renew(moment: datetime, where: str = address) -> bool:
        return renew_server_certificate(keys, where, now=moment, entropy=entropy)

    assert not renew(now)
    assert not renew(now + timedelta(days=260))
    assert renew(now + timedelta(days=270))
    assert renew(now, "cloister.example.org:8443")
    certificate = x509.load_pem_x509_certificate(keys.server_certificate_path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["cloister.example.org"]
    assert "BEGIN CERTIFICATE" in keys.server_certificate_path.read_text()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.server_certificate_path, keys.server_key_path)


def test_one_server_for_one_home(local: Made) -> None:
    with serving_lock(local.appliance.home), pytest.raises(CannotServe), serving_lock(local.appliance.home):
        pass
    with serving_lock(local.appliance.home):
        pass


@pytest.mark.processes
def test_an_address_that_is_not_ours_or_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CannotServe, match="in use"), listening(f"127.0.0.1:{taken.getsockname()[1]}"):
            pass
    with pytest.raises(CannotServe, match="can't be listened on"), listening("192.0.2.1:8443"):
        pass


@pytest.mark.processes
def test_retention_is_planned_tried_and_run(local: Made) -> None:
    """On a coordinator that holds stray chunks: the plan's exit code says that something is due, until it is gone."""
    home = local.appliance.home
    stray = home / "uploads" / ("f" * 32) / ("a" * 32)
    stray.mkdir(parents=True)
    (stray / "0").write_bytes(b"masked")
    planned = coordinator("retention", "plan", "--json", home=home)
    assert planned.returncode == 1, planned.stderr
    (row,) = json.loads(planned.stdout)["holdings"]
    assert (row["class"], row["standing"], row["bytes"]) == ("update", "due", 6)
    tried = coordinator("retention", "run", "--dry-run", home=home)
    assert "would be erased" in tried.stdout
    assert (stray / "0").is_file()
    ran = coordinator("retention", "run", "--json", home=home)
    assert (ran.returncode, json.loads(ran.stdout)["forgotten"]) == (0, True), ran.stderr
    assert not stray.exists()
    assert coordinator("retention", "plan", home=home).returncode == 0
    with reading(local.appliance.engine) as session:
        leaf = session.exec(select(LogEntry.leaf).order_by(col(LogEntry.id).desc()).limit(1)).one()
    assert b'"event":"records.purged"' in leaf
