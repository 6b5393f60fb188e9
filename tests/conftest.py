"""What every test shares: a closed network, and PostgreSQL where its server is installed."""

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

OPEN = ("processes", "demonstration")
"""Markers of tests that may open sockets; the options in pyproject.toml keep those on the loopback interface."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that starts no server has no socket either."""
    for item in items:
        if not any(item.get_closest_marker(name) for name in OPEN):
            item.add_marker(pytest.mark.disable_socket)


@pytest.fixture(scope="session")
def postgresql_cluster() -> Iterator[Path]:
    """A cluster of this session alone, reached by a socket in its folder; `postgres` or `nobody` runs it for root."""
    found = _server_programs()
    if found is None:
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


def _server_programs() -> Path | None:
    """The folder of PostgreSQL's newest initdb: Debian keeps it off the path."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return installed[-1].parent if installed else Path(on_path).parent if on_path else None
