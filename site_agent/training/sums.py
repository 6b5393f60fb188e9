"""The grid and the noise of one secure sum, from the numbers that the plan fixes. Pure."""

from __future__ import annotations

from privacy.parameters import Grid, plan_grid
from protocol.study import SecureSum


def sum_parameters(secure_sum: SecureSum) -> tuple[Grid, float | None]:
    """(the grid of the sum, this site's noise standard deviation, or None for an exact sum). Raises PrivacyError."""
    if secure_sum.noise_multiplier is None:
        return Grid(secure_sum.exact_step), None
    parameters = plan_grid(
        clip=secure_sum.clip,
        sites=secure_sum.sites,
        tolerated=secure_sum.tolerated,
        b_max=secure_sum.largest_batch,
        noise_multiplier=secure_sum.noise_multiplier,
    )
    return parameters.grid, parameters.site_std
