"""A study from proposal to candidate, over the coordinator's and the sites' own code."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.studies.states import StudyState
from tests.simulator.federation import Federation, build_federation


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return build_federation(tmp_path)


def test_a_study_runs_from_proposal_to_candidate(federation: Federation) -> None:
    federation.ready()
    assert federation.driver().run() is StudyState.CANDIDATE
