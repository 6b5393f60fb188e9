"""Install a verified release: write it beside, flush it, then switch one symbolic link. Nothing else is ever served.

A crash leaves the old release or the new one. The previous release stays on disk, so `rollback` can switch back.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from protocol.bundle import MAX_BUNDLE, unpack
from protocol.errors import CloisterError, Malformed
from protocol.release import BUNDLE_FILES, ReleaseSubject
from site_agent.durable_files import make_private_folder, sync_folder, write_durably
from site_agent.releases.self_check import check
from site_agent.releases.trusted_release import Installable, TrustRoot, verify
from site_agent.settings import SiteHome

CURRENT = "current"
_FOLDER = re.compile(r"^[a-z][a-z0-9-]{0,62}[a-z0-9]\.[0-9a-f]{64}$")


class NothingInstalled(CloisterError):
    """No release is installed here."""

    code = "nothing-installed"


@dataclass(frozen=True)
class Installed:
    """An installed release: its folder, what was approved, and whether it is the one that is served."""

    folder: Path
    subject: ReleaseSubject
    current: bool


@dataclass(frozen=True)
class VerifiedBundle:
    """A bundle that passed every check: only `verify_bundle` makes one, and nothing else is installed."""

    release: Installable
    files: dict[str, bytes]


def read_bundle(path: Path) -> bytes:
    """The bytes of a bundle file. Raises Malformed naming the file when it can't be read or is over the cap."""
    try:
        if path.stat().st_size > MAX_BUNDLE:
            raise Malformed(f"{path} is larger than a release bundle may be.", "Name the right file.")
        return path.read_bytes()
    except OSError as error:
        raise Malformed(f"{path} can't be read ({error.strerror}).", "Name an existing bundle file.") from None


def verify_bundle(data: bytes, root: TrustRoot) -> VerifiedBundle:
    """Every check, in order, without writing anything."""
    files = unpack(data, BUNDLE_FILES)
    installable = verify(files, root)
    check(installable.subject, files["model.safetensors"], files["model.onnx"])
    return VerifiedBundle(installable, files)


def install(home: SiteHome, verified: VerifiedBundle) -> Installed:
    """Write, switch. Installing the same release again changes nothing."""
    subject = verified.release.subject
    make_private_folder(home.releases)
    target = home.releases / f"{subject.release}.{subject.digest.removeprefix('sha256:')}"
    if not target.exists():
        _write(target, verified.files)
    _switch(home.releases, target.name)
    return Installed(target, subject, current=True)


def current(home: SiteHome) -> Installed:
    """The release that is served. Raises NothingInstalled."""
    for release in installed(home):
        if release.current:
            return release
    raise NothingInstalled("No release is installed here.", "Run cloister-site releases install RELEASE.")


def installed(home: SiteHome) -> list[Installed]:
    """Every release on disk, by name."""
    if not home.releases.is_dir():
        return []
    link = home.releases / CURRENT
    served = link.readlink().name if link.is_symlink() else None
    found = []
    for folder in sorted(home.releases.iterdir()):
        if _FOLDER.fullmatch(folder.name) and folder.is_dir():
            subject = ReleaseSubject.model_validate_json((folder / "subject.json").read_bytes())
            found.append(Installed(folder, subject, folder.name == served))
    return found


def find(home: SiteHome, release: str) -> Installed:
    """An installed release by name. Raises NothingInstalled."""
    for candidate in installed(home):
        if candidate.subject.release == release:
            return candidate
    raise NothingInstalled(f"Release {release} is not on this disk.", "See cloister-site releases list, or install it.")


def rollback(home: SiteHome, release: str) -> Installed:
    """Serve another release that was installed, and so verified, before. Raises NothingInstalled."""
    chosen = find(home, release)
    _switch(home.releases, chosen.folder.name)
    return Installed(chosen.folder, chosen.subject, current=True)


def _write(target: Path, files: dict[str, bytes]) -> None:
    beside = target.with_name(f".{secrets.token_hex(8)}.part")
    beside.mkdir(mode=0o700)
    try:
        for name, content in files.items():
            write_durably(beside / name, content)
        sync_folder(beside)
        beside.rename(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync_folder(target.parent)


def _switch(folder: Path, name: str) -> None:
    beside = folder / f".{secrets.token_hex(8)}.link"
    beside.symlink_to(name)
    os.replace(beside, folder / CURRENT)
    sync_folder(folder)
