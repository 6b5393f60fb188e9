"""What a self-test tells of an engine. Light: a process that computes nothing may read it."""

from __future__ import annotations

from dataclasses import dataclass

CHECKS = ("noise-and-clip", "sampling", "noise-spread", "clip-bound", "networks")
"""In order; `privacy.auditing.self_test` says what each sees."""


@dataclass(frozen=True)
class Check:
    """One finding. measured, limit: what was found and what it was held against."""

    name: str
    passed: bool
    measured: float
    limit: float
