"""The patients of a simulation: tables that the researcher owns, or people made up from the schema's ranges."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordinator.client.own_arrays import read_arrays
from coordinator.client.simulated_media import made_up_masks, made_up_media
from coordinator.client.simulation import SimulationRefused
from coordinator.client.spec_file import SpecFile, read_limited
from privacy.entropy import Float64
from privacy.local.outcome import sigmoid
from privacy.local.patients import Cohort, Group, part
from protocol.dataset import Feature, MaskLabel, NumberLabel, SurvivalLabel, Value
from protocol.dictionary import Dictionary, parse_dictionary
from protocol.proposal import Proposal, held_out_count
from protocol.table import read_table

MOST_SYNTHETIC = 1_000_000
_SIGNAL = 2.0
"""Standard deviation of a made-up patient's log-odds: an AUC of about 0.85 for whoever knows the rule."""
_RULE = 20_26
"""Seed of the rule that made-up outcomes follow, the same in every simulation."""


@dataclass(frozen=True)
class Source:
    """Where patients come from. counts: (patients, held out) by site, the same for every seed. sites: by seed.

    says: one sentence for whoever reads the result.
    """

    counts: Mapping[str, tuple[int, int]]
    sites: Callable[[int], dict[str, Cohort]]
    says: str


def from_tables(file: SpecFile, given: list[str]) -> Source:
    """Patients from FILE[:DICTIONARY] texts (of images and sequences .npz files, see `own_arrays`): one file for each
    invited site, or one file that is dealt over them.

    Files are matched with sites by their names where they agree, else in order. Which patients are held out changes
    with the seed. Raises SimulationRefused, DatasetRefused, Malformed, OSError.
    """
    names = file.spec.invited
    if len(given) not in (1, len(names)):
        raise SimulationRefused(
            f"{len(given)} files for {len(names)} sites ({', '.join(names)}).",
            "Give one file for each site, or one file to be dealt over all of them.",
        )
    tables = [_read(file, *_parted(text)) for text in given]
    if len(given) == 1:
        says = f"{tables[0].patients} patients of one table, dealt over {len(names)} sites at random"
        return _dealt(names, lambda _seed: tables[0], tables[0].patients, says)
    stems = [_parted(text)[0].stem for text in given]
    order = [stems.index(name) for name in names] if set(stems) == set(names) else list(range(len(names)))
    groups = {name: tables[index] for name, index in zip(names, order, strict=True)}
    return Source(
        counts={name: (group.patients, held_out_count(group.patients)) for name, group in groups.items()},
        sites=lambda seed: {
            name: _held_out(group, np.random.default_rng([seed, index]))
            for index, (name, group) in enumerate(groups.items())
        },
        says=f"{sum(group.patients for group in tables)} patients of {len(tables)} tables, one for each site",
    )


def synthetic(spec: Proposal, patients: int) -> Source:
    """`patients` people made up from the schema, new ones for each seed, dealt over the invited sites.

    Numbers are drawn around the dictionary's centre with its scale and kept in range, categories evenly; the outcome
    follows a made-up rule of them. Images and sequences: see `simulated_media`. So the curve tells what noise costs at
    this size, and nothing about the disease.
    """
    if not 1 <= patients <= MOST_SYNTHETIC:
        raise SimulationRefused(
            f"{patients} made-up patients can't be had.", f"Ask for 1 to {MOST_SYNTHETIC}, all sites together."
        )
    says = f"{patients} made-up patients, dealt over {len(spec.invited)} sites"
    return _dealt(spec.invited, lambda seed: _made_up(spec, patients, seed), patients, says)


def _parted(text: str) -> tuple[Path, Path | None]:
    table, colon, dictionary = text.rpartition(":")
    if not colon or Path(text).is_file():
        return Path(text), None
    return Path(table), Path(dictionary)


def _read(file: SpecFile, path: Path, named: Path | None) -> Group:
    if file.spec.dataset.media is not None:
        return read_arrays(path, file.spec.dataset)
    dictionary = _dictionary(file, named)
    if dictionary.schema.digest != file.spec.dataset.digest:
        raise SimulationRefused(
            f"The dictionary for {path} has another schema than the study.", "Use the study's own dictionary."
        )
    if not path.is_file():
        raise SimulationRefused(f"{path} is not a regular file.", "Name a CSV file.")
    with path.open("rb") as opened:
        table = read_table(path.name, opened, dictionary, lambda who: hashlib.sha256(who.encode()).digest())
    _, patient = np.unique(np.array(table.patients), return_inverse=True)
    x = np.array(table.x, dtype=np.float64).reshape(-1, table.width)
    everybody = Group(x, np.array(table.y, dtype=np.float64), patient.astype(np.int64), int(patient.max()) + 1)
    return everybody.select(np.ones(everybody.patients, dtype=np.bool_))


def _dictionary(file: SpecFile, named: Path | None) -> Dictionary:
    if named is None:
        value = file.document.value
        dataset = value.get("dataset") if isinstance(value, dict) else None
        text = dataset.get("dictionary") if isinstance(dataset, dict) else None
        if not isinstance(text, str):
            raise SimulationRefused(
                "The study holds its schema itself and names no dictionary, which says how a table is read.",
                "Name it after the file: --data FILE.csv:DICTIONARY.yaml.",
            )
        named = file.path.parent / text
    return parse_dictionary(read_limited(named))


def _dealt(names: tuple[str, ...], everybody: Callable[[int], Group], patients: int, says: str) -> Source:
    sizes = [patients // len(names) + (index < patients % len(names)) for index in range(len(names))]

    def sites(seed: int) -> dict[str, Cohort]:
        random = np.random.default_rng([seed, 1])
        group = everybody(seed)
        owner = random.permutation(np.repeat(np.arange(len(names)), sizes))
        return {name: _held_out(group.select(owner == index), random) for index, name in enumerate(names)}

    counts = {name: (size, held_out_count(size)) for name, size in zip(names, sizes, strict=True)}
    return Source(counts, sites, says)


def _held_out(group: Group, random: np.random.Generator) -> Cohort:
    members = np.zeros(group.patients, dtype=np.bool_)
    members[random.permutation(group.patients)[: held_out_count(group.patients)]] = True
    return part(group.x, group.y, group.patient, members)


def _made_up(spec: Proposal, patients: int, seed: int) -> Group:
    random = np.random.default_rng([seed, 2])
    number = np.arange(patients, dtype=np.int64)
    if spec.dataset.image is not None and isinstance(spec.dataset.label, MaskLabel):
        return Group(*made_up_masks(spec.dataset.image, patients, random), number, patients)
    if spec.dataset.media is not None:
        records, strength = made_up_media(spec.dataset.media, patients, random)
        return Group(records, _outcomes(spec, _SIGNAL * strength, random), number, patients)
    columns = {feature.name: _column(feature, patients, random) for feature in spec.dataset.features}
    rows = ({name: values[row] for name, values in columns.items()} for row in range(patients))
    x = np.array([spec.dataset.encode(row) for row in rows], dtype=np.float64)
    odds = x @ np.random.default_rng(_RULE).normal(size=x.shape[1])
    odds = _SIGNAL * (odds - odds.mean()) / max(float(odds.std()), 1e-12)
    return Group(x, _outcomes(spec, odds, random), number, patients)


def _column(feature: Feature, count: int, random: np.random.Generator) -> list[Value]:
    if feature.kind == "category":
        return [feature.levels[index] for index in random.integers(0, len(feature.levels), count)]
    low, high = feature.bounds
    drawn = np.clip(random.normal(feature.center, feature.scale, count), low, high)
    if feature.kind == "integer":
        return [int(value) for value in np.clip(np.rint(drawn), np.ceil(low), np.floor(high))]
    return [float(value) for value in drawn]


def _outcomes(spec: Proposal, odds: Float64, random: np.random.Generator) -> Float64:
    """(N,) log-odds -> (N,) labels."""
    if isinstance(spec.dataset.label, NumberLabel):
        # Two thirds of the variance follow the rule.
        return np.asarray((odds / _SIGNAL) * math.sqrt(2 / 3) + random.normal(0.0, math.sqrt(1 / 3), odds.size))
    if not isinstance(spec.dataset.label, SurvivalLabel):
        return (random.random(odds.size) < sigmoid(odds)).astype(np.float64)
    # Half of the people have the event before the horizon, about one in five is lost from sight before.
    intervals = len(spec.dataset.label.edges)
    hazard, loss = 1 - 0.5 ** (1 / intervals), 1 - 0.8 ** (1 / intervals)
    chance = sigmoid(odds + math.log(hazard / (1 - hazard)))
    y, here = np.full(odds.size, 2.0 * intervals), np.ones(odds.size, dtype=np.bool_)
    for interval in range(intervals):
        event, lost = random.random(odds.size) < chance, random.random(odds.size) < loss
        y[here & event] = 2 * interval + 1
        y[here & ~event & lost] = 2 * interval
        here &= ~(event | lost)
    return y
