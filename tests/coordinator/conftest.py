"""Databases and coordinators that the coordinator's tests share."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.coordinator.appliances import Made, Served, make_coordinator, served_coordinator

POSTGRESQL = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="session")
def postgresql_cluster() -> Iterator[Path]:
    """A cluster of this session alone, reached by a socket in its folder; `postgres` or `nobody` runs it for root."""
    found = POSTGRESQL if POSTGRESQL.is_dir() else Path(shutil.which("initdb") or "/nowhere/initdb").parent
    if not (found / "initdb").exists():
        pytest.skip("PostgreSQL's server programs are not installed here")
    folder = Path(tempfile.mkdtemp(prefix="cloister-pg-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        account = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def run(*command: str) -> None:
        environment = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
        subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environment, **user)

    data = folder / "data"
    try:
        run(str(found / "initdb"), "-D", str(data), "-U", "cloister", "-A", "trust", "-N", "-E", "UTF8")
        options = f"-c listen_addresses='' -k {folder} -c fsync=off -c max_connections=60"
        run(str(found / "pg_ctl"), "-D", str(data), "-l", str(folder / "log"), "-w", "-o", options, "start")
        try:
            yield folder
        finally:
            run(str(found / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_url(postgresql_cluster: Path) -> Iterator[str]:
    """An empty database of the cluster."""
    import psycopg

    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(host=str(postgresql_cluster), user="cloister", dbname="postgres", autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    yield f"postgresql+psycopg://cloister@/{name}?host={postgresql_cluster}"
    with psycopg.connect(host=str(postgresql_cluster), user="cloister", dbname="postgres", autocommit=True) as server:
        server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.processes)])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Made]:
    """A new coordinator on each kind of database."""
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    coordinator = make_coordinator(tmp_path, database=url)
    yield coordinator
    coordinator.appliance.engine.dispose()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Made]:
    """A new coordinator on SQLite."""
    coordinator = make_coordinator(tmp_path)
    yield coordinator
    coordinator.appliance.engine.dispose()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A coordinator that answers over TLS on the loopback interface."""
    with served_coordinator(tmp_path) as coordinator:
        yield coordinator
