"""Flower behind the coordinator's own port: certificates, the denylist, nodes that survive, a SuperLink that dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator.database import reading, transaction
from coordinator.federation.gateway import NodeTaken
from coordinator.parts import federation, sequencer
from coordinator.sites import enrolment
from coordinator.sites.node_registry import NodeRegistry
from coordinator.sites.repository import SiteRepository
from site_agent.federation.connection import FleetConnection, FleetRefused, FleetUnavailable
from site_agent.federation.transport import generate_node_key
from tests.coordinator.appliances import Made, Served, TestSite, served_coordinator

SECONDS = 40.0


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.05)


@pytest.fixture
def federated(tmp_path: Path) -> Iterator[Served]:
    with served_coordinator(tmp_path, beside=(sequencer, federation)) as served:
        until(lambda: health(served)["federation"] == "ok", "the SuperLink")
        yield served


def health(served: Served) -> dict[str, str]:
    with served.client() as client:
        return dict(client.get("/v1/health").json()["parts"])


def node_of(served: Served, site: str) -> int | None:
    return NodeRegistry(served.appliance.engine).node_of(site)


def connection(served: Served, site: TestSite, key: bytes) -> FleetConnection:
    ca, certificate, private = site.files(served.ca_path)
    return FleetConnection(served.address, ca_file=ca, certificate_file=certificate, key_file=private, node_key_pem=key)


@pytest.mark.processes
def test_a_site_joins_by_its_certificate_until_it_is_revoked(federated: Served, tmp_path: Path) -> None:
    site = TestSite("site-a", tmp_path)
    site.enrol_in(federated.appliance)
    with federated.client() as client:
        assert client.post("/v1/fleet/pull-messages").status_code == 401
        assert client.post("/v1/fleet/activate-node", headers={"cloister-node-id": "1"}).status_code == 401
    with federated.client(context=site.context(federated.ca_path)) as client:
        for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/docs", "/v1/fleet/../control/list-runs"):
            assert client.post(path).status_code == 404
            assert client.get(path).status_code == 404
        assert client.post("/v1/fleet/pull-fab").status_code == 404
    with connection(federated, site, generate_node_key()) as fleet:
        assert fleet.receive() is None
        assert node_of(federated, "site-a") == fleet.node_id, "kept in the database"
        with transaction(federated.appliance.engine) as session:
            enrolment.revoke(session, federated.appliance, "site-a")
        with pytest.raises(FleetRefused):
            fleet.receive()
        with pytest.raises(FleetRefused):
            fleet.reconnect()


@pytest.mark.processes
def test_a_superlink_that_is_killed_comes_back(federated: Served, tmp_path: Path) -> None:
    site, key = TestSite("site-a", tmp_path), generate_node_key()
    site.enrol_in(federated.appliance)
    assert federated.app is not None
    superlink = federated.app.state.superlink
    with connection(federated, site, key) as fleet:
        assert fleet.receive() is None
        before = superlink.pid
        os.kill(before, signal.SIGKILL)
        until(lambda: superlink.pid not in (before, None) and superlink.alive, "another SuperLink")

        def again() -> bool:
            try:
                fleet.reconnect()
                return fleet.receive() is None
            except FleetUnavailable:
                return False

        until(again, "the site's return")
        assert node_of(federated, "site-a") == fleet.node_id


def test_a_node_is_one_sites_and_is_remembered(made: Made, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("site-a", "site-b"):
        TestSite(name, tmp_path_factory.mktemp(name)).enrol_in(made.appliance)
    registry = NodeRegistry(made.appliance.engine)
    assert registry.node_of("site-a") is None
    registry.record("site-a", 2**64 - 1)
    with pytest.raises(NodeTaken):
        registry.record("site-b", 2**64 - 1)
    registry.record("site-a", 2**64 - 1)
    registry.record("site-b", 7)
    assert NodeRegistry(made.appliance.engine).node_of("site-a") == 2**64 - 1
    with reading(made.appliance.engine) as session:
        found = SiteRepository(session).with_node(7)
        assert found is not None
        assert found.name == "site-b"
