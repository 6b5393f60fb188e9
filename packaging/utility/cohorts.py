"""The patients: three problems, each dealt anew into training and test patients for every seed."""

from __future__ import annotations

import csv
import hashlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from privacy.local.network import Network
from privacy.local.patients import Group
from protocol.dictionary import parse_dictionary
from site_agent.cohort.tabular import read_table

DEMO = Path(__file__).resolve().parent.parent / "demo"
sys.path.append(str(DEMO))

import datasets  # noqa: E402 - the demonstration's own folder

Matrix = NDArray[np.float64]
REGIONS = ("northeast", "south", "west", "midwest", "europe", "canada")
YEARS = (2.0, 5.0, 10.0)
"""Ends of the intervals of discrete-time survival."""
DAYS = 365.25


@dataclass(frozen=True)
class Test:
    """Patients on whom a model is judged. y: as `Group`; time and event: for survival, in years, else empty."""

    x: Matrix
    y: Matrix
    time: Matrix
    event: Matrix


@dataclass(frozen=True)
class Split:
    """One seed's patients, by site."""

    training: dict[str, Group]
    test: dict[str, Test]


@dataclass(frozen=True)
class Problem:
    """name: key. measure: AUC or c-index. split: of a seed. patients: by site, all of them."""

    name: str
    title: str
    measure: str
    network: Network
    patients: dict[str, int]
    split: Callable[[int], Split]


def _encoded(kind: str, path: Path) -> tuple[Matrix, Matrix]:
    dictionary = parse_dictionary((DEMO / kind / "dictionary.yaml").read_bytes())
    table = read_table(path, dictionary, lambda identity: hashlib.sha256(identity.encode()).digest())
    if len(set(table.patients)) != len(table.patients):
        raise ValueError(f"{path.name}: this comparison takes one row for each patient")
    return np.array(table.x).reshape(-1, table.width), np.array(table.y, dtype=np.float64)


def _group(x: Matrix, y: Matrix) -> Group:
    return Group(x, y, np.arange(len(y)), len(y))


def _quarter(count: int, random: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    order = random.permutation(count)
    return order[: -(-count // 4)], order[-(-count // 4) :]


def _classified(x: Matrix, y: Matrix) -> Test:
    return Test(x, y, np.empty(0), np.empty(0))


def wisconsin() -> Problem:
    """569 patients; a quarter is for testing, the others are dealt over four clinics of other sizes and case mixes."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [_encoded("wisconsin", source.table) for source in datasets.wisconsin(Path(folder))]
    x, y = (np.concatenate(both) for both in zip(*parts, strict=True))
    malignant = 1.0 if np.mean(y) < 0.5 else 0.0  # the rarer outcome of the two
    shares = np.array(list(datasets.CLINICS.values()))
    odds = np.array([datasets.MALIGNANT[name] for name in datasets.CLINICS])

    def split(seed: int) -> Split:
        random = np.random.default_rng([seed, 1])
        test, rest = _quarter(len(y), random)
        chances = np.where((y[rest] == malignant)[:, None], shares * odds, shares)
        edges = np.cumsum(chances / chances.sum(axis=1, keepdims=True), axis=1)
        clinic = np.minimum((random.random(len(rest))[:, None] > edges).sum(axis=1), len(shares) - 1)
        names = list(datasets.CLINICS)
        return Split(
            {name: _group(x[rest[clinic == k]], y[rest[clinic == k]]) for k, name in enumerate(names)},
            {"everybody": _classified(x[test], y[test])},
        )

    counts = {"all clinics": len(y)}
    return Problem("wisconsin", "Wisconsin breast cancer, four clinics", "AUC", _logistic(x), counts, split)


def _logistic(x: Matrix) -> Network:
    return Network((x.shape[1], 1), "logistic")


def heart(folder: Path) -> Problem:
    """920 patients of four hospitals; a quarter of each hospital's is for testing."""
    parts = {source.site: _encoded("uci_heart_disease", source.table) for source in datasets.heart_disease(folder)}

    def split(seed: int) -> Split:
        random = np.random.default_rng([seed, 2])
        training, tests = {}, {}
        for name, (x, y) in parts.items():
            test, rest = _quarter(len(y), random)
            training[name], tests[name] = _group(x[rest], y[rest]), _classified(x[test], y[test])
        return Split(training, tests)

    network = _logistic(next(iter(parts.values()))[0])
    counts = {name: len(y) for name, (_, y) in parts.items()}
    return Problem("heart", "UCI heart disease, four hospitals", "AUC", network, counts, split)


def flamby_heart(folder: Path) -> Split:
    """FLamby's own patients and its one split: rows complete in the ten findings, 66 % for training, its random state.

    Encoded by this project's dictionary, with no statistic of the patients.
    """
    from sklearn.model_selection import train_test_split

    training, tests = {}, {}
    for source in datasets.heart_disease(folder):
        x, y = _encoded("uci_heart_disease", source.table)
        with source.table.open(encoding="utf-8") as file:
            complete = np.array(["?" not in [cell.strip() for cell in row[:10]] for row in csv.reader(file) if row])
        if len(complete) != len(y):
            raise ValueError(f"{source.table.name}: rows were left out, so FLamby's split can't be followed")
        x, y = x[complete], y[complete]
        both = min(np.sum(y == 0), np.sum(y == 1)) > 2
        first, second = train_test_split(
            np.arange(len(y)), test_size=0.34, train_size=0.66, random_state=43, stratify=y if both else None
        )
        first, second = np.sort(first), np.sort(second)
        training[source.site], tests[source.site] = _group(x[first], y[first]), _classified(x[second], y[second])
    return Split(training, tests)


def brca(folder: Path) -> Problem:
    """1088 patients of Fed-TCGA-BRCA's six regions, overall survival; a quarter of each region is for testing.

    Age is centred at 60 and scaled by 13 years, indicators are -1 or 1; everything over the root of the number of
    inputs, as a dictionary would have it.
    """
    parts = {name: part[:3] for name, part in _brca_parts(folder).items()}

    def split(seed: int) -> Split:
        random = np.random.default_rng([seed, 3])
        training, tests = {}, {}
        for name, (x, time, event) in parts.items():
            test, rest = _quarter(len(time), random)
            labels = hazard_labels(time, event)
            training[name] = _group(x[rest], labels[rest])
            tests[name] = Test(x[test], labels[test], time[test], event[test])
        return Split(training, tests)

    counts = {name: len(time) for name, (_, time, _) in parts.items()}
    network = Network((next(iter(parts.values()))[0].shape[1], len(YEARS)), "hazard")
    return Problem("brca", "Fed-TCGA-BRCA, six regions, survival", "c-index", network, counts, split)


def flamby_brca(folder: Path) -> Split:
    """FLamby's own split of the same patients."""
    training, tests = {}, {}
    for name, (x, time, event, is_test) in _brca_parts(folder).items():
        labels, test = hazard_labels(time, event), is_test == 1
        training[name] = _group(x[~test], labels[~test])
        tests[name] = Test(x[test], labels[test], time[test], event[test])
    return Split(training, tests)


def tested(split: Split) -> dict[str, int]:
    """How many patients a split tests on, and how many deaths are among them."""
    tests = split.test.values()
    return {"patients": sum(len(test.y) for test in tests), "deaths": sum(int(test.event.sum()) for test in tests)}


def _brca_parts(folder: Path) -> dict[str, tuple[Matrix, Matrix, Matrix, Matrix]]:
    """By region: inputs, years, whether the patient died, whether FLamby tests on them."""
    folds = {}
    with (folder / "train_test_split.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            fold, _, region = row["fold2"].partition("_")
            folds[row["pid"]] = (int(region), float(fold == "test"))
    rows: list[list[tuple[list[float], float, float, float]]] = [[] for _ in REGIONS]
    with (folder / "brca.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["pid"] in folds:
                region, tested = folds[row["pid"]]
                findings = [float(row[name]) * 2 - 1 for name in row if name not in ("pid", "age_at_index", "E", "T")]
                age = min(3.0, max(-3.0, (float(row["age_at_index"]) - 60) / 13))
                rows[region].append(([age, *findings], float(row["T"]) / DAYS, float(row["E"]), tested))
    width = len(rows[0][0][0])
    return {
        name: (np.array([r[0] for r in part]) / np.sqrt(width), *np.array([r[1:] for r in part]).T)
        for name, part in zip(REGIONS, rows, strict=True)
    }


def hazard_labels(time: Matrix, event: Matrix) -> Matrix:
    """2 k + e of `privacy.local.network.Loss`: k intervals lived through, e whether the event came in the next one."""
    lived = np.searchsorted(np.array(YEARS), time, side="right").astype(np.float64)
    return 2 * lived + np.where((event == 1) & (lived < len(YEARS)), 1.0, 0.0)
