"""The yardstick for a secure round: what one round of Flower's default FedAvg takes on this machine.

`run_default_fedavg(rounds)` starts `flower-superlink` and four `flower-supernode` as they come, with their default
polling and process isolation, on loopback. Only what would leave the machine is turned off (telemetry, the update
check, installing dependencies at run time), and that makes them faster, not slower.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

APP = Path(__file__).with_name("stock_fedavg")
SITES = 4
START_SECONDS = 60.0
ROUND_SECONDS = 60.0


class BenchFailed(Exception):
    """The yardstick did not run to its end."""


def run_default_fedavg(rounds: int, sites: int = SITES) -> list[float]:
    """Seconds of each round (train and evaluate), as the ServerApp saw them. Raises BenchFailed."""
    with tempfile.TemporaryDirectory(prefix="stock-fedavg-") as name:
        folder = Path(name)
        report = folder / "report.json"
        address = f"127.0.0.1:{_free_port()}"
        processes: list[subprocess.Popen[bytes]] = []
        try:
            processes.append(_start(folder, "superlink", _superlink(address)))
            _wait_for_health(address, processes)
            for index in range(sites):
                command = ["flower-supernode", "--insecure", "--superlink", address]
                command += ["--port", str(_free_port()), "--node-config", f"partition-id={index}"]
                processes.append(_start(folder, f"supernode-{index}", command))
            _start_run(address, {"rounds": rounds, "nodes": sites, "report": str(report)})
            _wait_for_report(report, processes, START_SECONDS + rounds * ROUND_SECONDS)
            return _seconds(json.loads(report.read_text()), rounds)
        finally:
            for process in reversed(processes):
                _end(process)


def _seconds(report: dict[str, Any], rounds: int) -> list[float]:
    marks = report["marks"]
    if len(marks) != rounds + 1 or len(report["evaluated"]) != rounds:
        raise BenchFailed(f"FedAvg evaluated {len(report['evaluated'])} of {rounds} rounds")
    return [after - before for before, after in itertools.pairwise(marks)]


def _superlink(address: str) -> list[str]:
    host, _, port = address.partition(":")
    command = ["flower-superlink", "--insecure", "--host", host, "--port", port]
    return [*command, "--disable-runtime-dependency-installation"]


def _environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def _start(folder: Path, name: str, command: list[str]) -> subprocess.Popen[bytes]:
    environment = _environment(folder / f"home-{name}")
    executable = shutil.which(command[0], path=environment["PATH"])
    if executable is None:
        raise BenchFailed(f"{command[0]} is not installed beside {sys.executable}")
    with open(folder / f"{name}.log", "wb") as log:
        return subprocess.Popen(
            [executable, *command[1:]], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with the helpers it has started: they share its session."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(8)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _wait_for_health(address: str, processes: list[subprocess.Popen[bytes]]) -> None:
    import httpx

    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and processes[0].poll() is None:
        try:
            if httpx.get(f"http://{address}/health", trust_env=False, timeout=2).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise BenchFailed("the default SuperLink did not start")


def _start_run(address: str, config: dict[str, int | str]) -> None:
    """What `flwr run` does: send the app to the SuperLink."""
    import httpx
    from flwr.cli.build import build_fab_from_disk
    from flwr.common.serde import fab_to_proto, user_config_to_proto
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.fab import Fab
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    content = build_fab_from_disk(APP)
    fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
    interceptor = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    with ControlHttpClient(f"http://{address}", interceptors=[interceptor]) as client:
        client._client.close()
        client._client = httpx.Client(trust_env=False, timeout=30)
        request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(config))
        if not client.StartRun(request).run_id:
            raise BenchFailed("the default SuperLink refused the app")


def _wait_for_report(report: Path, processes: list[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not (report.exists() and report.read_text().endswith("}")):
        if any(process.poll() is not None for process in processes):
            raise BenchFailed("a process of the default FedAvg ended early")
        if time.monotonic() > deadline:
            raise BenchFailed(f"the default FedAvg did not finish within {seconds:.0f} s")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
