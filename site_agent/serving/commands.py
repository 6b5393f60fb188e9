"""cloister-site serve"""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import CloisterError
from site_agent.settings import SiteHome, load_settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from site_agent.serving.log import ServingLog
    from site_agent.serving.reports import Server

LOOPBACK = "127.0.0.1"


class PortInUse(CloisterError):
    """Another program listens on the port."""

    code = "port-in-use"


def serve(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Loopback port.")] = 8600,
    home: Annotated[Path | None, typer.Option("--home", help="The site's folder.")] = None,
) -> None:
    """Answer predictions of the installed release on loopback (Open Inference Protocol)."""
    from protocol.canonical import digest
    from site_agent.clock import system_clock
    from site_agent.database import open_database
    from site_agent.releases.fetch import root_of
    from site_agent.releases.install import current
    from site_agent.releases.sealed import examine_folder
    from site_agent.serving.app import create_app
    from site_agent.serving.gate import gate_of
    from site_agent.serving.predictor import Predictor
    from site_agent.serving.reports import Served, Server, end_killed, refusals_told
    from site_agent.serving.standing import Standing

    settings = load_settings(SiteHome.resolve(home))
    release, engine = current(settings.home), open_database(settings.home)
    name = release.subject.release
    standing, served = Standing(settings, engine, name), Served.of(settings.site, release.subject)
    end_killed(settings.home, engine, system_clock)
    with refusals_told(engine, served, "start", system_clock):
        if (trouble := standing.trouble()) is not None:
            raise trouble
    sealed = examine_folder(release.folder, root_of(settings, installed=True))
    gate = gate_of(settings, engine, sealed, system_clock)
    decision = gate.require("start")
    running = Server(settings.home, engine, served, system_clock)

    def predicted(records: int) -> None:
        gate.log.append("predicted", records=records)
        running.answered(records)

    predictor = Predictor(sealed.files["model.onnx"], sealed.subject)
    app = create_app(predictor, lambda: running.judged(standing.trouble() or gate.trouble()), predicted)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            raise PortInUse(
                f"Port {port} on this machine is in use.", "Stop the other program, or choose another with --port."
            ) from None
        typer.echo(f"{name} answers on http://{LOOPBACK}:{port}/v2/models/{sealed.subject.study}")
        answer(app, listener, running, gate.log, digest(decision.to_dict()))


def answer(app: FastAPI, listener: socket.socket, running: Server, log: ServingLog, decision: str) -> None:
    """Answer until SIGTERM or SIGINT, with beginning and end in the serving log and told to the federation. decision:
    the digest of the gate's."""
    import uvicorn

    # Requests hold patients' values: no access log.
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning"))
    log.append("started")
    running.start(decision)
    # uvicorn raises the signal anew once it has shut down: by default that ends the process before its end is told.
    signal.signal(signal.SIGTERM, _leave)
    try:
        server.run(sockets=[listener])
    finally:
        try:
            running.stop()
        finally:
            log.append("stopped")


def _leave(*_: object) -> None:
    sys.exit(0)
