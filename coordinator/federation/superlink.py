"""Flower's SuperLink as a child process, on the loopback interface only.

Its Control API has no authentication in the open-source build, so the port is never published: the gateway forwards
the fleet path alone, and plain HTTP is enough because nothing but this machine's own processes can reach it.

Its state lives in memory. Flower would keep every packet in flight in a SQLite file, where freed pages can still be
read, and takes twice as long over it; and nothing of ours rests on it: rounds resume from the coordinator's own
database, and after a restart the sites' agents register anew by themselves.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from protocol.errors import CloisterError

HOST = "127.0.0.1"
LOG_BYTES_KEPT = 8 * 1024 * 1024
_STOP_SECONDS = 8.0
_ADDRESS_FILE = "address"


class SuperLinkFailed(CloisterError):
    """The SuperLink did not start, did not become ready in time, or its port is taken."""

    code = "superlink-failed"


def free_port() -> int:
    """A TCP port on the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class SuperLinkProcess:
    """One SuperLink: its folder, its port, its process. Usable as a context manager; `start` may follow `stop`.

    The child ends when this process ends, even by SIGKILL, so that no orphan keeps the port. The folder (0700) holds
    the secret, the log, and the address for other processes of this user (`running_address`).
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        """folder: made with mode 0700 if absent. port: 1..65535, or None to take a free one at each start."""
        self.folder = folder
        self._wanted_port = port
        self._port: int | None = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """host:port. Raises SuperLinkFailed before the first start when no port was given."""
        if self._port is None:
            raise SuperLinkFailed("The SuperLink has no port yet.", "Call start() first.")
        return f"{HOST}:{self._port}"

    @property
    def superexec_secret_path(self) -> Path:
        """The file (0600) whose 32 random bytes allow a process to take over a run's server side."""
        return self.folder / "superexec.secret"

    @property
    def log_path(self) -> Path:
        return self.folder / "superlink.log"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process; returns at once (see wait_ready). Raises SuperLinkFailed when the port is in use."""
        if self.alive:
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        self._make_secret()
        self._port = self._wanted_port if self._wanted_port is not None else free_port()
        _require_free(self._port)
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES_KEPT:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        launcher = Path(__file__).with_name("superlink_child.py")
        command = [
            sys.executable, "-I", str(launcher), str(os.getpid()),
            "--insecure", "--host", HOST, "--port", str(self._port),
            "--isolation", "process", "--disable-runtime-dependency-installation",
            "--superexec-auth-secret-file", str(self.superexec_secret_path),
        ]  # fmt: skip
        descriptor = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command, no shell
                command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, cwd=self.folder,
                env=_child_environment(self.folder), start_new_session=True, umask=0o077,
            )  # fmt: skip
        finally:
            os.close(descriptor)
        _replace(self.folder / _ADDRESS_FILE, self.address.encode("ascii"))

    def wait_ready(self, timeout: float) -> None:
        """Block until the SuperLink answers, at most `timeout` seconds. Raises SuperLinkFailed."""
        deadline = time.monotonic() + timeout
        with httpx.Client(base_url=f"http://{self.address}", trust_env=False, timeout=2.0) as client:
            while True:
                if not self.alive:
                    raise SuperLinkFailed("The SuperLink stopped while starting.", f"Read {self.log_path}.")
                try:
                    if client.get("/health").is_success:
                        return
                except httpx.TransportError:
                    pass  # not listening yet: the deadline below decides
                if time.monotonic() >= deadline:
                    raise SuperLinkFailed(
                        f"The SuperLink did not answer on {self.address} within {timeout:g} s.",
                        f"Read {self.log_path}.",
                    )
                time.sleep(0.05)

    def stop(self) -> None:
        """End the process: SIGTERM, then SIGKILL after 8 s. Does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()

    def _make_secret(self) -> None:
        if not self.superexec_secret_path.exists():
            _replace(self.superexec_secret_path, secrets.token_bytes(32))

    def __enter__(self) -> SuperLinkProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def running_address(folder: Path) -> str:
    """host:port of the SuperLink that another process last started in this folder. Raises SuperLinkFailed."""
    try:
        return (folder / _ADDRESS_FILE).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SuperLinkFailed(f"No SuperLink was started in {folder}.", "Start the coordinator first.") from error


def _replace(path: Path, content: bytes) -> None:
    """Write a file (0600) whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn binds: TIME_WAIT is no obstacle
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SuperLinkFailed(
                f"Port {port} on {HOST} is in use.", "Stop what holds it or set another SuperLink port."
            ) from error


def _child_environment(folder: Path) -> dict[str, str]:
    """The environment of the SuperLink: ours, without proxies or Flower settings, with its calls home turned off."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().endswith("_PROXY") and not name.startswith("FLWR_") and name != "FLOWER_HOME"
    }
    return kept | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": str(folder / "flwr-home"),
        "FLWR_LOG_LEVEL": "WARNING",
        "NO_PROXY": "127.0.0.1,localhost,::1",
        "no_proxy": "127.0.0.1,localhost,::1",
    }
