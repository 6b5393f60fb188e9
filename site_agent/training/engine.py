"""Which code computes at this site: its release, and a digest of what it is made of."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import privacy
import site_agent.training
from protocol.canonical import digest, sha256_hex

_LIBRARIES = ("numpy", "scipy", "torch", "cryptography", "dp-accounting")


@dataclass(frozen=True)
class EngineVersion:
    """version: of the package. digest: over the source of the private step and the releases that it stands on."""

    version: str
    digest: str


@cache
def engine_version() -> EngineVersion:
    """Of the code on this disk as it is when first asked: an agent is started anew to take an update up."""
    folders = [Path(next(iter(package.__path__))) for package in (privacy, site_agent.training)]
    sources = {
        f"{folder.name}/{path.relative_to(folder).as_posix()}": sha256_hex(path.read_bytes())
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
    }
    libraries = {name: _release(name) for name in _LIBRARIES}
    made_of = {"sources": sources, "libraries": libraries, "python": platform.python_version()}
    return EngineVersion(_release("cloister"), digest(made_of))


def _release(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
