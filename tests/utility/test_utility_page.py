"""docs/UTILITY.md says what its figures say: nothing between the markers was typed by hand."""

import copy
import json
import math
from pathlib import Path

import pytest
import tables

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def figures() -> dict:
    return json.loads((DOCS / "utility" / "figures.json").read_text())


def test_the_generated_section_is_what_the_figures_give(figures: dict) -> None:
    page = (DOCS / "UTILITY.md").read_text()
    section = page.partition(tables.BEGIN)[2].partition(tables.END)[0]
    assert section.strip() == tables.generated(figures).strip()
    assert not figures["quick"]
    assert all(problem["seeds"] >= 20 for problem in figures["problems"].values())


def test_every_picture_on_the_page_is_there() -> None:
    page = (DOCS / "UTILITY.md").read_text()
    names = [part.partition(")")[0] for part in page.split("](utility/")[1:]]
    assert names
    for name in names:
        assert (DOCS / "utility" / name).is_file(), name


def test_a_goal_that_does_not_hold_is_said(figures: dict) -> None:
    problem = copy.deepcopy(figures["problems"]["wisconsin"])
    pooled = problem["arms"]["pooled DP"]
    for epsilon, found in problem["arms"]["distributed t=0"].items():
        found["all"] = [value - 0.02 for value in pooled[epsilon]["all"]]
    assert "DOES NOT HOLD at ε 0.5, 1, 2, 3, 8," in tables.goal_table(problem, 0.005)
    for epsilon, found in problem["arms"]["distributed t=0"].items():
        found["all"] = list(pooled[epsilon]["all"])
    assert "holds at every ε" in tables.goal_table(problem, 0.005)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ((0.1, 0.01, 0.2, 20), "helps"),
        ((-0.1, -0.2, -0.01, 20), "hurts"),
        ((0.1, -0.01, 0.2, 20), "no difference shown"),
        ((math.nan, math.nan, math.nan, 0), "can't be told"),
    ],
)
def test_the_verdict_follows_the_interval(found: tuple, says: str) -> None:
    assert tables.helped(found) == says
