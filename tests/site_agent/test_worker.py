"""The worker as a real process: what it answers, what it may not do, and how its end is met."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from protocol.dataset import NumberLabel
from protocol.graph import ExportedGraph, ExportRefused
from protocol.model import LinearRegression
from protocol.study import Evaluation
from protocol.subgroups import Subgroup
from site_agent.settings import SiteHome
from site_agent.training.followers import NoClosedNetwork
from site_agent.training.frames import FrameError, read_frame, write_frame
from site_agent.training.worker import WorkerState
from site_agent.training.worker_client import IDLE_SECONDS, WorkerClient, WorkerFailed
from tests.site_agent.federation_of_sites import Federation, Hospital, federation, mlp, refusal_in

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def site(world: Federation) -> Hospital:
    return world.hospitals["cork"]


# The worker of this very tree, wherever the package is installed.
HERE = (
    sys.executable, "-P", "-c",
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
    "from site_agent.training.worker import main; main()",
)  # fmt: skip


def zeros(world: Federation) -> bytes:
    return bytes(8 * world.plan().parameters)


def test_a_step_comes_from_a_warm_child(world: Federation, site: Hospital) -> None:
    plan = world.plan()
    client = WorkerClient(site.settings.home)
    try:
        client.open(plan, site.snapshot)
        child = client.pid
        first = np.frombuffer(client.compute(plan, "train", 1, zeros(world), noise_std=1.0))
        second = np.frombuffer(client.compute(plan, "train", 1, zeros(world), noise_std=1.0))
        assert first.shape == (3,)
        assert not np.array_equal(first, second)
        histogram = np.frombuffer(client.compute(plan, "evaluate", 1, zeros(world), noise_std=None))
        assert histogram.sum() == 20
        assert client.pid == child
    finally:
        client.close()
    assert not client.running


def test_a_histogram_of_each_subgroup_follows_that_of_all(world: Federation, site: Hospital) -> None:
    (number,) = [feature for feature in world.spec.dataset.features if feature.kind != "category"][:1]
    edge = number.center
    asked = Evaluation(bins=4, subgroups=(Subgroup(column=number.name, edges=(edge,)),))
    plan = world.plan().model_copy(update={"spec": world.spec.model_copy(update={"evaluation": asked})})
    client = WorkerClient(site.settings.home, gpu=False, command=HERE)
    try:
        client.open(plan, site.snapshot)
        counts = np.frombuffer(client.compute(plan, "evaluate", 1, bytes(8 * plan.parameters), noise_std=None))
    finally:
        client.close()
    everybody, below, above = counts.reshape(3, 8)
    assert everybody.sum() == 20
    np.testing.assert_array_equal(below + above, everybody)
    assert below.sum() > 0
    assert above.sum() > 0


def test_a_network_trains_through_torch(world: Federation, site: Hospital) -> None:
    spec = world.spec.model_copy(update={"model": mlp()})
    plan = world.plan().model_copy(update={"spec": spec})
    client = WorkerClient(site.settings.home, gpu=False)
    try:
        client.open(plan, site.snapshot)
        parameters = np.random.default_rng(1).normal(size=plan.parameters).astype("<f8").tobytes()
        total = np.frombuffer(client.compute(plan, "train", 1, parameters, noise_std=1e-9))
        assert np.linalg.norm(total) > 0.1
    finally:
        client.close()


def by_hand(loss: str, outputs: int, width: int) -> ExportedGraph:
    """A graph of one linear operator."""
    given = [("input", "x"), ("weight", "p0"), ("bias", "p1")]
    return ExportedGraph.model_validate(
        {
            "loss": loss,
            "input": [width],
            "parameters": [[outputs, width], [outputs]],
            "nodes": [
                {
                    "operator": "linear.default",
                    "arguments": [{"name": name, "kind": "tensor", "value": value} for name, value in given],
                }
            ],
            "output": "n0",
        }
    )


def test_a_brought_graph_is_run_as_data_and_computes_what_the_family_would(world: Federation, site: Hospital) -> None:
    """A graph of one linear operator is logistic regression: the same sum and the same histogram, in the real child."""
    whole = world.spec.training.model_copy(update={"sampling_rate": 1.0})
    graph = by_hand("logistic", 1, world.spec.dataset.width)
    client = WorkerClient(site.settings.home, gpu=False, command=HERE)
    found = []
    try:
        for model in (world.spec.model, graph):
            plan = world.plan().model_copy(
                update={"spec": world.spec.model_copy(update={"model": model, "training": whole})}
            )
            parameters = np.linspace(-1, 1, plan.parameters).astype("<f8").tobytes()
            client.open(plan, site.snapshot)
            total = np.frombuffer(client.compute(plan, "train", 1, parameters, noise_std=1e-12))
            counts = np.frombuffer(client.compute(plan, "evaluate", 1, parameters, noise_std=None))
            found.append((total, counts))
    finally:
        client.close()
    np.testing.assert_allclose(found[1][0], found[0][0], atol=1e-4)
    assert np.linalg.norm(found[0][0]) > 0.1
    np.testing.assert_array_equal(found[1][1], found[0][1])


def test_a_graph_that_is_not_listed_is_refused_by_the_child_too(world: Federation, site: Hospital) -> None:
    """Whatever the agent let through: the worker checks the graph itself before it touches a record."""
    state = WorkerState(site.settings.home.path, gpu=False)
    good = by_hand("logistic", 1, world.spec.dataset.width).model_dump(mode="json")
    bad = {**good, "nodes": [{**good["nodes"][0], "operator": "rand_like.default"}]}
    header = {"op": "open", "snapshot": site.snapshot, "model": good}
    state.answer(header, bytearray())
    with pytest.raises(ExportRefused, match="not on the list"):
        state.answer(header | {"model": bad}, bytearray())


def test_a_number_s_residuals_are_counted_in_the_child(world: Federation, site: Hospital) -> None:
    """The snapshot's labels, 0 and 1, as numbers in units of the scale: linear regression on them."""
    label = NumberLabel(kind="number", name="n", column="num", minimum=-3, maximum=3, center=0, scale=1)
    dataset = world.spec.dataset.model_copy(update={"label": label})
    model = LinearRegression(architecture="linear_regression")
    plan = world.plan().model_copy(update={"spec": world.spec.model_copy(update={"model": model, "dataset": dataset})})
    client = WorkerClient(site.settings.home, gpu=False, command=HERE)
    try:
        client.open(plan, site.snapshot)
        counts = np.frombuffer(client.compute(plan, "evaluate", 1, bytes(8 * plan.parameters), noise_std=None))
    finally:
        client.close()
    bins = plan.spec.evaluation.bins
    assert counts.size == 2 * bins
    assert counts.sum() == 20
    # Predictions of 0: a patient's mean residual lies from -1 to 0, in units of the scale, of at most 3 either way.
    assert {int(place) for place in np.flatnonzero(counts)} <= set(range(int(2 * bins / 3), bins + 1))
    assert counts[bins] > 0


def processes_under(pid: int) -> int:
    """How many children a process has."""
    return sum(f"\nPPid:\t{pid}\n" in path.read_text() for path in Path("/proc").glob("[0-9]*/status"))


def test_several_processes_take_one_step_together(world: Federation, site: Hospital) -> None:
    """The same sum as one process gives, at a rate of 1 and next to no noise; they end together."""
    training = world.spec.training.model_copy(update={"sampling_rate": 1.0})
    spec = world.spec.model_copy(update={"model": mlp(), "training": training})
    plan = world.plan().model_copy(update={"spec": spec})
    parameters = np.random.default_rng(1).normal(size=plan.parameters).astype("<f8").tobytes()
    sums, clients = [], []
    try:
        for processes in (1, 3):
            client = WorkerClient(site.settings.home, gpu=False, processes=processes, command=HERE)
            clients.append(client)
            client.open(plan, site.snapshot)
            client.open(plan, site.snapshot)  # every attempt does
            assert client.pid is not None
            assert processes_under(client.pid) == processes - 1
            sums += [np.frombuffer(client.compute(plan, "train", 1, parameters, noise_std=1e-12)) for _ in range(2)]
        for found in sums[1:]:
            np.testing.assert_allclose(found, sums[0], rtol=1e-5, atol=1e-6)
        first = clients[1].pid
        assert first is not None
        clients[1].close()
        assert processes_under(first) == 0
    except WorkerFailed as failed:
        if "NoClosedNetwork" in failed.message:
            pytest.skip("this system gives the worker no network of its own")
        raise
    finally:
        for client in clients:
            client.close()


def test_without_a_network_of_its_own_a_step_is_not_shared(world: Federation, site: Hospital) -> None:
    def team() -> object:
        raise NoClosedNetwork

    state = WorkerState(site.settings.home.path, gpu=False)
    state.lead(team)
    header = {"op": "open", "snapshot": site.snapshot, "model": world.spec.model.model_dump(mode="json")}
    state.answer(header, bytearray())  # a regression in closed form needs nobody else
    with pytest.raises(NoClosedNetwork):
        state.answer(header | {"model": mlp().model_dump(mode="json")}, bytearray())


def test_an_idle_child_ends(world: Federation, site: Hospital) -> None:
    now = [0.0]
    client = WorkerClient(site.settings.home, clock=lambda: now[0])
    client.open(world.plan(), site.snapshot)
    now[0] = IDLE_SECONDS
    client.close_if_idle()
    assert client.running
    now[0] = IDLE_SECONDS + 1
    client.close_if_idle()
    assert not client.running


def test_a_killed_child_is_told_and_replaced(world: Federation, site: Hospital) -> None:
    plan = world.plan()
    client = WorkerClient(site.settings.home)
    try:
        client.open(plan, site.snapshot)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(WorkerFailed):
            # The kill may be noticed before the request or while its answer is awaited.
            client.compute(plan, "train", 1, zeros(world), noise_std=1.0)
        client.open(plan, site.snapshot)
        assert len(client.compute(plan, "train", 1, zeros(world), noise_std=1.0)) == 24
    finally:
        client.close()


def test_a_missing_snapshot_is_an_error_without_details(world: Federation, site: Hospital) -> None:
    client = WorkerClient(site.settings.home)
    with pytest.raises(WorkerFailed) as failed:
        client.open(world.plan(), "sha256:" + "0" * 64)
    assert "SnapshotUnusable" in failed.value.message
    assert str(site.settings.home.path) not in failed.value.message
    assert not client.running


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "import os; os.read(0, 1); os.write(1, b'garbage that is no frame' * 9)",
        "import os; os.read(0, 1); os.write(1, b'\\0\\0\\0\\2' + b'\\xff' * 8 + b'{}')",
        "raise SystemExit(3)",
    ],
    ids=["hangs", "garbage", "endless", "exits"],
)
def test_a_child_that_goes_wrong_is_ended(world: Federation, site: Hospital, code: str) -> None:
    client = WorkerClient(site.settings.home, step_seconds=0.5, command=(sys.executable, "-c", code))
    with pytest.raises(WorkerFailed):
        client.compute(world.plan(), "train", 1, zeros(world), noise_std=1.0)
    assert not client.running


def test_the_child_may_not_connect_nor_start_programs() -> None:
    code = (
        "import site_agent.training.worker as w; w.confine()\n"
        "import socket, subprocess, os\n"
        "told = []\n"
        "for attempt in (lambda: socket.socket(), lambda: subprocess.run(['true']), lambda: os.system('true'),\n"
        "                lambda: os.execv('/bin/true', ['true'])):\n"
        "    try:\n"
        "        attempt(); told.append('allowed')\n"
        "    except PermissionError:\n"
        "        told.append('refused')\n"
        "print(told)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str(["refused"] * 4)


def test_the_child_sees_no_secret_of_the_environment(
    world: Federation, site: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "open sesame")
    client = WorkerClient(site.settings.home)
    shown = "import os, sys; sys.stdout.write('x'); sys.exit('CLOISTER_PASSPHRASE' in os.environ)"
    client._command = (sys.executable, "-c", shown)
    process = client._started()
    assert process.wait(timeout=60) == 0
    client.close()


def test_the_agent_alone_holds_no_numpy_and_no_study() -> None:
    code = (
        "import sys, site_agent.agent\n"
        "heavy = {'numpy', 'scipy', 'torch', 'flwr', 'cel_expr_python', 'dp_accounting', 'alembic', 'pandas', 'yaml'}\n"
        "heavy |= {'protocol.' + name for name in ('study', 'plan', 'exploration', 'graph', 'evaluation', 'release')}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_whole_round_over_real_children(world: Federation) -> None:
    signed = world.sign(world.plan())
    clients = []
    for site in world.hospitals.values():
        site.grant(signed)
        site.worker = WorkerClient(site.settings.home)
        clients.append(site.worker)
    try:
        world.establish(signed)
        request = world.round_request(signed)
        answers = {n: s.participant().answer("train.contribute", request) for n, s in world.hospitals.items()}
        assert np.isfinite(world.decode(signed, answers)).all()
        cork = world.hospitals["cork"]
        (cork.settings.home.snapshots / f"{cork.snapshot[7:]}.npz").unlink()
        clients[2].close()
        assert cork.worker is clients[2]
        refused = cork.participant().answer("train.contribute", world.round_request(signed, 2))
        assert refusal_in(refused, cork) == "training-failed"
    finally:
        for client in clients:
            client.close()


def test_frames_are_bounded_and_whole() -> None:
    reader, writer = os.pipe()
    try:
        write_frame(writer, {"op": "x"}, b"12345678")
        assert read_frame(reader, most=8) == ({"op": "x"}, bytearray(b"12345678"))
        write_frame(writer, {"op": "x"}, b"123456789")
        with pytest.raises(FrameError):
            read_frame(reader, most=8)
    finally:
        os.close(writer)
        os.close(reader)
    with pytest.raises(FrameError):
        write_frame(writer, {"op": "x" * 70_000})


def test_homes_are_not_imported_from(tmp_path: Path) -> None:
    """A file in the site's folder must not shadow a module of the worker's."""
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    client = WorkerClient(SiteHome(tmp_path))
    process = client._started()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        write_frame(process.stdin.fileno(), {"op": "nonsense"})
        assert read_frame(process.stdout.fileno(), most=0)[0] == {"ok": False, "error": "ValueError"}
    finally:
        client.close()
