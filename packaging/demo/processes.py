"""The commands that people of the demonstration run, as real processes: nothing here imports the product."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
START_SECONDS = 60


class DemonstrationFailed(Exception):
    """A command did not do what it should: which one, and what it said."""


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """The commands' environment: no proxies, no home of ours, one thread per process on this small machine."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return {**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "110", "PYTHONUNBUFFERED": "1", **more}


def run(command: str, *arguments: object, **more: str) -> str:
    """Run one command to its end; its standard output. Raises DemonstrationFailed with what it said."""
    words = [str(BIN / command), *map(str, arguments)]
    done = subprocess.run(words, env=environment(**more), capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise DemonstrationFailed(f"{command} {' '.join(map(str, arguments[:3]))} exited {done.returncode}: {said}")
    return done.stdout


def run_json(command: str, *arguments: object, **more: str) -> Any:
    """`run` with --json, parsed."""
    return json.loads(run(command, *arguments, "--json", **more))


def together(jobs: Sequence[Any]) -> list[Any]:
    """Call every job at once; their results in order. The first failure is raised."""
    with ThreadPoolExecutor(max_workers=len(jobs)) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


class Service:
    """A long-running command with its log file."""

    def __init__(self, log: Path, command: str, *arguments: object, **more: str) -> None:
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [str(BIN / command), *map(str, arguments)],
                env=environment(**more), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        self.name = f"{command} {arguments[0] if arguments else ''}".strip()

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raises DemonstrationFailed if it has ended."""
        if self._process.poll() is not None:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-5:]
            raise DemonstrationFailed(f"{self.name} ended with {self._process.returncode}: {' | '.join(tail)}")

    def wait_for_port(self, port: int) -> None:
        """Until something listens on the loopback port."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.check()
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise DemonstrationFailed(f"{self.name} did not listen within {START_SECONDS} s; see {self.log}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after ten seconds."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self._process.kill()
        self._process.wait()
