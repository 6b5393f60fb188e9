"""Several processes of one site, really started, against one: the same sum, whoever takes which patient."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from privacy.local.network import Network
from privacy.local.patients import Group
from privacy.local.ranks import part_of

pytestmark = pytest.mark.processes
NETWORK = Network((5, 6, 1), "logistic")
CLIP = 0.3
CLOSED = "nobody"  # a document that no rank can prepare

PROGRAM = """
import datetime, os, sys
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
import numpy as np
import torch
import torch.distributed as dist
from privacy.errors import ParameterError
from privacy.local.contribution import clipped_gradient_sum, private_gradient_sum
from privacy.local.ranks import RankFailed, Ranks
from tests.privacy.test_local_ranks import CLIP, CLOSED, NETWORK, cohort, parameters

folder, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
store = dist.FileStore(folder + "/ranks", size)
dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=60))
ranks = Ranks()

def prepare(document):
    if document.decode() == CLOSED:
        raise ValueError("a value that must not be told")
    return NETWORK, cohort(int(document))

if rank:
    ranks.follow(prepare)
else:
    found = {}
    ranks.prepare(b"1")
    common = dict(clip=CLIP, sampling_rate=0.6, ranks=ranks)
    seed = lambda n: bytes(n)
    for name in ("first", "again"):
        found[name] = clipped_gradient_sum(cohort(1), NETWORK, parameters(), entropy=seed, **common)
    ranks.prepare(b"2")
    everybody = dict(clip=CLIP, sampling_rate=1.0, ranks=ranks, entropy=seed)
    found["everybody"] = clipped_gradient_sum(cohort(2), NETWORK, parameters(), **everybody)
    nobody = cohort(2).select(np.zeros(cohort(2).patients, dtype=bool))
    found["noise"] = np.std([
        private_gradient_sum(cohort(2), NETWORK, parameters(), noise_std=5.0, **everybody | {"entropy": os.urandom})
        - found["everybody"] for _ in range(20)])
    failures = 0
    try:
        ranks.prepare(CLOSED.encode())
    except RankFailed:
        failures += 1
    try:
        clipped_gradient_sum(cohort(2), NETWORK, parameters(), **everybody)
    except RankFailed:
        failures += 1
    try:
        clipped_gradient_sum(cohort(2), NETWORK, parameters() * np.inf, **everybody)
    except ParameterError:
        failures += 1
    ranks.prepare(b"2")
    found["after"] = clipped_gradient_sum(cohort(2), NETWORK, parameters(), **everybody)
    ranks.end()
    np.savez(folder + "/found.npz", failures=failures, **found)
dist.destroy_process_group()
"""


def cohort(seed: int, patients: int = 31) -> Group:
    """Some with many records, some with none."""
    random = np.random.default_rng(seed)
    owners = np.sort(random.choice(patients, 90, p=random.dirichlet(np.ones(patients))))
    return Group(random.normal(size=(90, 5)), random.integers(0, 2, 90).astype(float), owners, patients)


def parameters() -> np.ndarray:
    return np.random.default_rng(7).normal(size=NETWORK.parameters)


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("ranks")
    size = request.param
    children = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), str(rank), str(size)], stderr=subprocess.PIPE)
        for rank in range(size)
    ]
    try:
        for child in children:
            _, errors = child.communicate(timeout=120)
            assert child.returncode == 0, errors.decode()[-2000:]
    finally:
        for child in children:
            child.kill()
            child.communicate()
    with np.load(Path(folder) / "found.npz") as archive:
        return dict(archive)


def test_several_ranks_give_the_sum_of_one(found: dict[str, np.ndarray]) -> None:
    alone = NETWORK.gradient_sum(parameters(), cohort(2), CLIP)
    np.testing.assert_allclose(found["everybody"], alone, rtol=1e-6, atol=1e-6 * np.abs(alone).max())


def test_the_sum_is_the_same_bit_for_bit_whoever_was_first(found: dict[str, np.ndarray]) -> None:
    assert found["first"].tobytes() == found["again"].tobytes()
    assert found["everybody"].tobytes() == found["after"].tobytes()


def test_the_noise_is_added_once(found: dict[str, np.ndarray]) -> None:
    assert 4.6 < found["noise"] < 5.4  # 20 x 43 draws of 5.0; two shares would give 7.1, none 0


def test_a_rank_that_fails_fails_the_step_and_serves_the_next(found: dict[str, np.ndarray]) -> None:
    assert found["failures"] == 3


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_every_patient_is_in_exactly_one_part(ranks: int) -> None:
    for group in (cohort(1), cohort(2).block(0, 1), cohort(3).select(np.zeros(31, dtype=bool))):
        parts = [part_of(group, rank, ranks) for rank in range(ranks)]
        assert sum(part.patients for part in parts) == group.patients
        assert np.concatenate([part.y for part in parts]).tolist() == group.y.tolist()
        assert np.concatenate([part.x for part in parts]).tolist() == group.x.tolist()
