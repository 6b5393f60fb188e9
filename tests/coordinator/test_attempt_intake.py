"""The answers of one attempt: added as they come, in memory that does not grow with the sites, and never by halves."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from coordinator.rounds.attempts import Intake, grid_of
from coordinator.rounds.exchange import Unreached
from privacy.errors import MissingContributors
from protocol.canonical import sha256_hex
from protocol.envelope import seal
from protocol.plan import PlannedSite
from protocol.round import CONTRIBUTION_TYPE, Contribution, Packet, RoundRequest
from protocol.signing import SigningKey
from protocol.study import StudyPlan
from tests.site_agent.federation_of_sites import federation, mlp

DIGEST = "sha256:" + "1" * 64
SITES = 40
KEYS = {f"site-{number:02d}": SigningKey.from_seed(number.to_bytes(32, "big")) for number in range(SITES)}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    return federation(Path(tmp_path_factory.mktemp("plan")), model=mlp((600, 600))).plan()


def plan_of(template: StudyPlan, sites: int) -> StudyPlan:
    planned = tuple(
        PlannedSite(name=name, identity=key.public.text, jurisdiction="EU", patients=80, held_out=20, snapshot=DIGEST)
        for name, key in list(KEYS.items())[:sites]
    )
    return template.model_copy(update={"sites": planned})


def request_for(plan: StudyPlan) -> RoundRequest:
    return RoundRequest(
        study=plan.spec.study,
        plan_digest=DIGEST,
        phase="train",
        round=1,
        attempt=1,
        cohort=plan.names,
        model=DIGEST,
        issued_at="2026-03-01T12:00:00Z",
        expires_at="2026-03-01T12:05:00Z",
    )


def contribution(
    request: RoundRequest, site: str, words: np.ndarray, changes: dict[str, object] | None = None
) -> bytes:
    body = words.astype("<u4").tobytes()
    document = Contribution(
        **request.model_dump(exclude={"entry", "issued_at", "expires_at"}),
        site=site,
        length=words.size,
        body=sha256_hex(body),
        engine=DIGEST,
    )
    envelope = seal(CONTRIBUTION_TYPE, {**document.model_dump(mode="json"), **(changes or {})}, KEYS[site])
    return Packet(envelope, body).to_bytes()


def test_the_sum_is_of_all_and_nothing_short_of_all(template: StudyPlan) -> None:
    plan = plan_of(template, 4)
    request = request_for(plan)
    intake = Intake(request, plan)
    step = grid_of(plan.secure_sum("train", plan.names)).step
    for number, name in enumerate(reversed(plan.names)):
        assert intake.outcome().excluded[name] == "no-answer"
        intake.take(name, contribution(request, name, np.full(plan.parameters, number, dtype=np.uint32)))
        intake.take(name, contribution(request, name, np.full(plan.parameters, 1000, dtype=np.uint32)))  # too late
        intake.take("stranger", b"")
    outcome = intake.outcome()
    assert outcome.complete
    assert outcome.contributed == plan.names
    np.testing.assert_array_equal(intake.unmasked(), np.full(plan.parameters, 6 * step))
    with pytest.raises(MissingContributors):
        intake.unmasked()  # it is given up once it is read


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"body": DIGEST}, "wrong-body"),
        ({"length": 7}, "wrong-length"),
        ({"attempt": 2}, "wrong-attempt"),
        ({"cohort": ["site-00", "site-01", "site-02"]}, "wrong-cohort"),
        ({"site": "site-00"}, "wrong-site"),
    ],
)
def test_a_wrong_body_after_others_were_added_drops_the_sum_and_names_one_site(
    template: StudyPlan, wrong: dict[str, object], code: str
) -> None:
    plan = plan_of(template, 4)
    request = request_for(plan)
    intake, words = Intake(request, plan), np.ones(plan.parameters, dtype=np.uint32)
    for name in plan.names[:2]:
        intake.take(name, contribution(request, name, words))
    intake.take("site-02", contribution(request, "site-02", words, wrong))
    intake.take("site-03", contribution(request, "site-03", words))
    assert intake.outcome().excluded == {"site-02": code}
    assert intake.outcome().contributed == ("site-00", "site-01", "site-03")
    with pytest.raises(MissingContributors):
        intake.unmasked()
    again = Intake(request, plan)  # an attempt that is sent anew begins from nothing
    for name in plan.names:
        again.take(name, contribution(request, name, words))
    assert float(again.unmasked()[0]) == 4 * grid_of(plan.secure_sum("train", plan.names)).step


def test_a_site_that_is_not_reached_is_a_code(template: StudyPlan) -> None:
    plan = plan_of(template, 4)
    intake = Intake(request_for(plan), plan)
    intake.take("site-01", Unreached("offline"))
    assert intake.outcome().excluded["site-01"] == "offline"


@pytest.mark.parametrize("sites", [4, SITES])
def test_memory_is_three_models_at_any_number_of_sites(template: StudyPlan, sites: int) -> None:
    plan = plan_of(template, sites)
    request = request_for(plan)
    model = 4 * plan.parameters
    ready = [contribution(request, name, np.ones(plan.parameters, dtype=np.uint32)) for name in plan.names]
    gc.collect()
    tracemalloc.start()
    try:
        intake = Intake(request, plan)
        for name, packet in zip(plan.names, ready, strict=True):
            intake.take(name, bytes(memoryview(packet)))  # as it comes in, from the link
        total = intake.unmasked()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total.size == plan.parameters
    # Beside the model's own sizes: a plan's and an envelope's objects, some 200 KB whatever the model's size.
    assert peak < 3.1 * model + 200_000, peak / model
