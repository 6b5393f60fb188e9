"""Looks for the 18 classes of identifiers in a snapshot as it is stored: in the names of its columns, in the levels of
its categories, and in the numbers themselves.

It runs on the very arrays that would be trained on, at each review, so that no result can be out of date. It finds what
has a name or a form; that an unremarkable number or picture identifies somebody it can't tell, which is why a safe
harbor also asks what the hospital itself knows (45 CFR 164.514(b)(2)(ii)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from protocol.dataset import DatasetSchema, Feature, NumberLabel
from site_agent.cohort.identifier_patterns import (
    AGE,
    BIRTH_YEAR,
    CLASSES,
    POSTAL,
    Class,
    is_street,
    named_class,
    text_class,
    words_of,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from site_agent.cohort.snapshot import SnapshotArrays
    from site_agent.cohort.tables import Snapshot
    from site_agent.settings import SiteHome

MOST = 0.9
"""The share of a column's values from which on their form counts as the column's."""
POOLED_AGE = 90
RESTRICTED_ZIP3 = frozenset(
    (36, 59, 63, 102, 203, 556, 692, 790, 821, 823, 830, 831, 878, 879, 884, 890, 893)
)  # fmt: skip
"""Three-digit areas of 20,000 people or fewer, which must read 000: HHS guidance on de-identification of 26 November
2012, by the census of 2000."""
_ALLOWED_IN_LIMITED = frozenset(("C", "R"))


@dataclass(frozen=True)
class Found:
    """One column of one class. direct: also among the 16 of 164.514(e)(2), so no limited data set may hold it."""

    column: str
    letter: Class
    direct: bool
    by: str


@dataclass(frozen=True)
class IdentifierScan:
    """What a scan found. unscanned: classes that nothing here could tell about."""

    found: tuple[Found, ...]
    ages_pooled: bool
    zip3_rule: bool
    unscanned: frozenset[Class] = frozenset()

    def facts(self) -> dict[str, Any]:
        """The parts of `dataset.*` that rest on the scan. A class that was not scanned is left out: a rule that asks
        for all 18 denies."""
        columns = {letter: {item.column for item in self.found if item.letter == letter} for letter in CLASSES}
        facts: dict[str, Any] = {
            "identifier_scan": {c: len(named) for c, named in columns.items() if c not in self.unscanned},
            "ages_pooled": self.ages_pooled,
            "zip3_rule": self.zip3_rule,
        }
        if "Q" not in self.unscanned:
            facts["lds_identifiers"] = len({item.column for item in self.found if item.direct})
        return facts


def scan(schema: DatasetSchema, arrays: SnapshotArrays, *, on: date, faces: bool | None = None) -> IdentifierScan:
    """Scan a snapshot. on: the day by which ages are told. faces: whether its images show faces, as the hospital says;
    of images nobody else can tell."""
    found = [
        _found(name, letter, "name")
        for name in (*schema.columns, *schema.label.columns)
        if (letter := named_class(name)) is not None and not _postal(name)
    ]
    ages, postal = True, True
    for name, feature, values in _columns(schema, arrays):
        if values is None:
            assert feature is not None
            letters = {letter for level in feature.levels if (letter := text_class(str(level)))}
            found += [_found(name, letter, "levels") for letter in sorted(letters)]
            values = _numeric_levels(feature)
        if _postal(name):
            keeps = _keeps_zip3(feature, values)
            postal &= keeps
            if not keeps:
                found.append(Found(name, "B", False, "values"))
            continue
        if values is None or not len(values):
            continue
        if _beyond_pooling(name, feature, values, on):
            ages = False
            found.append(_found(name, "C", "values"))
        if (letter := _form(feature, values, arrays)) is not None:
            found.append(_found(name, letter, "values"))
    unscanned: frozenset[Class] = frozenset()
    if schema.image is not None:
        if faces is None:
            unscanned = frozenset(("Q",))
        elif faces:
            found.append(_found(schema.image.name, "Q", "what the hospital says"))
    return IdentifierScan(tuple(dict.fromkeys(found)), ages, postal, unscanned)


def scan_snapshot(home: SiteHome, row: Snapshot, *, on: date, faces: bool | None) -> IdentifierScan:
    """Scan a stored snapshot under its own schema. Raises SnapshotUnusable, KeysUnusable."""
    from site_agent.cohort.snapshot import load

    schema = DatasetSchema.model_validate_json(row.schema_text)
    return scan(schema, load(home, row.digest), on=on, faces=faces)


def _found(name: str, letter: Class, by: str) -> Found:
    direct = is_street(name) if letter == "B" else letter not in _ALLOWED_IN_LIMITED
    return Found(name, letter, direct, by)


def _columns(
    schema: DatasetSchema, arrays: SnapshotArrays
) -> Iterator[tuple[str, Feature | None, NDArray[np.float64] | None]]:
    """Each column of a table with its values, decoded; None for the values of a category: its levels are in the schema
    and leave the site with it, whether or not a patient has them."""
    at, root = 0, math.sqrt(schema.width)
    for feature in schema.features:
        if feature.kind == "category":
            yield feature.name, feature, None
        else:
            values = arrays.x[:, at] * root * feature.scale + feature.center
            yield feature.name, feature, values.round(6)  # what the encoding adds in rounding
        at += feature.width
    if isinstance(schema.label, NumberLabel):
        label = schema.label
        yield label.column, None, (arrays.y * label.scale + label.center).round(6)


def _postal(name: str) -> bool:
    return any(word in POSTAL for word in words_of(name))


def _numeric_levels(feature: Feature) -> NDArray[np.float64] | None:
    """The levels as numbers, where all of them are."""
    import numpy as np

    try:
        return np.array([float(level) for level in feature.levels])
    except ValueError:
        return None


def _keeps_zip3(feature: Feature | None, values: NDArray[np.float64] | None) -> bool:
    """At most three digits of a postal code, and 000 for the areas of few people."""
    if values is None:
        return False
    whole = feature is not None and feature.kind != "number"
    return whole and all(0 <= value <= 999 and int(value) not in RESTRICTED_ZIP3 for value in values)


def _beyond_pooling(name: str, feature: Feature | None, values: NDArray[np.float64], on: date) -> bool:
    """Whether ages of 90 and over, or years of birth that tell them, are more than one category."""
    import numpy as np

    words = words_of(name)
    if any(words == year for year in BIRTH_YEAR):
        old = values[values <= on.year - POOLED_AGE]
    elif any(word in AGE for word in words):
        unit = "" if feature is None else feature.unit.lower()
        in_years = values / 12 if unit.startswith("month") else values / 365.25 if unit.startswith("day") else values
        old = in_years[in_years >= POOLED_AGE]
    else:
        return False
    return len(np.unique(old)) > 1


def _form(feature: Feature | None, values: NDArray[np.float64], arrays: SnapshotArrays) -> Class | None:
    """The class that whole numbers have the form of: days as YYYYMMDD or as seconds, nine or ten digits, or a number of
    six digits and more that hardly two patients share."""
    import numpy as np

    if feature is None or (feature.kind == "number" and not bool((values == values.round()).all())):
        return None

    def most(mask: NDArray[np.bool_]) -> bool:
        return bool(mask.mean() >= MOST)

    if most(values < 100_000):
        return None
    years, months, days = values // 10_000, values // 100 % 100, values % 100
    if most((years >= 1850) & (years < 2150) & (months >= 1) & (months <= 12) & (days >= 1) & (days <= 31)):
        return "C"
    if feature.kind == "category":
        return None
    distinct = len(np.unique(values)) / max(1, len(np.unique(arrays.patient)))
    if distinct < MOST:
        return None
    if most((values >= 1e8) & (values < 1e9)):
        return "G"
    return "D" if most((values >= 2e9) & (values < 1e10)) else "R"
