"""How a study trains: its steps, in which mode they are noised, and what the coordinator makes of the sums."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from protocol.checks import Checks
from protocol.identifiers import Frozen
from protocol.proposal import Mode


class ServerRule(Frozen):
    """What the coordinator makes of the sites' mean change in local mode (Reddi et al. 2021, Alg. 2): post-processing.

    rate: eta; 1 is plain averaging under fedavg. beta1: momentum over rounds. beta2, tau: of the adaptive rules.
    """

    rule: Literal["fedavg", "fedadam", "fedyogi"] = "fedavg"
    rate: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.0
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Annotated[float, Field(gt=0, le=1e6)] = 1e-3


class Training(Frozen):
    """distributed: one private step a round; the coordinator applies momentum to the noisy mean (post-processing).

    local: `local_steps` private steps a round at each site with learning_rate and momentum, momentum beginning anew
    with each round; what a site sends, its model's change, is at most `largest_delta` in L2, and `server` says what
    becomes of the mean of these. The weights that are released are the mean of the `average_last` share of the rounds.
    checks: of the model between rounds, if any.
    """

    rounds: Annotated[int, Field(ge=1, le=10_000)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    clip: Annotated[float, Field(gt=0, le=1e6)]
    learning_rate: Annotated[float, Field(gt=0, le=1e6)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    average_last: Annotated[float, Field(ge=0, le=1)] = 0.5
    local_steps: Annotated[int, Field(ge=1, le=1000)] = 1
    largest_delta: Annotated[float, Field(gt=0, le=1e6)] | None = None
    server: ServerRule | None = None
    checks: Checks | None = None

    @property
    def check_count(self) -> int:
        """How many checks there are between the rounds."""
        return 0 if self.checks is None else (self.rounds - 1) // self.checks.every

    def misfit(self, mode: Mode) -> str | None:
        """Why these fields do not go with the mode, or None."""
        if mode == "local":
            if self.largest_delta is None or self.server is None:
                return "mode local needs training.largest_delta and training.server"
            return None
        if self.local_steps != 1 or self.largest_delta is not None or self.server is not None:
            return "training.local_steps, largest_delta and server belong to privacy.mode local"
        return None
