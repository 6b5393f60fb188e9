"""One list of codes: what a site says reaches the record as it is, and nothing else that it writes does."""

from __future__ import annotations

import pytest

from coordinator.rounds.contributions import Excluded, opened
from protocol.envelope import seal
from protocol.round import REFUSAL_TYPE, Packet, RefusalCode, RoundRefusal, RoundRequest
from protocol.signing import SigningKey

KEY = SigningKey.from_seed(bytes(32))
DIGEST = "sha256:" + "1" * 64
REQUEST = RoundRequest(
    study="hearts-one",
    plan_digest=DIGEST,
    phase="train",
    round=1,
    attempt=1,
    cohort=("cork", "delft"),
    model=DIGEST,
    issued_at="2026-03-01T12:00:00Z",
    expires_at="2026-03-01T12:05:00Z",
)


def recorded(code: str) -> str:
    refusal = RoundRefusal(study="hearts-one", site="cork", phase="train", round=1, attempt=1, code=code)
    packet = Packet(seal(REFUSAL_TYPE, refusal.model_dump(mode="json"), KEY)).to_bytes()
    with pytest.raises(Excluded) as excluded:
        opened(packet, REQUEST, site="cork", key=KEY.public, length=3)
    return excluded.value.code


@pytest.mark.parametrize("code", list(RefusalCode))
def test_every_code_of_a_site_is_recorded_as_it_is(code: RefusalCode) -> None:
    assert recorded(code.value) == f"refused:{code.value}"


def test_what_is_no_code_is_not_recorded() -> None:
    assert recorded("patient-17-is-ill") == "refused:other"
