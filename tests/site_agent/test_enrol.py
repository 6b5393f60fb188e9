"""Enrolment against honest, broken and hostile coordinators: a whole home, or none."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.checkpoint import cosigner_key
from protocol.enrolment import witness_name
from protocol.errors import CloisterError, Malformed, VerificationFailed
from protocol.signing import SigningKey
from site_agent.clock import system_clock
from site_agent.coordinator_client import CoordinatorMisbehaved, CoordinatorRefused, CoordinatorUnreachable
from site_agent.database import open_database, transaction
from site_agent.enrol import EnrolmentRefused, enrol
from site_agent.keystore import KeysUnusable, load_keys
from site_agent.settings import SiteHome, load_settings
from site_agent.witness import repository
from tests.papers import papers_file
from tests.site_agent.made_up_coordinator import MadeUpCoordinator, MadeUpLog, made_up_coordinator, problem

pytestmark = pytest.mark.processes


@pytest.fixture
def coordinator(tmp_path: Path):
    (tmp_path / "coordinator").mkdir()
    with made_up_coordinator(tmp_path / "coordinator") as coordinator:
        yield coordinator


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return SiteHome(tmp_path / "site")


def refuses(coordinator: MadeUpCoordinator, home: SiteHome, error: type[CloisterError], match: str, token: str = ""):
    """Enrolment fails so, and leaves nothing."""
    before = sorted(home.path.parent.iterdir())
    with pytest.raises(error, match=match) as caught:
        enrol(token or coordinator.token(), home, system_clock, papers_file())
    assert caught.value.remedy
    assert sorted(home.path.parent.iterdir()) == before
    return caught.value


def answers(coordinator: MadeUpCoordinator, **changes: Any) -> None:
    """The coordinator enrols with a wrong answer."""
    coordinator.routes["POST", "/v1/enrol"] = lambda body: (
        201,
        json.dumps(coordinator.enrolment(body, **changes)).encode(),
    )


def test_a_home_holds_all_that_the_site_trusts(coordinator, home):
    enrolled = enrol(coordinator.token(), home, system_clock, papers_file())
    settings = load_settings(home)
    assert (settings.site, settings.address) == ("clinic-a", coordinator.address)
    assert settings.log == coordinator.log.vkey.text
    assert settings.coordinator == coordinator.key.public.text
    keys = load_keys(home)
    assert enrolled.identity == keys.identity.public.text
    assert keys.identity.public != keys.witness.public
    assert keys.ca_path.read_bytes() == coordinator.ca_pem
    certificate = x509.load_pem_x509_certificate(keys.certificate_path.read_bytes())
    assert certificate.public_key().public_bytes_raw() == keys.identity.public.raw
    keys.client_tls()
    with transaction(open_database(home)) as session:
        assert repository.policy_in_force(session) == coordinator.policy


def test_everything_in_a_home_is_the_owners_alone(coordinator, home):
    enrol(coordinator.token(), home, system_clock, papers_file())
    for path in [home.path, *home.path.rglob("*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert {path.name for path in home.path.iterdir()} >= {"site.toml", "site.db", "keys", "snapshots", "mirror"}


def test_the_private_keys_never_leave(coordinator, home):
    enrol(coordinator.token(), home, system_clock, papers_file())
    keys = load_keys(home)
    sent = b"".join(body for _, _, body in coordinator.requests)
    for secret in (keys.identity.to_pem(), keys.witness.to_pem(), keys.secret):
        body = b"".join(secret.splitlines()[1:-1]) if secret.startswith(b"-----") else secret
        assert body not in sent
        assert body.hex().encode() not in sent


def test_an_empty_folder_may_become_the_home(coordinator, home):
    home.path.mkdir()
    enrol(coordinator.token(), home, system_clock, papers_file())
    assert load_settings(home).site == "clinic-a"


def test_a_home_in_use_is_not_touched_and_nothing_is_sent(coordinator, home):
    home.path.mkdir()
    (home.path / "ledger").write_text("precious")
    error = refuses(coordinator, home, EnrolmentRefused, "already in use")
    assert "--home" in error.remedy
    assert (home.path / "ledger").read_text() == "precious"
    assert coordinator.requests == []


def test_a_dangling_link_is_no_home(coordinator, home, tmp_path):
    home.path.symlink_to(tmp_path / "elsewhere")
    refuses(coordinator, home, EnrolmentRefused, "already in use")


def test_nothing_but_the_ca_is_asked_of_a_coordinator_with_another_ca(coordinator, home):
    token = coordinator.token(ca="sha256:" + "0" * 64)
    error = refuses(coordinator, home, VerificationFailed, "nothing was sent", token)
    assert "fingerprint" in error.remedy
    assert [(method, path) for method, path, _ in coordinator.requests] == [("GET", "/v1/ca")]


def test_somebody_in_between_who_shows_the_real_ca_gets_no_secret(coordinator, home, tmp_path):
    """The CA certificate is public: who relays it, and has no server certificate by it, is refused by TLS."""
    (tmp_path / "mallory").mkdir()
    with made_up_coordinator(tmp_path / "mallory") as mallory:
        mallory.routes["GET", "/v1/ca"] = lambda _: (200, coordinator.ca_pem)
        token = coordinator.token(address=mallory.address)
        refuses(coordinator, home, CoordinatorUnreachable, "did not prove", token)
        assert [path for _, path, _ in mallory.requests] == ["/v1/ca"]


def test_a_second_certificate_beside_the_ca_is_refused(coordinator, home):
    coordinator.routes["GET", "/v1/ca"] = lambda _: (200, coordinator.ca_pem * 2)
    refuses(coordinator, home, Malformed, "not one certificate")


@pytest.mark.parametrize("served", [b"", b"<html>", b"\0\xff" * 100])
def test_what_is_no_ca_is_refused(coordinator, home, served):
    coordinator.routes["GET", "/v1/ca"] = lambda _: (200, served)
    refuses(coordinator, home, Malformed, "not one certificate")


def test_a_used_token_says_so(coordinator, home):
    said = problem(403, "token-refused", "The token has been used already.", "Ask for a new one.")
    coordinator.routes["POST", "/v1/enrol"] = lambda _: said
    error = refuses(coordinator, home, CoordinatorRefused, "used already")
    assert (error.code, error.remedy) == ("token-refused", "Ask for a new one.")


@pytest.mark.parametrize("text", ["", "abc", "cloister-site.AAAA", "cloister-site." + "A" * 5000, "héllo.wörld"])
def test_what_is_no_token_is_refused(coordinator, home, text):
    refuses(coordinator, home, Malformed, "not a Cloister token", text or " ")
    assert coordinator.requests == []


def test_a_persons_token_is_not_a_sites(coordinator, home):
    error = refuses(coordinator, home, EnrolmentRefused, "for a person", coordinator.token(kind="person"))
    assert "cloister login" in error.remedy


def test_nobody_at_the_address(coordinator, home):
    token = coordinator.token(address="127.0.0.1:9")
    refuses(coordinator, home, CoordinatorUnreachable, "can't be reached", token)


def test_a_certificate_by_another_ca_is_refused(coordinator, home):
    coordinator.routes["POST", "/v1/enrol"] = lambda body: (
        201,
        json.dumps(
            coordinator.enrolment(
                body,
                certificate=coordinator.certify(
                    json.loads(body)["csr"], "clinic-a", signer=Ed25519PrivateKey.generate()
                ).decode(),
            )
        ).encode(),
    )
    refuses(coordinator, home, VerificationFailed, "not signed by the pinned CA")


@pytest.mark.parametrize(
    ("site", "changes", "match"),
    [
        ("clinic-b", {}, "names another site"),
        ("clinic-a", {"days": 400}, "longer than 7 days"),
        ("clinic-a", {"age": 30}, "does not hold now"),
    ],
)
def test_a_certificate_that_is_not_this_sites_week_is_refused(coordinator, home, site, changes, match):
    def route(body: bytes) -> tuple[int, bytes]:
        pem = coordinator.certify(json.loads(body)["csr"], site, **changes).decode()
        return 201, json.dumps(coordinator.enrolment(body, certificate=pem)).encode()

    coordinator.routes["POST", "/v1/enrol"] = route
    refuses(coordinator, home, VerificationFailed, match)


def test_a_certificate_for_another_key_is_refused(coordinator, home):
    from site_agent.certificates import request_certificate

    other = coordinator.certify(request_certificate("clinic-a", SigningKey.generate()), "clinic-a").decode()
    answers(coordinator, certificate=other)
    refuses(coordinator, home, VerificationFailed, "for another key")


def test_a_clock_that_is_wrong_is_named(coordinator, home):
    with pytest.raises(VerificationFailed, match="does not hold now") as caught:
        enrol(coordinator.token(), home, lambda: datetime.now(UTC) + timedelta(days=40), papers_file())
    assert "clock" in caught.value.remedy
    assert not home.path.exists()


def test_a_policy_of_another_log_is_refused(coordinator, home):
    answers(coordinator, log=MadeUpLog("other/log").vkey.text)
    refuses(coordinator, home, VerificationFailed, "another log")


def test_a_policy_without_this_site_is_refused(coordinator, home):
    coordinator.policy = coordinator.log.policy(cosigner_key(witness_name("clinic-z"), SigningKey.generate()))
    refuses(coordinator, home, VerificationFailed, "leaves this site out")


def test_a_policy_with_an_unsafe_quorum_is_refused(coordinator, home):
    def route(body: bytes) -> tuple[int, bytes]:
        answer = coordinator.enrolment(body)
        answer["witness_policy"]["quorum"] = 0
        return 201, json.dumps(answer).encode()

    coordinator.routes["POST", "/v1/enrol"] = route
    refuses(coordinator, home, Malformed, "quorum")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"certificate": 1}', b"\xff", b'{"a":1,"a":2}'])
def test_an_answer_in_another_form_is_refused(coordinator, home, body):
    coordinator.routes["POST", "/v1/enrol"] = lambda _: (201, body)
    refuses(coordinator, home, CoordinatorMisbehaved, "answer")


def test_a_full_disk_leaves_nothing(coordinator, home, monkeypatch):
    import errno

    import site_agent.enrol as room

    def full(path: Path, data: bytes, **_: Any) -> None:
        if path.name == "site.toml":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path, data)

    original = room.write_durably
    monkeypatch.setattr(room, "write_durably", full)
    before = sorted(home.path.parent.iterdir())
    with pytest.raises(OSError):
        enrol(coordinator.token(), home, system_clock, papers_file())
    assert sorted(home.path.parent.iterdir()) == before


def test_a_key_that_others_may_read_is_refused(coordinator, home):
    enrol(coordinator.token(), home, system_clock, papers_file())
    path = home.keys / "witness.pem"
    path.chmod(0o640)
    with pytest.raises(KeysUnusable, match="may be read by others") as caught:
        load_keys(home)
    assert caught.value.remedy == f"Run chmod 600 {path}."


@pytest.mark.parametrize("name", ["identity.pem", "witness.pem", "patient-hash.secret"])
def test_a_missing_or_damaged_key_is_named(coordinator, home, name):
    enrol(coordinator.token(), home, system_clock, papers_file())
    (home.keys / name).write_bytes(b"rubbish")
    with pytest.raises(KeysUnusable, match="damaged"):
        load_keys(home)
    (home.keys / name).unlink()
    with pytest.raises(KeysUnusable, match=name):
        load_keys(home)


def test_the_key_of_stored_states_is_named_when_damaged_and_made_anew_when_lost(coordinator, home):
    """Without it running studies end at this site, and nothing else does: patients' hashes need another secret."""
    enrol(coordinator.token(), home, system_clock, papers_file())
    path = home.keys / "secure-sum.key"
    first = load_keys(home).state
    path.write_bytes(b"rubbish")
    with pytest.raises(KeysUnusable, match="damaged"):
        load_keys(home)
    path.unlink()
    assert load_keys(home).state not in (first, b"rubbish")
    assert load_keys(home).state == load_keys(home).state == path.read_bytes()
    path.chmod(0o644)
    with pytest.raises(KeysUnusable, match="may be read by others"):
        load_keys(home)


def test_the_real_coordinator_enrols_once(tmp_path: Path):
    from coordinator.database import transaction as coordinator_transaction
    from coordinator.sites import enrolment
    from tests.coordinator.appliances import served_coordinator

    with served_coordinator(tmp_path) as served:
        with coordinator_transaction(served.appliance.engine) as session:
            token = enrolment.invite(session, served.appliance, "clinic-a").to_text()
        home = SiteHome(tmp_path / "site")
        enrol(token, home, system_clock, papers_file())
        with pytest.raises(CoordinatorRefused, match="used already"):
            enrol(token, SiteHome(tmp_path / "again"), system_clock, papers_file())
        assert not (tmp_path / "again").exists()
