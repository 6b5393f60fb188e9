"""The data: scikit-learn's Wisconsin patients split over four clinics, or a folder of real hospitals."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
# Sites of very different size; the smallest still holds out more patients than the minimum cell.
CLINICS = {"clinic-a": 0.42, "clinic-b": 0.27, "clinic-c": 0.17, "clinic-d": 0.14}
# Relative odds that a malignant finding is seen there: a referral centre sees other patients than a screening unit.
MALIGNANT = {"clinic-a": 0.7, "clinic-b": 1.0, "clinic-c": 1.4, "clinic-d": 1.8}
HEART = {
    "budapest": "processed.hungarian.data",
    "cleveland": "processed.cleveland.data",
    "long-beach": "processed.va.data",
    "zurich-basel": "processed.switzerland.data",
}
_SEED = 569  # any constant: every demonstration has the same clinics


@dataclass(frozen=True)
class Source:
    """One site's file, and the dictionary and study that all of them share."""

    site: str
    table: Path


def wisconsin(folder: Path) -> list[Source]:
    """Write the four clinics' CSV files into `folder`: every patient in exactly one, always the same."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    generator = random.Random(_SEED)
    rows: dict[str, list[list[object]]] = {name: [] for name in CLINICS}
    for number, (values, benign) in enumerate(zip(data.data, data.target, strict=True), 1):
        weights = [share * (1.0 if benign else MALIGNANT[name]) for name, share in CLINICS.items()]
        (clinic,) = generator.choices(list(CLINICS), weights)
        rows[clinic].append([f"W{number:04d}", *map(float, values), "benign" if benign else "malignant"])
    sources = []
    for name, lines in rows.items():
        path = folder / f"{name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["patient", *data.feature_names, "diagnosis"])
            writer.writerows(lines)
        sources.append(Source(name, path))
    return sources


def heart_disease(folder: Path) -> list[Source]:
    """The four hospitals' files as they lie in `folder`. FileNotFoundError names the first that is missing."""
    for name in HEART.values():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: fetch the processed files of UCI heart disease (id 45)")
    return [Source(site, folder / name) for site, name in HEART.items()]
