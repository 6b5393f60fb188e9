"""Declared subgroups: by which columns an evaluation tells how well the model does for whom. Pure.

A held-out patient counts once among all and once in each declared column, so that zeroing a patient moves the whole
histogram by sqrt(1 + columns) in L2: the epsilon stays, and every count carries that much more noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from protocol.dataset import CLIP_DEVIATIONS, DatasetSchema, Feature
from protocol.identifiers import ColumnName, Frozen

MOST_COLUMNS = 2
MOST_GROUPS = 8
MINIMUM_SUBGROUP = 20
"""Held-out patients, as the noised counts have it, below which nothing is told of a subgroup."""


class Subgroup(Frozen):
    """One column of the dictionary. edges: where a number or integer is cut, rising; each band begins at its edge. None
    for a category, whose levels are the subgroups."""

    column: ColumnName
    edges: Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(max_length=MOST_GROUPS - 1)] = ()


class Banding(Frozen):
    """Where the encoded record tells the subgroup: `width` inputs from `at`, the largest of which is the level; or one
    input, cut at `edges`, which are encoded too."""

    at: int
    width: int
    edges: tuple[float, ...] = ()

    @property
    def groups(self) -> int:
        """How many subgroups there are."""
        return len(self.edges) + 1 if self.edges else self.width


def subgroup_misfit(declared: Sequence[Subgroup], dataset: DatasetSchema) -> str | None:
    """Why these can't be told apart in this schema's records, or None."""
    names = [one.column for one in declared]
    if len(set(names)) != len(names):
        return "evaluation.subgroups names a column twice"
    known = {feature.name: feature for feature in dataset.features}
    for one in declared:
        feature = known.get(one.column)
        if feature is None:
            return f"evaluation.subgroups: {one.column} is no column of the dictionary's tabular inputs"
        if (wrong := _misfit(one, feature)) is not None:
            return f"evaluation.subgroups: {one.column} {wrong}"
    return None


def bandings(declared: Sequence[Subgroup], dataset: DatasetSchema) -> tuple[Banding, ...]:
    """Where each declared column lies in the schema's encoding. KeyError for a column that is not there."""
    root, at, places = math.sqrt(dataset.width), 0, dict[str, tuple[int, Feature]]()
    for feature in dataset.features:
        places[feature.name] = at, feature
        at += feature.width
    found = []
    for one in declared:
        start, feature = places[one.column]
        edges = tuple((edge - feature.center) / feature.scale / root for edge in one.edges)
        found.append(Banding(at=start, width=feature.width, edges=edges))
    return tuple(found)


def group_names(one: Subgroup, dataset: DatasetSchema) -> tuple[str, ...]:
    """Each subgroup in words, in the order of its counts."""
    feature = next(feature for feature in dataset.features if feature.name == one.column)
    if feature.kind == "category":
        # A researcher wrote the levels, and they may be read in a terminal.
        shown = ("".join(c for c in str(level) if c.isprintable())[:40] for level in feature.levels)
        return tuple(f"{one.column} {level}" for level in shown)
    cuts = [f"{edge:g}" for edge in one.edges]
    between = [f"{one.column} {low} to below {high}" for low, high in pairwise(cuts)]
    return f"{one.column} below {cuts[0]}", *between, f"{one.column} {cuts[-1]} or more"


def histograms(declared: Sequence[Subgroup], dataset: DatasetSchema) -> int:
    """How many histograms are summed: that of all, and one for each subgroup."""
    return 1 + sum(banding.groups for banding in bandings(declared, dataset))


def sensitivity(declared: Sequence[Subgroup]) -> float:
    """L2 norm of what one patient adds to all histograms together."""
    return math.sqrt(1 + len(declared))


def _misfit(one: Subgroup, feature: Feature) -> str | None:
    if feature.kind == "category":
        if one.edges:
            return "is a category: leave out its edges"
        return f"has over {MOST_GROUPS} levels" if len(feature.levels) > MOST_GROUPS else None
    if not one.edges:
        return "is a number: give the edges at which it is cut"
    if any(later <= earlier for earlier, later in pairwise(one.edges)):
        return "has edges that do not rise"
    minimum, maximum = feature.bounds
    reach = CLIP_DEVIATIONS * feature.scale
    low, high = max(minimum, feature.center - reach), min(maximum, feature.center + reach)
    if one.edges[0] <= low or one.edges[-1] >= high:
        return f"has an edge outside {low:g} to {high:g}, where its values are told apart"
    return None
