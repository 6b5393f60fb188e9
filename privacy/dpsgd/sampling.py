"""Poisson sampling of patients from a cryptographic stream."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from privacy.entropy import KeyStream
from privacy.parameters import require_count, require_probability


def poisson_sample(n: int, q: float, stream: KeyStream) -> npt.NDArray[np.bool_]:
    """(n,) bool: each patient chosen on its own with probability q (to 2^-53), 0 < q <= 1. May choose nobody.

    The sample and its size stay at the site: the accounting assumes both secret. Raises ParameterError.
    """
    require_count("the number of patients", n, 0)
    require_probability("the sampling rate", q, allow_one=True)
    if q == 1.0:
        return np.ones(n, dtype=np.bool_)
    return stream.uniform53(n) < q
