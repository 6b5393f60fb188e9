"""One run on the SuperLink, held from this process: started with a fixed bundle, its server task taken and kept alive.

Flower's own Grid answers a lost run with SIGINT to the process and sleeps whole seconds between polls; the calls
here go through Flower's client classes directly and raise ExchangeLost instead.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
from flwr.common.constant import SubStatus
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TASK_TOKEN_HEADER, TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from protocol.errors import CloisterError

HEARTBEAT_SECONDS = 10.0  # Flower fails a run whose server task was silent for 60 s
_ATTEMPTS = 4
_RETRY_SECONDS = 0.1
_CALL_TIMEOUT = 60.0
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"

_Answer = TypeVar("_Answer")

# Flower wants an app bundle for every run and names of its two halves; this one holds a description and no code.
_DESCRIPTION = b"""[project]
name = "cloister-exchange"
version = "1.0.0"
description = "Carries sealed packets; holds no code"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "cloister"

[tool.flwr.app.components]
serverapp = "cloister_holds_no_code:none"
clientapp = "cloister_holds_no_code:none"
"""


def _bundle() -> bytes:
    """The app bundle: a zip of the description and of a manifest line (path, SHA-256, bits); the same bytes always."""
    manifest = f"pyproject.toml,{hashlib.sha256(_DESCRIPTION).hexdigest()},{8 * len(_DESCRIPTION)}".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (("pyproject.toml", _DESCRIPTION), (".info/CONTENT", manifest)):
            archive.writestr(zipfile.ZipInfo(name), content)  # ZipInfo's default date is fixed: 1980
    return buffer.getvalue()


class ExchangeLost(CloisterError):
    """The SuperLink is gone, or it has ended the run: open a new exchange."""

    code = "exchange-lost"


class _Headers:
    """Flower's HTTP interceptor that adds fixed headers."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = dict(headers)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers.update(self._headers)
        return call_next(context)  # type: ignore[no-any-return]


def _version(component: str) -> dict[str, str]:
    return dict(RuntimeVersionMetadata.from_local_component(component).as_metadata())


def _client(kind: Any, address: str, *interceptors: object) -> Any:
    """One of Flower's HTTP clients, on plain loopback HTTP, blind to proxy settings in the environment."""
    client = kind(f"http://{address}", interceptors=interceptors)
    client._client.close()
    client._client = httpx.Client(trust_env=False, timeout=_CALL_TIMEOUT)
    return client


class RunLink:
    """The server side of one run. Thread-safe after construction; close it exactly once."""

    def __init__(self, address: str, superexec_secret_path: Path) -> None:
        """Starts a run and takes its server task. Raises ExchangeLost when the SuperLink does not answer or refuses.

        Processes that open a link at the same time wait for each other, on a lock beside the secret: a pending task
        that is not ours is then one whose process died before taking it.
        """
        secret = superexec_secret_path.read_bytes()
        with open(superexec_secret_path.with_name("opening.lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._open(address, secret)

    def _open(self, address: str, secret: bytes) -> None:
        self._closing = threading.Event()
        self._lost = False
        bundle = _bundle()
        control = _client(ControlHttpClient, address, _Headers(_version("flwr CLI")))
        try:
            fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle, verifications={})
            self.run_id = int(self.call(control.StartRun, StartRunRequest(fab=fab_to_proto(fab))).run_id)
        finally:
            control.close()
        self.runtime = self._take_task(address, secret)
        self._beat = threading.Thread(target=self._keep_alive, name="exchange-heartbeat", daemon=True)
        self._beat.start()

    def _take_task(self, address: str, secret: bytes) -> Any:
        """The Runtime client that holds this run's server task; orphaned tasks of other runs are failed."""
        superexec = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE})
        acquirer = _client(RuntimeHttpClient, address, _Headers(_version("SuperExec")), superexec)
        try:
            for _ in range(100):
                request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
                token = self.call(acquirer.AcquireTask, request).token
                if not token:
                    if self._closing.wait(_RETRY_SECONDS):
                        break
                    continue
                headers = _version("flwr-serverapp") | {TASK_TOKEN_HEADER: token}
                runtime = _client(RuntimeHttpClient, address, _Headers(headers))
                task = self.call(runtime.PullTaskInput, PullTaskInputRequest())
                if task.run.run_id == self.run_id:
                    return runtime
                self.call(runtime.PushTaskOutput, PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="stale"))
                runtime.close()
        finally:
            acquirer.close()
        raise ExchangeLost("The SuperLink did not hand over the run's server task.", "Restart the SuperLink.")

    def call(self, method: Callable[[Any], _Answer], request: object) -> _Answer:
        """One call to the SuperLink; a server error is tried again three times. Raises ExchangeLost."""
        for attempt in range(_ATTEMPTS):
            if self._lost:
                break
            try:
                return method(request)
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status < 500:
                    raise ExchangeLost(
                        f"The SuperLink refused a call (HTTP {status}): the run has ended or was taken over.",
                        "Open a new exchange.",
                    ) from error
                if attempt + 1 < _ATTEMPTS:
                    self._closing.wait(_RETRY_SECONDS)
            except (httpx.TransportError, ValueError) as error:
                raise ExchangeLost("The SuperLink does not answer.", "Restart it and open a new exchange.") from error
        raise ExchangeLost("The SuperLink keeps failing or has ended the run.", "Restart it, then open a new exchange.")

    def wait(self, seconds: float) -> None:
        """Sleep, or wake as soon as the link is being closed."""
        self._closing.wait(seconds)

    @property
    def lost(self) -> bool:
        return self._lost or self._closing.is_set()

    def _keep_alive(self) -> None:
        while not self._closing.wait(HEARTBEAT_SECONDS):
            try:
                alive = self.call(self.runtime.SendTaskHeartbeat, SendTaskHeartbeatRequest()).success
            except ExchangeLost:
                alive = False
            if not alive:
                self._lost = True  # the next call of the owner raises
                return

    def close(self, *, completed: bool, details: str) -> None:
        """End the run as completed or failed. A SuperLink that is already gone is no error: the run ends with it."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._beat.join()
        try:
            if not self._lost:
                outcome = SubStatus.COMPLETED if completed else SubStatus.FAILED
                self.runtime.PushTaskOutput(PushTaskOutputRequest(sub_status=outcome, details=details))
        except httpx.HTTPError:
            self._lost = True
        finally:
            self.runtime.close()
