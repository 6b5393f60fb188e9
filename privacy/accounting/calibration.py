"""The smallest noise that keeps a promise: bracket, bisect, round up, and check with the ledger's own interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from privacy.accounting.epsilon import FORECAST_INTERVAL, LEDGER_INTERVAL
from privacy.accounting.epsilon import epsilon as epsilon_of
from privacy.errors import ParameterError
from privacy.parameters import Mechanism, require_count, require_positive, require_probability

SMALLEST_MULTIPLIER = 0.3
LARGEST_MULTIPLIER = 10_000.0
TICKS_PER_UNIT = 10_000
_RELATIVE_WIDTH = 2e-5


@lru_cache(maxsize=256)
def noise_multiplier_for(epsilon: float, delta: float, q: float, steps: int) -> float:
    """The least multiplier, to four decimals and rounded up, for which `steps` steps cost at most `epsilon`.

    steps is T + A. The result is checked at the ledger's interval of 1e-4: epsilon(result) <= epsilon always. It is
    at least 0.3, below which a step protects next to nothing. Raises ParameterError where even 10,000 is too little.
    """
    require_positive("epsilon", epsilon)
    require_probability("delta", delta, allow_one=False)
    require_probability("the sampling rate", q, allow_one=True)
    require_count("the number of steps", steps, 1)

    def cost(multiplier: float, interval: float) -> float:
        return epsilon_of(Mechanism(multiplier, q, steps, delta), interval)

    # A coarse interval overstates a small epsilon by a noticeable share, and so would waste noise.
    searching = FORECAST_INTERVAL if epsilon >= 1 else LEDGER_INTERVAL
    low, high = _bracket(lambda multiplier: cost(multiplier, 10 * searching) <= epsilon)
    while high / low > 1 + _RELATIVE_WIDTH:
        middle = math.sqrt(low * high)
        if cost(middle, searching) <= epsilon:
            high = middle
        else:
            low = middle
    ticks = math.ceil(high * TICKS_PER_UNIT)
    while cost(ticks / TICKS_PER_UNIT, LEDGER_INTERVAL) > epsilon:
        ticks += max(1, ticks // 10_000)
    return ticks / TICKS_PER_UNIT


def _bracket(enough: Callable[[float], bool]) -> tuple[float, float]:
    """(too little, enough), a factor of two apart; the lower end may be enough where 0.3 already is."""
    high = 1.0
    if enough(high):
        while high > SMALLEST_MULTIPLIER and enough(high / 2):
            high /= 2
        return max(high / 2, SMALLEST_MULTIPLIER), max(high, SMALLEST_MULTIPLIER)
    while not enough(high):
        high *= 2
        if high > LARGEST_MULTIPLIER:
            raise ParameterError(
                "No noise multiplier up to 10,000 reaches that epsilon.",
                "Raise epsilon or delta, or lower the sampling rate or the rounds.",
            )
    return high / 2, high
