"""A declared grid: the same study trained several times with other constants, all of it charged, the best one kept.

What may differ between runs costs nothing of its own. Sampling rate, rounds, local steps and noise multiplier are what
is charged, so they are the same in every run and whatever order the runs take.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from protocol.identifiers import Frozen
from protocol.training import ServerRule, Training

MOST_ENTRIES = 64


class TuningEntry(Frozen):
    """One entry of the grid: the fields of `training` that it puts others in place of. At least one is given."""

    learning_rate: Annotated[float, Field(gt=0, le=1e6)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    clip: Annotated[float, Field(gt=0, le=1e6)] | None = None
    average_last: Annotated[float, Field(ge=0, le=1)] | None = None
    largest_delta: Annotated[float, Field(gt=0, le=1e6)] | None = None
    server: ServerRule | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> TuningEntry:
        if not self.changes:
            raise ValueError("an entry of the grid changes nothing")
        return self

    @property
    def changes(self) -> dict[str, object]:
        """The fields that are given."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}

    def applied(self, training: Training) -> Training:
        """The study's training with this entry's fields."""
        return training.model_copy(update=self.changes)


class Tuning(Frozen):
    """A grid of at least two entries, numbered from 1.

    order declared: every entry is run as listed. searched: the coordinator picks each next entry by the scores of
    earlier runs (a tree-structured Parzen estimator, Bergstra et al. 2011), none twice, `runs` of them; left out: all.
    Each run is scored once on the held-out patients, by the first figure of its evaluation, and the chosen one is
    evaluated once more: every score and every run is charged by full composition.
    """

    grid: Annotated[tuple[TuningEntry, ...], Field(min_length=2, max_length=MOST_ENTRIES)]
    order: Literal["declared", "searched"] = "declared"
    runs: Annotated[int, Field(ge=2, le=MOST_ENTRIES)] | None = None

    @model_validator(mode="after")
    def _runs_of_the_grid(self) -> Tuning:
        if len(set(self.grid)) != len(self.grid):
            raise ValueError("two entries of the grid are the same")
        if self.count > len(self.grid):
            raise ValueError(f"{self.count} runs of a grid of {len(self.grid)} entries")
        if self.order == "declared" and self.count != len(self.grid):
            raise ValueError("order declared runs every entry: leave runs out, or let order be searched")
        return self

    @property
    def count(self) -> int:
        """How many runs there are."""
        return len(self.grid) if self.runs is None else self.runs
