"""The state of secure aggregation at rest: it opens under its own key, study and plan, and nowhere else."""

from __future__ import annotations

import os

import pytest

from privacy.secagg.client import SecAggSite
from privacy.secagg.refusals import Refusal, Refused
from privacy.secagg.sealed_state import seal, unseal
from tests.privacy.secagg_federation import PLAN, ready_sites

KEY = bytes(range(32))


def sealed(state: bytes) -> bytes:
    return seal(state, KEY, study="study-1", plan_digest=PLAN, entropy=os.urandom)


def refusal(data: bytes, key: bytes = KEY, study: str = "study-1", plan: bytes = PLAN) -> str:
    with pytest.raises(Refused) as caught:
        unseal(data, key, study=study, plan_digest=plan)
    assert caught.value.remedy
    return caught.value.code


def test_a_state_comes_back_as_it_was() -> None:
    site = ready_sites(("ana", "bo", "cy"), 8)["ana"]
    state = site.export_state()
    opened = unseal(sealed(state), KEY, study="study-1", plan_digest=PLAN)
    assert opened == state
    assert SecAggSite.restore(opened).export_state() == state


def test_nothing_of_the_state_can_be_read_and_no_two_are_alike() -> None:
    state = ready_sites(("ana", "bo", "cy"), 8)["ana"].export_state()
    one, other = sealed(state), sealed(state)
    assert one != other
    pieces = [state[start : start + 8] for start in range(0, len(state) - 8)]
    assert not any(piece in one for piece in pieces)


def test_another_key_study_or_plan_opens_nothing() -> None:
    data = sealed(b"state")
    for changes in ({"key": bytes(32)}, {"study": "study-2"}, {"plan": b"q" * 32}):
        assert refusal(data, **changes) == Refusal.STATE_DAMAGED  # type: ignore[arg-type]
    # no two pairs of study and plan share a context, wherever one ends and the other begins
    assert refusal(data, study="study-", plan=b"1" + PLAN[1:]) == Refusal.STATE_DAMAGED
    assert refusal(data, key=KEY[:31]) == Refusal.MALFORMED


def test_any_byte_that_was_changed_or_is_missing_is_noticed() -> None:
    data = sealed(b"state of some length")
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1
        assert refusal(bytes(broken)) == Refusal.STATE_DAMAGED
    for length in range(len(data)):
        assert refusal(data[:length]) == Refusal.STATE_DAMAGED


def test_a_state_in_the_clear_is_refused_and_says_what_to_do() -> None:
    state = ready_sites(("ana", "bo", "cy"), 8)["ana"].export_state()
    with pytest.raises(Refused, match="older version"):
        unseal(state, KEY, study="study-1", plan_digest=PLAN)
