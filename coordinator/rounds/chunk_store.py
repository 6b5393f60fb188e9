"""Chunks of contributions that are on their way, as files: DIRECTORY/<attempt>/<site>/<number>.

Every part of a path is made here, of digests and numbers, never of what a caller wrote. A chunk is there whole or not
at all as far as a process can crash; what a power cut left of one is found out by its digest, which whoever reads it
compares. What is in here is masked, and worthless without the whole cohort's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from coordinator.errors import Conflict

FOLDER = "uploads"
_OFFER = "offer"
_NAME_BYTES = 16


class UploadClosed(Conflict):
    """The attempt that the upload belongs to is over, or never was."""

    code = "upload-closed"


class AnotherOffer(Conflict):
    """The site has offered another contribution for the same attempt."""

    code = "upload-equivocation"


@dataclass(frozen=True)
class Place:
    """Where one site's contribution to one attempt lies: two names of 32 hexadecimal digits."""

    attempt: str
    site: str

    @classmethod
    def of(cls, study: str, phase: str, round_number: int, attempt: int, site: str) -> Place:
        """One place for each attempt and site, whatever is contributed."""
        return cls.within(attempt_name(study, phase, round_number, attempt), site)

    @classmethod
    def within(cls, attempt: str, site: str) -> Place:
        """A site's place in an attempt that is given by its name: the site is whoever asks, never what it says."""
        return cls(attempt, _name("site", site))


def attempt_name(study: str, phase: str, round_number: int, attempt: int) -> str:
    """The name of an attempt, 32 hexadecimal digits: what a site addresses its chunks to."""
    return _name("attempt", study, phase, str(round_number), str(attempt))


def _name(*fields: str) -> str:
    # No field can hold a zero byte: names are of a closed character set.
    return hashlib.sha256("\0".join(fields).encode()).hexdigest()[: 2 * _NAME_BYTES]


class ChunkStore:
    """The files; safe for several threads and for the server and the driver, which are two processes."""

    def __init__(self, directory: Path) -> None:
        """directory: made, for the coordinator's user alone, when the first offer comes."""
        self._directory = directory

    @property
    def used(self) -> bool:
        """Whether an offer has ever come."""
        return self._directory.is_dir()

    def begin(self, place: Place, offer: bytes) -> None:
        """Keep the signed offer. The same again changes nothing; raises AnotherOffer for a second one."""
        folder = self._folder(place)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = self._written(folder, offer)
        try:
            os.link(written, folder / _OFFER)
        except FileExistsError:
            if self.offer(place) != offer:
                raise AnotherOffer(
                    "Another contribution was offered for this attempt.", "Send the bytes that were stored first."
                ) from None
        finally:
            written.unlink(missing_ok=True)

    def offer(self, place: Place) -> bytes | None:
        """The signed offer, if there is one."""
        return _read(self._folder(place) / _OFFER)

    def held(self, place: Place) -> frozenset[int]:
        """The numbers of the chunks that are here."""
        try:
            names = os.listdir(self._folder(place))
        except FileNotFoundError:
            return frozenset()
        return frozenset(int(name) for name in names if name.isdecimal())

    def put(self, place: Place, number: int, chunk: bytes) -> None:
        """Keep a chunk that was verified. Raises UploadClosed where the attempt was erased meanwhile."""
        folder = self._folder(place)
        try:
            os.replace(self._written(folder, chunk), folder / str(number))
        except FileNotFoundError:
            raise UploadClosed("The attempt is over.", "Wait for the next attempt.") from None

    def read(self, place: Place, number: int) -> bytes | None:
        """A chunk as it lies here; None where there is none."""
        return _read(self._folder(place) / str(number))

    def drop(self, place: Place, number: int) -> None:
        """Forget a chunk that is not what it should be."""
        (self._folder(place) / str(number)).unlink(missing_ok=True)

    def attempts(self) -> list[str]:
        """The names of the attempts that anything is held of."""
        try:
            return sorted(name for name in os.listdir(self._directory) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def size(self, attempt: str) -> tuple[int, int]:
        """(how many files an attempt has, their bytes)"""
        sizes = [path.stat().st_size for path in (self._directory / attempt).rglob("*") if path.is_file()]
        return len(sizes), sum(sizes)

    def keep_only(self, attempts: Collection[str]) -> None:
        """Erase every attempt but these."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._directory):
                if name not in attempts:
                    self.erase(name)

    def erase(self, attempt: str) -> None:
        """Erase an attempt: it is renamed first, so that no chunk can be added to what goes."""
        going = self._directory / f".{secrets.token_hex(_NAME_BYTES)}"
        with contextlib.suppress(FileNotFoundError):  # the other process was first
            os.rename(self._directory / attempt, going)
            shutil.rmtree(going, ignore_errors=True)

    def _folder(self, place: Place) -> Path:
        return self._directory / place.attempt / place.site

    def _written(self, folder: Path, data: bytes) -> Path:
        path = folder / f".{secrets.token_hex(_NAME_BYTES)}"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            try:
                file.write(data)
            except OSError:
                path.unlink(missing_ok=True)
                raise
        return path


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
