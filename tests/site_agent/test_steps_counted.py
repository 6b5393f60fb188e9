"""The ledger beside what was executed: real agents' participants, real worker processes, and a tally kept inside each
worker at every single draw of noise. The ledger never holds fewer steps, and exactly as many when nothing crashed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlmodel import select

from protocol.round import CONTRIBUTION_TYPE, Packet
from protocol.study import StudySpec
from site_agent.database import transaction
from site_agent.settings import SiteHome
from site_agent.training.tables import CohortCharge
from site_agent.training.worker_client import WorkerClient
from tests.site_agent.federation_of_sites import Federation, Hospital, federation, refusal_in

pytestmark = pytest.mark.processes

# The worker as it is, but for a byte written before each draw, and a fault that a file asks for: once, before or after
# the noise was drawn.
PROGRAM = """
import os, sys
folder = sys.argv.pop(1)
sys.path.insert(0, sys.argv.pop(1))
import privacy.local.contribution as contribution
true = contribution.add_gaussian
tally = os.open(folder + "/tally", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

def die(when):
    if os.path.exists(folder + "/" + when):
        os.unlink(folder + "/" + when)
        os.kill(os.getpid(), 9)

def counted(values, std, stream):
    die("before")
    os.write(tally, b"x")
    true(values, std, stream)
    die("after")

contribution.add_gaussian = counted
from site_agent.training.worker import main
main()
"""
REPOSITORY = str(Path(__file__).parents[2])


class Counted:
    """One hospital whose worker keeps a tally."""

    def __init__(self, site: Hospital, folder: Path) -> None:
        folder.mkdir()
        self.site, self._folder = site, folder
        home: SiteHome = site.settings.home
        site.worker = WorkerClient(
            home,
            gpu=False,
            site=site.settings.site,
            command=(sys.executable, "-P", "-c", PROGRAM, str(folder), REPOSITORY),
        )

    @property
    def executed(self) -> int:
        """Draws of noise, in all processes that this site's worker ever was."""
        tally = self._folder / "tally"
        return tally.stat().st_size if tally.exists() else 0

    @property
    def charged(self) -> int:
        """Steps in the ledger, of training and of held-out patients."""
        with transaction(self.site.engine) as session:
            return sum(row.steps_charged for row in session.exec(select(CohortCharge)))

    def answer(self, kind: str, request: bytes) -> bool:
        """Whether a contribution came back."""
        said = self.site.participant().answer(kind, request)
        return Packet.from_bytes(said).envelope.payload_type == CONTRIBUTION_TYPE

    def kill(self, when: str) -> None:
        """Let the worker die at its next draw of noise: "before" or "after" it."""
        (self._folder / when).touch()


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Federation, dict[str, Counted]]]:
    made = federation(tmp_path / "sites")
    made.spec = StudySpec.model_validate({**made.spec.model_dump(), **getattr(request, "param", {})})
    counted = {name: Counted(site, tmp_path / name) for name, site in made.hospitals.items()}
    signed = made.sign(made.plan())
    for site in made.hospitals.values():
        site.grant(signed)
    made.establish(signed)
    try:
        yield made, counted
    finally:
        for one in counted.values():
            one.site.worker.close()


def test_the_ledger_holds_exactly_the_steps_executed_when_nothing_crashed(
    world: tuple[Federation, dict[str, Counted]],
) -> None:
    made, counted = world
    signed = made.sign(made.plan())
    for number in (1, 2, 3):
        request = made.round_request(signed, number)
        for one in counted.values():
            assert one.answer("train.contribute", request)
            assert one.answer("train.contribute", request)  # a resend is answered from disk
            assert one.charged == one.executed == number
    refused = [made.round_request(signed, 4), made.round_request(signed, 1, model=np.ones(3, dtype="<f8").tobytes())]
    for one in counted.values():
        for request in refused:
            assert not one.answer("train.contribute", request)
        assert one.answer("evaluate.histogram", made.round_request(signed, phase="evaluate"))
        assert one.charged == one.executed == 4


def test_a_worker_killed_in_its_step_leaves_the_ledger_ahead_never_behind(
    world: tuple[Federation, dict[str, Counted]],
) -> None:
    made, counted = world
    signed = made.sign(made.plan())
    cork = counted["cork"]
    charged = executed = 0
    for number, (when, drawn) in enumerate([("before", 0), ("after", 1)], start=1):
        cork.kill(when)
        lost = made.round_request(signed, number)
        assert not cork.answer("train.contribute", lost)
        charged, executed = charged + 1, executed + drawn
        assert (cork.charged, cork.executed) == (charged, executed)
        assert refusal_in(cork.site.participant().answer("train.contribute", lost), cork.site) == "consumed"
        assert (cork.charged, cork.executed) == (charged, executed)  # never computed again
        assert cork.answer("train.contribute", made.round_request(signed, number, 2))
        charged, executed = charged + 1, executed + 1
        assert (cork.charged, cork.executed) == (charged, executed)
    assert charged == executed + 1


LOCAL = {
    "privacy": {"epsilon": 1.0, "delta": 1e-4, "retries": 2, "mode": "local"},
    "training": {
        "rounds": 3, "sampling_rate": 0.5, "clip": 0.5, "learning_rate": 1.0, "local_steps": 4, "largest_delta": 5.0,
        "server": {"rule": "fedavg"},
    },
}  # fmt: skip
TUNED = {"tuning": {"grid": [{"clip": 0.25}, {"clip": 1.0, "learning_rate": 0.5}]}}


@pytest.mark.parametrize("world", [LOCAL], indirect=True)
def test_a_local_round_draws_and_charges_the_noise_of_each_of_its_steps(
    world: tuple[Federation, dict[str, Counted]],
) -> None:
    made, counted = world
    signed = made.sign(made.plan())
    cork = counted["cork"]
    for number in (1, 2):
        request = made.round_request(signed, number)
        for one in counted.values():
            assert one.answer("train.contribute", request)
            assert one.charged == one.executed == 4 * number
    cork.kill("after")  # in the first of the four steps
    assert not cork.answer("train.contribute", made.round_request(signed, 3))
    assert (cork.charged, cork.executed) == (12, 9)
    assert cork.answer("train.contribute", made.round_request(signed, 3, 2))
    assert (cork.charged, cork.executed) == (16, 13)


@pytest.mark.parametrize("world", [TUNED], indirect=True)
def test_every_run_of_a_grid_and_every_score_is_drawn_and_charged(
    world: tuple[Federation, dict[str, Counted]],
) -> None:
    made, counted = world
    signed = made.sign(made.plan())
    order = [("train", number, 1) for number in (1, 2, 3)] + [("evaluate", 1, 1)]
    order += [("train", number, 2) for number in (4, 5, 6)] + [("evaluate", 2, 2), ("evaluate", 3, 2)]
    for done, (phase, number, entry) in enumerate(order, start=1):
        kind = "train.contribute" if phase == "train" else "evaluate.histogram"
        request = made.round_request(signed, number, phase=phase, entry=entry)
        for one in counted.values():
            assert one.answer(kind, request), (phase, number)
            assert one.charged == one.executed == done
    for one in counted.values():
        assert not one.answer("train.contribute", made.round_request(signed, 7, entry=2))
        assert one.charged == one.executed == 9
