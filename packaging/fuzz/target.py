"""A format that is fuzzed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Read = Callable[[bytes], bool]
"""Whether a changed input passes for a good one; raises CloisterError where it is refused."""


@dataclass(frozen=True)
class Target:
    """A format: good inputs, the words it is made of, its reading."""

    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]
    read: Read
