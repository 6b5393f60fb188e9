"""The packs by which this coordinator decides: those that ship with Cloister, at the organisation's defaults."""

from __future__ import annotations

from functools import cache

from policies.packs import Policy, builtin_policy


@cache
def active_policy() -> Policy:
    """Compiled once per process."""
    return builtin_policy()


def pack_digests(policy: Policy) -> dict[str, str]:
    """Pack id -> digest over the pack's own bytes; what the plan names and sites compare with theirs."""
    return {pack.id: pack.digest for pack in policy.packs}
