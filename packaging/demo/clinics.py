"""Who takes part in the demonstration: the clinics, their files, the dictionary and the study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import yaml

HERE = Path(__file__).resolve().parent


class NoData(Exception):
    """The folder with the hospitals' files is not there or not whole."""


@dataclass(frozen=True)
class Clinic:
    """One clinic and its patients' file."""

    name: str
    data: Path


@dataclass(frozen=True)
class Scenario:
    """A demonstration: whose data, read by which dictionary, for which study."""

    clinics: tuple[Clinic, ...]
    dictionary: Path
    study: Path
    intended_use: str


def scenario(folder: Path | None, work: Path) -> Scenario:
    """Wisconsin over four clinics, or the four real hospitals in `folder`. Raises NoData."""
    if folder is None:
        tables = work / "tables"
        tables.mkdir()
        return _scenario("wisconsin", datasets.wisconsin(tables))
    kind = folder.resolve().name
    if not (HERE / kind / "study.yaml").is_file():
        known = ", ".join(sorted(path.parent.name for path in HERE.glob("*/study.yaml")))
        raise NoData(f"there is no dictionary and study for {folder}; remedy: name a folder called one of: {known}")
    try:
        return _scenario(kind, datasets.heart_disease(folder))
    except FileNotFoundError as error:
        raise NoData(str(error)) from None


def _scenario(kind: str, sources: list[datasets.Source]) -> Scenario:
    study = HERE / kind / "study.yaml"
    purpose = yaml.safe_load(study.read_text())["purpose"]["code"]
    clinics = tuple(Clinic(source.site, source.table) for source in sources)
    return Scenario(clinics, HERE / kind / "dictionary.yaml", study, purpose)


def jurisdictions(study: Path) -> dict[str, str]:
    """Each site's jurisdiction, as the study's own legal bases name it."""
    return {name: basis["jurisdiction"] for name, basis in yaml.safe_load(study.read_text())["legal_basis"].items()}


def made_up_patient(columns: list[dict[str, Any]]) -> dict[str, Any]:
    """A record at the dictionary's own centres and first levels: it belongs to nobody."""
    record: dict[str, Any] = {}
    for column in columns:
        if column["kind"] == "category":
            record[column["name"]] = column["levels"][0]
        else:
            middle = min(column["maximum"], max(column["minimum"], column["center"]))
            record[column["name"]] = round(middle) if column["kind"] == "integer" else middle
    return record
