"""`cloister people …` and `cloister password`, as their people run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyotp
import pytest

from coordinator.client.account import register, sign_in
from coordinator.database import transaction
from coordinator.people import accounts
from protocol.identifiers import Role
from tests.coordinator.appliances import Served, TestPerson

pytestmark = pytest.mark.processes
PASSPHRASE = b"correct horse battery"


class Person:
    def __init__(self, served: Served, folder: Path, name: str, role: Role) -> None:
        with transaction(served.appliance.engine) as session:
            token = accounts.invite(session, served.appliance, name, role)
        self.account = register(token.to_text(), folder / name, PASSPHRASE)
        self.sign_in()

    def sign_in(self) -> None:
        sign_in(self.account, self.account.unlock(PASSPHRASE))

    def command(self, *arguments: str) -> list[str]:
        home = ("--home", str(self.account.home))
        return [sys.executable, "-m", "coordinator.client.cli", *arguments, *home]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False)


def test_an_administrator_reviews_confirms_and_disables(served: Served, tmp_path: Path) -> None:
    TestPerson("carl").join(served, Role.COMPLIANCE_OFFICER)
    served.clock.move(days=366)
    anna = Person(served, tmp_path, "anna", Role.ADMINISTRATOR)
    shown = anna.run("people", "review", "--overdue", "--json")
    assert [row["name"] for row in json.loads(shown.stdout)] == ["carl"], shown.stderr
    assert "overdue" in anna.run("people", "review").stdout
    assert anna.run("people", "confirm", "carl", "--shared").returncode == 0
    assert json.loads(anna.run("people", "review", "--overdue", "--json").stdout) == []
    assert "shared account" in anna.run("people", "review").stdout
    own = anna.run("people", "confirm", "anna")
    assert (own.returncode, "Nobody confirms their own role" in own.stderr) == (1, True)
    assert anna.run("people", "disable", "carl").returncode == 0
    gone = anna.run("people", "confirm", "carl")
    assert (gone.returncode, "carl is disabled" in gone.stderr) == (1, True)


def test_a_person_chooses_a_password_and_signs_in_by_it(served: Served, tmp_path: Path) -> None:
    """The environment's passphrase opens the key; it is never taken for the password, which leaves the machine."""
    ada, password = Person(served, tmp_path, "ada", Role.AUDITOR), tmp_path / "password"
    password.write_text("twelve plums and a kite\n")
    environment = {**os.environ, "CLOISTER_PASSPHRASE": PASSPHRASE.decode()}
    with subprocess.Popen(
        ada.command("password", "--password-file", str(password)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=environment,
    ) as running:  # fmt: skip
        assert running.stdout
        assert running.stdin
        secret = running.stdout.readline().rsplit(" ", 1)[1].strip()
        running.stdin.write(pyotp.TOTP(secret).at(served.clock()) + "\n")
        running.stdin.flush()
        assert running.wait(30) == 0
    served.clock.move(seconds=60)
    body = {"name": "ada", "code": pyotp.TOTP(secret).at(served.clock()), "browser": True}
    with served.client() as client:
        wrong = client.post("/v1/people/local-session", json={**body, "password": PASSPHRASE.decode()})
        assert wrong.status_code == 403
        right = client.post("/v1/people/local-session", json={**body, "password": "twelve plums and a kite"})
        assert right.status_code == 201


def test_the_operator_changes_roles_and_sets_the_provider(served: Served, tmp_path: Path) -> None:
    TestPerson("carl").join(served, Role.COMPLIANCE_OFFICER)
    secret = tmp_path / "secret"
    secret.write_text("of the client\n")

    def operator(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "coordinator.cli", "people", *arguments, "--home", str(served.appliance.home)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    bound = operator("add", "olga", "--role", "auditor", "--subject", "someone")
    assert (bound.returncode, "No identity provider" in bound.stderr) == (1, True)
    where = ("provider", "--client-id", "cloister", "--secret-file", str(secret))
    assert operator(*where, "--issuer", "http://plain.example").returncode == 1
    assert "/v1/people/federated/callback" in operator(*where, "--issuer", "https://id.example").stdout
    assert (served.appliance.home / "keys" / "identity_provider.secret").stat().st_mode & 0o077 == 0
    assert b"of the client" not in (served.appliance.home / "identity_provider.toml").read_bytes()
    assert operator("add", "olga", "--role", "auditor", "--subject", "someone").returncode == 0
    twin = operator("add", "olga-too", "--role", "auditor", "--subject", "someone")
    assert (twin.returncode, "One person has one account" in twin.stderr) == (1, True)
    assert "olga-too" not in operator("list").stdout, "the invitation is not half done"
    assert operator("role", "carl", "--role", "auditor").returncode == 0
    assert operator("confirm", "carl").returncode == 0
    assert {row["name"]: row["role"] for row in json.loads(operator("list", "--json").stdout)}["carl"] == "auditor"
