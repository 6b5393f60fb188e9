"""The worker: the one process in which patients' data and torch are loaded. It talks over its two pipes alone.

    python -m site_agent.training.worker HOME

It never returns anything but a noised vector or a code. It holds no signing key, makes no connection (its network is
taken away where the system allows, and sockets are refused besides), starts no program, and ends with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from site_agent.training.exploration import explore
from site_agent.training.followers import NoClosedNetwork, fork_followers, join, meeting_place, raise_loopback
from site_agent.training.frames import FrameError, read_frame, write_frame

_FORBIDDEN = ("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.system", "ftplib.", "urllib.", "smtplib.")
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


class WorkerState:
    """The snapshot that is loaded, parted into its two groups; the last model, warm; and where models run.

    memory: bytes of a micro-batch. half: bfloat16 on a GPU. rank: this process' place among the worker's.
    """

    def __init__(self, home: Path, *, gpu: bool, memory: int = 1 << 30, half: bool = False, rank: int = 0) -> None:
        self._home = home
        self._gpu, self._memory, self._half, self._rank = gpu, memory, half, rank
        self._team: Callable[[], Any] | None = None
        self._ranks: Any = None
        self._digest = ""
        self._cohort: Any = None
        self._document: dict[str, Any] = {}
        self._model: Any = None

    def answer(self, header: dict[str, Any], body: bytearray) -> bytes:
        """The result of one request: b"" for "open", else the noised float64 vector (little-endian)."""
        match header["op"]:
            case "open":
                self._open(str(header["snapshot"]))
                if header["model"] is not None and self._ready(header["model"]).uses_torch:
                    self._lead(header)
                return b""
            case "self-test":
                return self._self_test()
            case "train":
                return self._train(header, body)
            case "evaluate" | "check":
                return self._evaluate(header, body)
            case "membership":
                return self._membership(header, body)
            case "statistics" | "cluster":
                return explore(self._cohort.training, header, body, os.urandom)
        raise ValueError("unknown operation")

    def _self_test(self) -> bytes:
        """(passed, measured, limit) of each check, on made-up patients; see privacy.auditing.self_test."""
        import numpy as np

        from privacy.auditing.self_test import self_test
        from protocol.model import LogisticRegression, MultilayerPerceptron
        from site_agent.training.architectures.catalogue import local_model

        linear = LogisticRegression(architecture="logistic_regression")
        network = MultilayerPerceptron(architecture="mlp", hidden=(8,))
        checks = self_test(
            lambda width: local_model(linear, width), lambda width: local_model(network, width), os.urandom
        )
        rows = [(float(check.passed), check.measured, check.limit) for check in checks]
        return np.array(rows).astype("<f8").tobytes()

    def _open(self, digest: str) -> None:
        if digest != self._digest:
            from privacy.local.patients import part
            from site_agent.cohort.snapshot import load
            from site_agent.settings import SiteHome

            self._cohort = self._model = None  # two snapshots need not fit into memory at once
            arrays = load(SiteHome(self._home), digest)
            self._cohort = part(arrays.x, arrays.y, arrays.patient, arrays.held_out)
            self._digest = digest

    def _ready(self, document: dict[str, Any]) -> Any:
        """The model of the document, the one of last time where it is the same: its engine keeps memory and proof."""
        if self._model is None or document != self._document:
            from pydantic import TypeAdapter

            from protocol.model import ModelSpec
            from site_agent.training.architectures.catalogue import local_model

            spec = TypeAdapter(ModelSpec).validate_python(document)
            self._model, self._document = local_model(spec, self._cohort.training.x.shape[1:]), document
            if self._model.uses_torch:
                keep_freed_memory()
                import torch

                torch.set_num_threads(1)
        return self._model

    def lead(self, team: Callable[[], Any]) -> None:
        """Share the steps of models that use torch with the processes that `team` meets (or raises, saying why not)."""
        self._team = team

    def _lead(self, header: dict[str, Any]) -> None:
        if self._team is not None:
            self._ranks = self._team() if self._ranks is None else self._ranks
            self._ranks.prepare(json.dumps({"snapshot": header["snapshot"], "model": header["model"]}).encode())

    def follow(self, ranks: Any) -> None:
        """In another process than the first: take part in its steps until it ends."""

        def prepare(document: bytes) -> Any:
            header = json.loads(document)
            self._open(str(header["snapshot"]))
            return self._ready(header["model"]), self._cohort.training

        ranks.follow(prepare, self._hardware)

    def _shared(self) -> Any:
        return self._ranks if self._model.uses_torch else None

    def _train(self, header: dict[str, Any], body: bytearray) -> bytes:
        if "local" in header:
            return self._train_locally(header, header["local"], body)
        from privacy.local.contribution import private_gradient_sum

        result = private_gradient_sum(
            self._cohort.training,
            self._ready(header["model"]),
            _vector(body),
            clip=float(header["clip"]),
            sampling_rate=float(header["sampling_rate"]),
            noise_std=float(header["noise_std"]),
            entropy=os.urandom,
            hardware=self._hardware(),
            ranks=self._shared(),
        )
        return result.astype("<f8", copy=False).tobytes()

    def _train_locally(self, header: dict[str, Any], local: dict[str, Any], body: bytearray) -> bytes:
        from privacy.federated.local_training import LocalTraining, local_delta

        clip = float(header["clip"])
        training = LocalTraining(
            steps=int(local["steps"]),
            learning_rate=float(local["learning_rate"]),
            clip=clip,
            sampling_rate=float(header["sampling_rate"]),
            noise_multiplier=float(header["noise_std"]) / clip,
            expected_batch=float(local["expected_batch"]),
            momentum=float(local["momentum"]),
            largest_delta=float(local["largest_delta"]),
        )
        model = self._ready(header["model"])
        delta = local_delta(
            self._cohort.training,
            model,
            _vector(body),
            training,
            entropy=os.urandom,
            hardware=self._hardware(),
            ranks=self._shared(),
        )
        return (delta * float(local["share"])).astype("<f8", copy=False).tobytes()

    def _evaluate(self, header: dict[str, Any], body: bytearray) -> bytes:
        from privacy.local.contribution import score_histogram
        from privacy.local.subgroups import Banding

        std = header["noise_std"]
        result = score_histogram(
            self._cohort.held_out,
            self._ready(header["model"]),
            _vector(body),
            cells=int(header["cells"]),
            noise_std=None if std is None else float(std),
            entropy=os.urandom,
            hardware=self._hardware(),
            subgroups=[
                Banding(int(one["at"]), int(one["width"]), tuple(map(float, one["edges"])))
                for one in header["subgroups"]
            ],
        )
        return result.astype("<f8", copy=False).tobytes()

    def _membership(self, header: dict[str, Any], body: bytearray) -> bytes:
        from privacy.local.contribution import membership_histogram

        result = membership_histogram(
            self._cohort.training,
            self._cohort.held_out,
            self._ready(header["model"]),
            _vector(body),
            prediction=header["prediction"],
            bins=int(header["bins"]),
            most=int(header["most"]),
            noise_std=float(header["noise_std"]),
            entropy=os.urandom,
            hardware=self._hardware(),
        )
        return result.astype("<f8", copy=False).tobytes()

    def _hardware(self) -> Any:
        from privacy.local.model import Hardware

        if self._gpu and self._model.uses_torch:
            import torch

            if torch.cuda.is_available():
                return Hardware(f"cuda:{self._rank % torch.cuda.device_count()}", self._memory, self._half)
        return Hardware(memory=self._memory)


def _vector(body: bytearray) -> Any:
    import numpy as np

    return np.frombuffer(body, dtype="<f8").astype(np.float64)


def serve(requests: int, answers: int, state: WorkerState, *, most: int) -> None:
    """Answer requests until the parent closes the pipe. A failure is told as a code; its details end here, since
    they may hold patients' values."""
    while True:
        try:
            header, body = read_frame(requests, most=most)
        except FrameError:
            return
        try:
            result = state.answer(header, body)
        except Exception as error:  # noqa: BLE001 - whatever fails, the parent is told a type and nothing else
            write_frame(answers, {"ok": False, "error": type(error).__name__})
            continue
        write_frame(answers, {"ok": True}, result)


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: fresh pages from the kernel cost a private step as much as its arithmetic."""
    trim_threshold, mmap_threshold, never = -1, -3, 1 << 30
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(trim_threshold, never)
        library.mallopt(mmap_threshold, never)


def confine(*, loopback: bool = False) -> bool:
    """Give up what computing does not need: the network, other programs, core dumps, outliving the parent.

    loopback: whether the empty network is to have its own. Returns whether there is an empty network.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_DUMPABLE, 0)
    # An empty network namespace where the kernel lets us; the hook below refuses sockets wherever we run.
    closed = any(libc.unshare(what) == 0 for what in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET))
    if closed and loopback:
        raise_loopback()

    def refuse(event: str, _arguments: object) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError("the worker makes no connection and starts no program")

    sys.addaudithook(refuse)
    return closed


def main() -> None:
    """The process: requests on descriptor 0, answers on what was descriptor 1; nothing else may print there."""
    home, gpu, most = Path(sys.argv[1]), sys.argv[2] == "gpu", int(sys.argv[3])
    processes, memory, half = int(sys.argv[4]), int(sys.argv[5]), sys.argv[6] == "half"
    answers = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    closed = confine(loopback=processes > 1)
    state = WorkerState(home, gpu=gpu, memory=memory, half=half)
    if processes > 1:
        place = meeting_place() if closed else ""

        def follow(rank: int) -> None:
            other = WorkerState(home, gpu=gpu, memory=memory, half=half, rank=rank)
            other.follow(join(place, rank, processes, gpu=gpu))

        def team() -> Any:
            if not closed:
                raise NoClosedNetwork
            return join(place, 0, processes, gpu=gpu)

        if closed:
            fork_followers(processes, follow, (0, answers))
        state.lead(team)
    with contextlib.suppress(FrameError):
        serve(0, answers, state, most=most)


if __name__ == "__main__":
    main()
