"""A person's home: what is written, what is pinned before anything is said, what a wrong passphrase gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.client.account import AccountError, open_account, register, sign_in
from coordinator.client.connection import CoordinatorRefused, CoordinatorUnreachable
from coordinator.database import reading, transaction
from coordinator.people import accounts
from coordinator.people.repository import PersonRepository
from protocol.enrolment import Token
from protocol.errors import Malformed, VerificationFailed
from protocol.identifiers import Role
from tests.coordinator.appliances import Served, make_coordinator

pytestmark = pytest.mark.processes
PASSPHRASE = b"correct horse battery"


def invite(served: Served, name: str = "ada") -> Token:
    with transaction(served.appliance.engine) as session:
        return accounts.invite(session, served.appliance, name, Role.RESEARCHER)


def status(served: Served, name: str = "ada") -> str:
    with reading(served.appliance.engine) as session:
        person = PersonRepository(session).get(name)
        return person.status if person else "unknown"


def test_a_home_is_private_whole_and_opens_with_its_passphrase_only(served: Served, tmp_path: Path) -> None:
    home = tmp_path / "person" / "ada"
    account = register(invite(served).to_text(), home, PASSPHRASE)
    assert open_account(home) == account
    assert (account.name, account.role, account.address) == ("ada", Role.RESEARCHER, served.address)
    assert b"ENCRYPTED" in account.key_path.read_bytes()
    sign_in(account, account.unlock(PASSPHRASE))
    assert sorted(path.name for path in home.iterdir()) == ["ca.pem", "key.pem", "person.toml", "session"]
    assert [path for path in (home, *home.iterdir()) if path.stat().st_mode & 0o077] == []
    assert list(home.parent.iterdir()) == [home]
    with pytest.raises(AccountError, match="passphrase"):
        account.unlock(b"a wrong passphrase")
    with account.connect() as connection:
        assert connection.get("/v1/people/me")["key"] == account.unlock(PASSPHRASE).public.text
    account.session_path.chmod(0o644)
    with pytest.raises(AccountError, match="other users"):
        account.connect()


def test_nothing_is_sent_to_another_coordinator_than_the_tokens(served: Served, tmp_path: Path) -> None:
    """The token names another CA than the one that answers: the secret stays unused, and no home is made."""
    token = invite(served)
    other = make_coordinator(tmp_path / "other")
    other.appliance.engine.dispose()
    wrong = token.model_copy(update={"ca": other.appliance.keys.authority.fingerprint})
    with pytest.raises(VerificationFailed, match="not the coordinator that made the token"):
        register(wrong.to_text(), tmp_path / "ada", PASSPHRASE)
    assert not (tmp_path / "ada").exists()
    assert status(served) == "invited"
    assert register(token.to_text(), tmp_path / "ada", PASSPHRASE).name == "ada"


def test_a_later_connection_trusts_the_pinned_ca_only(served: Served, tmp_path: Path) -> None:
    account = register(invite(served).to_text(), tmp_path / "ada", PASSPHRASE)
    other = make_coordinator(tmp_path / "other")
    other.appliance.engine.dispose()
    account.ca_path.write_text(other.appliance.keys.authority.pem)
    with pytest.raises(CoordinatorUnreachable, match="pinned"):
        sign_in(account, account.unlock(PASSPHRASE))


def test_what_cannot_register_leaves_nothing(served: Served, tmp_path: Path) -> None:
    home, token = tmp_path / "homes" / "ada", invite(served)
    site = token.model_copy(update={"kind": "site"})
    with pytest.raises(AccountError, match="for a site"):
        register(site.to_text(), home, PASSPHRASE)
    with pytest.raises(Malformed, match="token"):
        register("cloister-person.nonsense", home, PASSPHRASE)
    with pytest.raises(AccountError, match="12 characters"):
        register(token.to_text(), home, b"short")
    with pytest.raises(CoordinatorUnreachable):
        register(token.model_copy(update={"address": "127.0.0.1:1"}).to_text(), home, PASSPHRASE)
    with pytest.raises(CoordinatorRefused):
        register(token.model_copy(update={"secret": "A" * 43}).to_text(), home, PASSPHRASE)
    assert not home.parent.exists() or list(home.parent.iterdir()) == []
    assert status(served) == "invited"
    register(token.to_text(), home, PASSPHRASE)
    with pytest.raises(AccountError, match="already"):
        register(invite(served, "bob").to_text(), home, PASSPHRASE)
    assert open_account(home).name == "ada"


def test_the_login_command(served: Served, tmp_path: Path) -> None:
    home, secret = tmp_path / "ada", tmp_path / "passphrase"
    secret.write_text("correct horse battery\n")
    environment = {key: value for key, value in os.environ.items() if key != "CLOISTER_PASSPHRASE"}

    def cloister(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "coordinator.client.cli", *arguments, "--home", str(home)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=environment | more
        )

    token = invite(served).to_text()
    without = cloister("login", token)
    assert (without.returncode, "passphrase" in without.stderr, home.exists()) == (1, True, False)
    first = cloister("login", token, "--passphrase-file", str(secret), "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["role"] == "researcher"
    assert cloister("login", CLOISTER_PASSPHRASE="correct horse battery").returncode == 0
    wrong = cloister("login", "--json", CLOISTER_PASSPHRASE="another passphrase")
    assert (wrong.returncode, json.loads(wrong.stdout)["error"]["code"]) == (1, "account")
    assert cloister("sites", "--json").returncode == 0
    assert cloister("logout").returncode == 0
    after = cloister("sites")
    assert (after.returncode, after.stderr.splitlines()[-1]) == (1, "remedy: Run `cloister login`.")
