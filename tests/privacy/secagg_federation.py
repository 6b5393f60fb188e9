"""A study's sites with their keys exchanged, for the secure aggregation tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from privacy.secagg.client import SecAggSite

PLAN = b"p" * 32
MODEL = b"m" * 32


def deterministic_entropy(label: int) -> Callable[[int], bytes]:
    """Reproducible bytes for tests alone; the product passes os.urandom."""
    import hashlib

    counter = [0]

    def draw(count: int) -> bytes:
        counter[0] += 1
        seed = label.to_bytes(8, "big") + counter[0].to_bytes(8, "big")
        return hashlib.shake_256(seed).digest(count)

    return draw


def make_sites(
    names: Sequence[str],
    length: int,
    *,
    minimum: int = 3,
    plan: bytes = PLAN,
    study: str = "study-1",
    allowed: Mapping[str, int] | None = None,
) -> dict[str, SecAggSite]:
    return {
        name: SecAggSite(
            site=name,
            study=study,
            plan_digest=plan,
            peers=names,
            minimum_cohort=minimum,
            lengths={"training": length},
            allowed=allowed,
        )
        for name in names
    }


def exchange_keys(sites: dict[str, SecAggSite]) -> dict[str, SecAggSite]:
    adverts = [site.advertise(os.urandom) for site in sites.values()]
    messages = [site.on_adverts(adverts) for site in sites.values()]
    for site in sites.values():
        site.on_encapsulations(messages)
    return sites


def ready_sites(names: Sequence[str], length: int, *, minimum: int = 3) -> dict[str, SecAggSite]:
    return exchange_keys(make_sites(names, length, minimum=minimum))
