"""Databases and coordinators that the coordinator's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.coordinator.appliances import Made, Served, make_coordinator, served_coordinator


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
