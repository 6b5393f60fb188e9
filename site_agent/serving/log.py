"""The serving log (AI Act Art. 12, 26(6)): when which release answered how many records, one file for each day.

No value of a patient, no prediction and no name is in it. Each line is there before the answer leaves; a prediction
whose line can't be written is not given.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from protocol.errors import CloisterError
from protocol.timestamp import timestamp
from site_agent.clock import Clock
from site_agent.durable_files import PRIVATE_FILE, make_private_folder
from site_agent.settings import SiteHome

FOLDER = "serving-log"
_FILE = re.compile(r"^(\d{4}-\d{2}-\d{2})\.jsonl$")

Event = Literal["started", "predicted", "refused", "stopped"]


class ServingLogUnwritable(CloisterError):
    """Nothing may be predicted that is not logged."""

    code = "serving-log-unwritable"


@dataclass(frozen=True)
class DayLog:
    """One day's file."""

    day: date
    path: Path


class ServingLog:
    """Appends to the file of the day. Safe for several threads: one write for each line."""

    def __init__(self, home: SiteHome, release: str, digest: str, clock: Clock) -> None:
        """release, digest: what is served, as each line names it."""
        self._folder = home.path / FOLDER
        self._release, self._digest, self._clock = release, digest, clock

    def append(self, event: Event, *, records: int | None = None, code: str | None = None) -> None:
        """One line. records: how many were asked about; code: why it was refused. Raises ServingLogUnwritable."""
        now = self._clock()
        line: dict[str, object] = {
            "at": timestamp(now),
            "event": event,
            "release": self._release,
            "digest": self._digest,
        }
        line |= {name: value for name, value in (("records", records), ("code", code)) if value is not None}
        data = (json.dumps(line, sort_keys=True) + "\n").encode()
        try:
            descriptor = self._open(now.date())
            try:
                written = os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._unwritable(error.strerror or type(error).__name__) from None
        if written != len(data):
            raise self._unwritable("the disk is full")

    def usable(self) -> bool:
        """Whether a line could be appended now."""
        try:
            os.close(self._open(self._clock().date()))
        except OSError:
            return False
        return True

    def _open(self, day: date) -> int:
        make_private_folder(self._folder)
        path = self._folder / f"{day.isoformat()}.jsonl"
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE_FILE)

    def _unwritable(self, why: str) -> ServingLogUnwritable:
        return ServingLogUnwritable(
            f"The serving log in {self._folder} can't be written ({why}): nothing is predicted unlogged.",
            "Free space or correct who owns the folder, then ask again.",
        )


def days(home: SiteHome) -> Iterator[DayLog]:
    """Every day's file, oldest first."""
    folder = home.path / FOLDER
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if match := _FILE.fullmatch(path.name):
                yield DayLog(date.fromisoformat(match[1]), path)
