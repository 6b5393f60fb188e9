"""The agent's end of the worker: started when a study needs it, kept warm, ended when idle. Imports no numpy,
and nothing of studies until one begins."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from privacy.auditing.checks import CHECKS, Check
from protocol.errors import CloisterError
from site_agent.settings import SiteHome
from site_agent.training.frames import FrameError, read_frame, write_frame

if TYPE_CHECKING:
    from protocol.round import Phase
    from protocol.study_kind import AnyPlan

IDLE_SECONDS = 60.0
START_SECONDS = 120.0
SELF_TEST_SECONDS = 600.0
MOST_BYTES = 512 << 20
FLOAT_BYTES = 8
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")


class WorkerFailed(CloisterError):
    """The worker could not compute, took too long or ended. Nothing of why is told beyond the type of error."""

    code = "training-failed"


class WorkerClient:
    """One child process at a time. Not for use from several threads at once.

    step_seconds: how long one private step may take. gpu: whether an mlp may use CUDA. site: whose worker it is, by its
    name in plans; local mode needs it. processes, megabytes, half: see `site_agent.settings.SiteDocument`. clock:
    monotonic seconds.
    """

    def __init__(
        self,
        home: SiteHome,
        *,
        step_seconds: float = 300.0,
        gpu: bool = True,
        site: str = "",
        processes: int = 1,
        megabytes: int = 2048,
        half: bool = False,
        clock: Callable[[], float] = time.monotonic,
        command: tuple[str, ...] = (sys.executable, "-P", "-m", "site_agent.training.worker"),
    ) -> None:
        self._home = home
        self._step_seconds = step_seconds
        self._gpu = gpu
        self._site = site
        self._computing = (str(processes), str(megabytes << 20), "half" if half else "full")
        self._clock = clock
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._used = clock()

    @property
    def running(self) -> bool:
        """Whether there is a child."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid if self._process is not None and self.running else None

    def open(self, plan: AnyPlan, snapshot: str) -> None:
        """Start the worker if need be and load the snapshot, before anything is charged. Raises WorkerFailed."""
        from site_agent.training.worker_requests import opening

        self._ask(opening(plan, snapshot), b"", length=0, seconds=START_SECONDS)

    def compute(
        self, plan: AnyPlan, phase: Phase, round_number: int, body: bytes, *, noise_std: float | None
    ) -> bytearray:
        """What this site gives to one attempt of the round: noised float64, little-endian, of the phase's length, in a
        buffer that is the caller's to write over.

        body: the request's floats. noise_std: None where the plan asks for an exact sum. Raises WorkerFailed.
        """
        from site_agent.training.worker_requests import step

        header = step(plan, phase, self._site, noise_std=noise_std)
        length = plan.secure_sum(phase, plan.names).length
        return self._ask(header, body, length=length, seconds=self._step_seconds * plan.steps_of(phase))

    def self_test(self) -> tuple[Check, ...]:
        """What the engine's self-test finds, on made-up patients. Raises WorkerFailed."""
        words = 3 * len(CHECKS)
        answer = struct.unpack(
            f"<{words}d", self._ask({"op": "self-test"}, b"", length=words, seconds=SELF_TEST_SECONDS)
        )
        return tuple(
            Check(name, passed == 1.0, measured, limit)
            for name, passed, measured, limit in zip(CHECKS, answer[::3], answer[1::3], answer[2::3], strict=True)
        )

    def close_if_idle(self) -> None:
        """End the child when it has had nothing to do for a minute."""
        if self.running and self._clock() - self._used > IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """End the child now."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        process.wait()

    def _ask(self, header: dict[str, Any], body: bytes, *, length: int, seconds: float) -> bytearray:
        """One request and its answer, of exactly `length` floats; a child that fails in any way is ended."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(seconds, process.kill)
        watch.daemon = True
        watch.start()
        try:
            write_frame(process.stdin.fileno(), header, body)
            answer, result = read_frame(process.stdout.fileno(), most=length * FLOAT_BYTES)
        except FrameError as error:
            self.close()
            raise _failed(f"worker: {error}") from None
        finally:
            watch.cancel()
            self._used = self._clock()
        if answer.get("ok") is not True:
            # The snapshot may not be loaded, or memory be spent: a fresh child is the safe state.
            self.close()
            raise _failed(_type_name(answer.get("error")))
        if len(result) != length * FLOAT_BYTES:
            self.close()
            raise _failed("worker: wrong length")
        return result

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if not self._gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process = subprocess.Popen(  # noqa: S603 - our own module, by the running interpreter
            [*self._command, str(self._home.path), "gpu" if self._gpu else "cpu", str(MOST_BYTES), *self._computing],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=self._home.path,
            bufsize=0,
            close_fds=True,
        )
        return self._process


def _failed(reason: str) -> WorkerFailed:
    return WorkerFailed(
        f"The training worker could not compute the step ({reason}).",
        "Check the snapshot with cloister-site datasets list, and this machine's memory.",
    )


def _type_name(value: object) -> str:
    return value if isinstance(value, str) and value.isidentifier() and len(value) <= 60 else "unknown"
