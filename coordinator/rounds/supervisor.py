"""Keeps one driver process at work while any study needs one; a part of `serve`.

Studies run one after another in the order in which they were started: drivers share the SuperLink, and a run there
belongs to one process. A driver that ends abnormally is started again after a growing pause, and resumes. A study that
waits (coordinator.rounds.waiting) is looked at now and then, when no other needs a driver.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.database import reading
from coordinator.rounds.freeze import StudyFrozen, free_participants
from coordinator.rounds.process import ENDED, WRONG
from coordinator.rounds.waiting import waiting
from coordinator.studies.repository import StudyRepository, plan_of
from coordinator.studies.tables import Study
from protocol.errors import CloisterError

POLL_SECONDS = 0.3
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STOP_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 20.0
"""Between two looks at a study that waits."""
_log = structlog.get_logger()


class DriverSupervisor:
    """A thread; `start` once, `stop` once. superlink: gives host:port, or None while the SuperLink is down.

    secret: the file that lets a process take over a run's server side.
    """

    def __init__(self, appliance: Appliance, superlink: Callable[[], str | None], secret: Path) -> None:
        self._appliance = appliance
        self._superlink = superlink
        self._secret = secret
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="round-drivers", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: str | None = None
        self._looked: dict[str, float] = {}

    def start(self) -> None:
        """Begin to look for studies."""
        self._thread.start()

    def stop(self) -> None:
        """End the driver at work; it resumes when a server is started again."""
        self._stop.set()
        self._thread.join()

    @property
    def state(self) -> str:
        """ok, or why a study does not go on."""
        return self._failure or "ok"

    @property
    def driver_pid(self) -> int | None:
        """The process id of the driver at work."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def _run(self) -> None:
        pause, skipped = FIRST_PAUSE, set[str]()
        while not self._stop.wait(POLL_SECONDS):
            study, address = self._next(skipped), self._superlink()
            if study is None or address is None:
                continue
            code = self._drive(study, address)
            self._looked[study] = time.monotonic()
            if self._stop.is_set() or code == ENDED:
                pause, self._failure = FIRST_PAUSE, None
                continue
            self._failure = f"the driver of study {study} ended with code {code}"
            _log.error("driver-ended", study=study, exit_code=code, pause=pause)
            if code == WRONG:
                skipped.add(study)  # until the server is started again: others must not wait for it
            self._stop.wait(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    def _next(self, skipped: set[str]) -> str | None:
        try:
            with reading(self._appliance.engine) as session:
                active = [row for row in StudyRepository(session).active() if row.id not in skipped]
                able = [row.id for row in active if not _held_up(session, row)]
                waits = waiting(session)
        except CloisterError as error:
            self._failure = error.code
            return None
        due = (study for study in able if study not in waits or self._is_due(study))
        return min(due, key=lambda study: study in waits, default=None)

    def _is_due(self, study: str) -> bool:
        looked = self._looked.get(study)
        return looked is None or time.monotonic() - looked >= LOOK_AGAIN_SECONDS

    def _drive(self, study: str, address: str) -> int:
        command = [
            sys.executable, "-P", "-m", "coordinator.rounds.process", "--home", str(self._appliance.home),
            "--study", study, "--superlink", address, "--secret", str(self._secret),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - a fixed command, no shell
        while self._process.poll() is None:
            if self._stop.wait(POLL_SECONDS):
                self._end(self._process)
        return self._process.returncode

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        end = time.monotonic() + STOP_SECONDS
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        if process.poll() is None:
            process.kill()
        process.wait()


def _held_up(session: Session, row: Study) -> bool:
    """Whether incidents freeze the study, and it is on record that it waits: others go on, and it does once they are
    closed."""
    if row.id not in waiting(session):
        return False
    try:
        free_participants(session, row.id, plan_of(row))
    except StudyFrozen:
        return True
    return False
