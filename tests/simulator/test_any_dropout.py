"""Whatever is lost, in whatever pattern: a candidate from the true sums, or none, and the ledger always covers it."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.rounds.exchange import Answer, Unreached
from coordinator.studies.states import ENDED
from tests.simulator import invariants
from tests.simulator.federation import NAMES, PASS, Delivery, Federation

FATES = ("answer", "lost", "lost", "offline", "garbage", "twice")


@settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(fates=st.dictionaries(st.tuples(st.sampled_from(NAMES), st.integers(4, 12)), st.sampled_from(FATES), max_size=8))
def test_the_sum_is_right_or_there_is_none(
    federation: Federation, begin: Callable[..., str], fates: dict[tuple[str, int], str]
) -> None:
    federation.reset()
    study = begin()

    def fault(delivery: Delivery) -> Answer | None:
        match fates.get((delivery.site.name, delivery.number)):
            case "lost":
                delivery.answer()
                return None
            case "offline":
                return Unreached("offline")
            case "garbage":
                return delivery.answer()[:-7]
            case "twice":
                delivery.answer()
        return PASS

    federation.exchange.faults.append(fault)
    assert federation.driver(study).run() in ENDED
    invariants.check(federation, study)
