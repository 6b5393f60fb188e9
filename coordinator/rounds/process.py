"""The driver as a process: `python -m coordinator.rounds.process --home H --study ID --superlink HOST:PORT --secret F`.

It ends with its parent, holds a lock so that no two drivers of one coordinator share the SuperLink's run, and says how
it went by its exit code: 0, the study has ended; 75, try again; 1, something is wrong that trying again won't mend.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import threading
import time
from pathlib import Path

import structlog

from coordinator.appliance import Appliance, open_appliance
from coordinator.audit.health import LogHealth, log_health
from coordinator.database import reading
from coordinator.errors import place_of
from coordinator.logs import configure_logs
from coordinator.rounds.driver import RoundDriver
from coordinator.rounds.repository import AnotherDriver
from privacy.errors import PrivacyError
from protocol.errors import CloisterError

ENDED = 0
WRONG = 1
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
LOCK_FILE = "driver.lock"
PARENT_CHECK_SECONDS = 0.5
HEALTH_SECONDS = 5.0
_log = structlog.get_logger()


class DatabaseLogWatch:
    """The log's health from the database, read at most every five seconds while it is good."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._known: tuple[float, LogHealth] | None = None

    def health(self) -> LogHealth:
        """As of the last few seconds."""
        now = time.monotonic()
        if self._known is not None and self._known[1].quorum and now - self._known[0] < HEALTH_SECONDS:
            return self._known[1]
        with reading(self._appliance.engine) as session:
            health = log_health(session, self._appliance)
        self._known = (now, health)
        return health


def main(arguments: list[str] | None = None) -> int:
    """Run one driver to its end; the exit code."""
    parser = argparse.ArgumentParser(prog="coordinator.rounds.process", description="Drive one study.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--study", required=True)
    parser.add_argument("--superlink", required=True, help="host:port on loopback")
    parser.add_argument("--secret", type=Path, required=True, help="the SuperLink's superexec secret")
    options = parser.parse_args(arguments)
    configure_logs()
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    try:
        return _drive(options.home, options.study, options.superlink, options.secret)
    except AnotherDriver as error:
        _log.warning("driver-superseded", study=options.study, reason=error.message)
        return TRY_AGAIN
    except (CloisterError, PrivacyError) as error:
        from coordinator.federation.link import ExchangeLost

        lost = isinstance(error, ExchangeLost)
        _log.error("driver-stopped", study=options.study, code=error.code, reason=error.message, remedy=error.remedy)
        return TRY_AGAIN if lost else WRONG
    except Exception as error:  # noqa: BLE001 - the process ends; the class and the place are enough to find the fault
        _log.error("driver-crashed", study=options.study, error=type(error).__name__, place=place_of(error))
        return TRY_AGAIN


def _drive(home: Path, study: str, superlink: str, secret: Path) -> int:
    appliance = open_appliance(home)
    with open(os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AnotherDriver("Another driver of this coordinator is at work.", "Let it end.") from None
        from coordinator.federation.exchange import FlowerExchange
        from coordinator.rounds.flower_sites import FlowerSites

        with FlowerExchange(superlink, secret) as flower:
            driver = RoundDriver(
                appliance,
                study,
                FlowerSites(flower, appliance.engine),
                watch=DatabaseLogWatch(appliance),
            )
            state = driver.run()
    _log.info("driver-done", study=study, state=state.value)
    return ENDED


def _follow_parent(parent: int) -> None:
    """A driver without its server must not go on: nobody could stop it."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(TRY_AGAIN)


if __name__ == "__main__":
    sys.exit(main())
