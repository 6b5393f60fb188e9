"""The site's only way out: whom it trusts, how much it reads, what it says when refused."""

from __future__ import annotations

import io
import ssl
from pathlib import Path

import pytest

from protocol.errors import Malformed
from site_agent.certificates import request_certificate
from site_agent.coordinator_client import (
    MAX_JSON,
    MAX_NOTE,
    CoordinatorClient,
    CoordinatorMisbehaved,
    CoordinatorRefused,
    CoordinatorUnreachable,
)
from site_agent.keystore import KeysUnusable, SiteKeys
from site_agent.settings import SiteHome, SiteSettings
from tests.site_agent.made_up_coordinator import MadeUpCoordinator, made_up_coordinator, problem

pytestmark = pytest.mark.processes


@pytest.fixture
def coordinator(tmp_path: Path):
    (tmp_path / "coordinator").mkdir()
    with made_up_coordinator(tmp_path / "coordinator") as coordinator:
        yield coordinator


def keys_for(coordinator: MadeUpCoordinator, folder: Path, *, signer: MadeUpCoordinator | None = None) -> SiteKeys:
    folder.mkdir(mode=0o700)
    keys = SiteKeys.generate(folder)
    csr = request_certificate("clinic-a", keys.identity)
    keys.certificate_path.write_bytes((signer or coordinator).certify(csr, "clinic-a"))
    keys.ca_path.write_bytes(coordinator.ca_pem)
    return keys


def settings_for(address: str, folder: Path) -> SiteSettings:
    return SiteSettings(SiteHome(folder), "clinic-a", address, "log", "coordinator", 1.0)


@pytest.fixture
def client(coordinator: MadeUpCoordinator, tmp_path: Path):
    with CoordinatorClient(
        settings_for(coordinator.address, tmp_path), keys_for(coordinator, tmp_path / "keys")
    ) as client:
        yield client


def test_a_certificate_by_another_ca_is_not_trusted(coordinator, tmp_path):
    (tmp_path / "other").mkdir()
    with made_up_coordinator(tmp_path / "other") as other:
        keys = keys_for(other, tmp_path / "keys")
        with (
            CoordinatorClient(settings_for(coordinator.address, tmp_path), keys) as client,
            pytest.raises(CoordinatorUnreachable, match="did not prove"),
        ):
            client.health()
    assert coordinator.requests == []


def test_another_host_name_is_not_trusted(coordinator, tmp_path):
    keys = keys_for(coordinator, tmp_path / "keys")
    address = coordinator.address.replace("127.0.0.1", "localhost")
    with (
        CoordinatorClient(settings_for(address, tmp_path), keys) as client,
        pytest.raises(CoordinatorUnreachable, match="did not prove"),
    ):
        client.health()


def test_a_client_certificate_that_the_coordinator_does_not_know_is_told(coordinator, tmp_path):
    (tmp_path / "other").mkdir()
    with made_up_coordinator(tmp_path / "other") as other:
        keys = keys_for(coordinator, tmp_path / "keys", signer=other)
        with (
            CoordinatorClient(settings_for(coordinator.address, tmp_path), keys) as client,
            pytest.raises(CoordinatorUnreachable),
        ):
            client.me()


def test_old_tls_is_not_spoken(coordinator, tmp_path):
    context = keys_for(coordinator, tmp_path / "keys").client_tls()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_proxies_of_the_environment_are_ignored(coordinator, client, monkeypatch, tmp_path):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    coordinator.routes["GET", "/v1/health"] = lambda _: (200, b'{"status":"ok"}')
    with CoordinatorClient(
        settings_for(coordinator.address, tmp_path), keys_for(coordinator, tmp_path / "k2")
    ) as fresh:
        assert fresh.health() == {"status": "ok"}


def test_a_redirect_is_not_followed(coordinator, client):
    coordinator.routes["GET", "/v1/health"] = lambda _: (302, b"")
    with pytest.raises(CoordinatorRefused) as caught:
        client.health()
    assert caught.value.status == 302
    assert [path for _, path, _ in coordinator.requests] == ["/v1/health"]


def test_a_refusal_carries_code_message_and_remedy(coordinator, client):
    coordinator.routes["GET", "/v1/sites/me"] = lambda _: problem(403, "site-revoked", "This site is revoked.", "Ask.")
    with pytest.raises(CoordinatorRefused) as caught:
        client.me()
    error = caught.value
    assert (error.code, error.message, error.remedy, error.status) == (
        "site-revoked",
        "This site is revoked.",
        "Ask.",
        403,
    )


@pytest.mark.parametrize("body", [b"", b"<html>Bad gateway</html>", b"[]", b"\xff", b'{"code":5,"detail":null}'])
def test_a_refusal_in_another_form_still_has_a_message_and_a_remedy(coordinator, client, body):
    coordinator.routes["GET", "/v1/sites/me"] = lambda _: (502, body)
    with pytest.raises(CoordinatorRefused) as caught:
        client.me()
    assert "502" in caught.value.message
    assert caught.value.remedy


def test_a_refusal_cannot_write_on_the_terminal_or_flood_it(coordinator, client):
    said = problem(400, "x", "\x1b[2J" + "y" * 5000)
    coordinator.routes["GET", "/v1/sites/me"] = lambda _: said
    with pytest.raises(CoordinatorRefused) as caught:
        client.me()
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) <= 2000


@pytest.mark.parametrize(
    ("path", "call", "limit"),
    [
        ("/v1/log/checkpoint", lambda client: client.checkpoint(), MAX_NOTE),
        ("/v1/sites/me/work", lambda client: client.work(), MAX_JSON),
    ],
)
def test_an_answer_over_the_limit_is_not_read(coordinator, client, path, call, limit):
    coordinator.routes["GET", path] = lambda _: (200, b"x" * (limit + 1))
    with pytest.raises(CoordinatorMisbehaved, match=f"longer than {limit}"):
        call(client)


@pytest.mark.parametrize("body", [b"", b"{", b'{"a":1,"a":2}', b'{"a":NaN}', b"[" * 1000, b"\xff", b"3", b'"x"'])
def test_an_answer_that_is_no_object_is_refused(coordinator, client, body):
    coordinator.routes["GET", "/v1/sites/me/work"] = lambda _: (200, body)
    with pytest.raises(CoordinatorMisbehaved):
        client.work()


@pytest.mark.parametrize("body", [b"{}", b"[1]", b'["x"]'])
def test_a_list_of_studies_is_a_list_of_objects(coordinator, client, body):
    coordinator.routes["GET", "/v1/sites/me/studies"] = lambda _: (200, body)
    with pytest.raises(CoordinatorMisbehaved):
        client.studies()


@pytest.mark.parametrize("name", ["../x", "a/b", "A", "", "x?y", "a" * 65])
def test_a_name_cannot_bend_a_path(coordinator, client, name):
    calls = (
        lambda: client.register_dataset(name, {}),
        lambda: client.post_consent(name, b""),
        lambda: client.download_release(name, io.BytesIO()),
        lambda: client.post_installed(name, {}),
    )
    for call in calls:
        with pytest.raises(Malformed):
            call()
    assert coordinator.requests == []


def test_a_release_is_streamed_to_a_file(coordinator, client):
    coordinator.routes["GET", "/v1/releases/r-1/bundle"] = lambda _: (200, b"x" * 300_000)
    file = io.BytesIO()
    assert client.download_release("r-1", file) == 300_000
    assert file.getvalue() == b"x" * 300_000


def test_nobody_there_and_a_hang_up(coordinator, tmp_path):
    keys = keys_for(coordinator, tmp_path / "keys")
    with (
        CoordinatorClient(settings_for("127.0.0.1:9", tmp_path), keys) as client,
        pytest.raises(CoordinatorUnreachable, match="can't be reached") as caught,
    ):
        client.health()
    assert "firewall" in caught.value.remedy


def test_damaged_certificates_are_named(coordinator, tmp_path):
    keys = keys_for(coordinator, tmp_path / "keys")
    keys.certificate_path.write_bytes(b"rubbish")
    with pytest.raises(KeysUnusable, match="certificate"):
        keys.client_tls()
    keys.ca_path.unlink()
    with pytest.raises(KeysUnusable, match=r"ca\.pem"):
        keys.client_tls()
