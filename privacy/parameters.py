"""The numbers that fix a private computation, checked where they are made.

C is the clip, K the planned sites, t = d + c the tolerated drop-outs and colluders, sigma the noise
multiplier of the released sum. Worst cases follow from these alone, so that a plan can be judged before
anything runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from privacy.errors import OverflowRisk, ParameterError

MODULUS = 1 << 32
ROUNDING_STD = 3.0
"""Standard deviation of the randomised rounding, in grid steps (see privacy.secagg.quantization)."""
TAIL_STDS = 8.0
"""Standard deviations that the grid leaves room for: a coordinate goes beyond with probability under
1.3e-15.
"""


def require_positive(name: str, value: float) -> None:
    """Raises ParameterError unless `value` is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ParameterError(f"{name} must be a finite number above 0 and is {value}.", f"Correct {name}.")


def require_probability(name: str, value: float, *, allow_one: bool) -> None:
    """Raises ParameterError unless 0 < value < 1 (or <= 1 where `allow_one`)."""
    if not (math.isfinite(value) and value > 0 and (value < 1 or (allow_one and value == 1))):
        upper = "at most 1" if allow_one else "below 1"
        raise ParameterError(f"{name} must be above 0 and {upper} and is {value}.", f"Correct {name}.")


def require_count(name: str, value: int, minimum: int) -> None:
    """Raises ParameterError unless `value` is an int (not a bool) of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ParameterError(
            f"{name} must be a whole number of at least {minimum} and is {value!r}.", f"Correct {name}."
        )


@dataclass(frozen=True)
class Mechanism:
    """`steps` Poisson-sampled Gaussian steps, as charged: `steps` is T + A, retries included.

    noise_multiplier: noise standard deviation over the clip, > 0. sampling_rate: 0 < q <= 1; where sites
    differ, the largest. delta: 0 < delta < 1. Raises ParameterError.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    delta: float

    def __post_init__(self) -> None:
        require_positive("the noise multiplier", self.noise_multiplier)
        require_probability("the sampling rate", self.sampling_rate, allow_one=True)
        require_count("the number of steps", self.steps, 1)
        require_probability("delta", self.delta, allow_one=False)


def site_noise_multiplier(noise_multiplier: float, sites: int, tolerated: int) -> float:
    """sigma / sqrt(K - t): each site's noise over the clip.

    With t sites absent or subtracting their own noise, the K - t others still add up to sigma.
    Raises ParameterError unless 0 <= t < K and sigma > 0.
    """
    require_positive("the noise multiplier", noise_multiplier)
    require_count("the number of sites", sites, 1)
    require_count("the number of tolerated sites", tolerated, 0)
    if tolerated >= sites:
        raise ParameterError(
            f"{tolerated} tolerated drop-outs and colluders leave no honest site among {sites}.",
            "Invite more sites or tolerate fewer.",
        )
    return noise_multiplier / math.sqrt(sites - tolerated)


def site_noise_std(noise_multiplier: float, clip: float, sites: int, tolerated: int) -> float:
    """sigma C / sqrt(K - t), in the units of the gradient: the noise one site adds to its own sum."""
    require_positive("the clip", clip)
    return site_noise_multiplier(noise_multiplier, sites, tolerated) * clip


def effective_multiplier_worst_case(noise_multiplier: float, sites: int, tolerated: int) -> float:
    """sigma / sqrt(K - t): the multiplier left to one site if every other site colludes or the secure sum
    fails.
    """
    return site_noise_multiplier(noise_multiplier, sites, tolerated)


@dataclass(frozen=True)
class Grid:
    """The lattice on which contributions are summed: multiples of `step`, modulo `modulus` (2^32).

    Holds sums of magnitude below `half_range`. Raises ParameterError for any other modulus or a step <= 0.
    """

    step: float
    modulus: int = MODULUS

    def __post_init__(self) -> None:
        require_positive("the grid step", self.step)
        if self.modulus != MODULUS:
            raise ParameterError(
                f"The secure sum works modulo 2^32 and not {self.modulus}.", "Set the modulus to 4294967296."
            )

    @property
    def half_range(self) -> float:
        """Magnitude, in the units of the values, from which a sum would wrap around."""
        return self.step * self.modulus / 2


@dataclass(frozen=True)
class SecureSumParameters:
    """Everything about one secure sum that the plan fixes.

    clip: C > 0, the L2 bound of one patient. sites: K >= 2. tolerated: t = d + c >= 1 (one colluder is always
    assumed), with K - t >= 2 so that two honest sites remain. b_max: the most patients in one sum over all
    sites. noise_multiplier: sigma > 0 of the sum. grid: from `plan_grid`. Raises ParameterError, and
    OverflowRisk where the grid is finer than the sum allows.
    """

    clip: float
    sites: int
    tolerated: int
    b_max: int
    noise_multiplier: float
    grid: Grid

    def __post_init__(self) -> None:
        _require_cohort(self.sites, self.tolerated)
        required = _smallest_step(self.clip, self.sites, self.tolerated, self.b_max, self.noise_multiplier)
        if self.grid.step < required:
            raise OverflowRisk(
                f"A grid step of {self.grid.step:.3g} lets the sum of {self.b_max} patients wrap around.",
                f"Use a step of at least {required:.3g}.",
            )

    @property
    def modulus(self) -> int:
        """M = 2^32."""
        return self.grid.modulus

    @property
    def granularity(self) -> float:
        """Gamma: the grid step in the units of the gradient."""
        return self.grid.step

    @property
    def sigma_site(self) -> float:
        """One site's noise over the clip; also its multiplier in the worst case."""
        return site_noise_multiplier(self.noise_multiplier, self.sites, self.tolerated)

    @property
    def site_std(self) -> float:
        """One site's noise, in the units of the gradient."""
        return self.sigma_site * self.clip

    def sum_std(self, contributors: int) -> float:
        """Standard deviation of one coordinate's total noise, rounding included, when `contributors` sent
        theirs.

        With everyone present it is sqrt(K/(K-t)) times the sigma C that is charged: the price of tolerance.
        """
        require_count("the number of contributors", contributors, 1)
        return math.sqrt(contributors * (self.site_std**2 + (ROUNDING_STD * self.grid.step) ** 2))


def _require_cohort(sites: int, tolerated: int) -> None:
    require_count("the number of sites", sites, 2)
    require_count("the number of tolerated sites", tolerated, 1)
    if sites - tolerated < 2:
        raise ParameterError(
            f"{sites} sites with {tolerated} tolerated leave fewer than two honest ones.",
            "Invite more sites or tolerate fewer drop-outs.",
        )


def _smallest_step(clip: float, sites: int, tolerated: int, b_max: int, noise_multiplier: float) -> float:
    """Solve gamma = 2 (B C + 8 sqrt(K) sigma_site C + 8 sqrt(K) 3 gamma) / M for gamma."""
    require_positive("the clip", clip)
    require_count("the largest batch", b_max, 1)
    root = math.sqrt(sites)
    sigma_site = site_noise_multiplier(noise_multiplier, sites, tolerated)
    content = 2.0 * (b_max * clip + TAIL_STDS * root * sigma_site * clip)
    room = MODULUS - 2.0 * TAIL_STDS * ROUNDING_STD * root
    if room <= 0:
        raise OverflowRisk(f"{sites} sites fill the modulus with rounding alone.", "Invite fewer sites.")
    return content / room


MARGIN_BITS = 2
CLIP_STEPS = 1024
"""The fewest grid steps that one patient's clip may span."""


def plan_grid(clip: float, sites: int, tolerated: int, b_max: int, noise_multiplier: float) -> SecureSumParameters:
    """The finest power-of-two grid, two bits of margin included, on which the sum cannot wrap around.

    A power of two makes value / step and its inverse exact in float64, so both ends decode the same number.
    Raises ParameterError, and OverflowRisk where one patient's clip would span fewer than 2^10 steps:
    rounding would then be seen beside the noise.
    """
    _require_cohort(sites, tolerated)
    required = _smallest_step(clip, sites, tolerated, b_max, noise_multiplier)
    step = 2.0 ** (math.ceil(math.log2(required)) + MARGIN_BITS)
    if clip / step < CLIP_STEPS:
        raise OverflowRisk(
            f"The sum of {b_max} patients leaves fewer than {CLIP_STEPS} grid steps to one patient's clip.",
            "Lower the largest batch or the noise multiplier.",
        )
    return SecureSumParameters(
        clip=clip,
        sites=sites,
        tolerated=tolerated,
        b_max=b_max,
        noise_multiplier=noise_multiplier,
        grid=Grid(step),
    )
