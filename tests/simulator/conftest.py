"""One federation for a module's tests; a new study for each test."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from protocol.study import StudySpec
from tests.simulator.federation import Federation, build_federation, study_spec

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def whole_federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return build_federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def federation(whole_federation: Federation) -> Federation:
    whole_federation.reset()
    return whole_federation


@pytest.fixture
def begin(federation: Federation) -> Callable[..., str]:
    """Propose, consent and start a new study; its name."""

    def start(refuse: tuple[str, ...] = (), **changes: object) -> str:
        spec: StudySpec = study_spec(f"hearts-{next(_numbers)}", **changes)
        federation.ready(spec, refuse)
        return spec.study

    return start
