"""Federations of sites as several tests begin with them: made once for a file, copied for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from site_agent.consent.plans import SignedPlan
from tests.site_agent.federation_of_sites import Federation, copy_of, federation


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, SignedPlan, Path]:
    folder = tmp_path_factory.mktemp("federation")
    world = federation(folder)
    signed = world.sign(world.plan())
    for site in world.hospitals.values():
        site.grant(signed)
    world.establish(signed)
    return world, signed, folder


@pytest.fixture
def running(with_keys: tuple[Federation, SignedPlan, Path], tmp_path: Path) -> tuple[Federation, SignedPlan]:
    """Everyone has granted and has keys."""
    world, signed, folder = with_keys
    return copy_of(world, folder, tmp_path), signed
