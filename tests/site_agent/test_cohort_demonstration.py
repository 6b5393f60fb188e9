"""What packaging/demo says of its two data sets, held against the data."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from protocol.dictionary import Dictionary, parse_dictionary
from protocol.strict_yaml import load_yaml
from protocol.study import StudySpec
from protocol.table import Table
from site_agent.cohort.assignment import hash_patient, hold_out
from site_agent.cohort.tabular import read_table

DEMO = Path(__file__).parents[2] / "packaging" / "demo"
HEART = Path(__file__).parents[2].parent / "shared" / "data" / "uci_heart_disease"
SECRET = b"a secret of exactly 32 bytes ok."


@pytest.fixture(scope="module")
def datasets() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_datasets", DEMO / "datasets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_datasets"] = module
    spec.loader.exec_module(module)
    return module


def dictionary(kind: str) -> Dictionary:
    return parse_dictionary((DEMO / kind / "dictionary.yaml").read_bytes())


def read(path: Path, described: Dictionary) -> Table:
    return read_table(path, described, lambda identity: hash_patient(SECRET, identity))


def test_every_wisconsin_patient_is_in_exactly_one_clinic(datasets, tmp_path):
    from sklearn.datasets import load_breast_cancer

    rows: list[str] = []
    for source in datasets.wisconsin(tmp_path):
        with source.table.open() as file:
            rows += [line["patient"] for line in csv.DictReader(file)]
    assert len(rows) == len(set(rows)) == len(load_breast_cancer().target) == 569


def test_the_split_is_the_same_every_time(datasets, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = datasets.wisconsin(tmp_path / "one"), datasets.wisconsin(tmp_path / "two")
    assert [source.table.read_bytes() for source in one] == [source.table.read_bytes() for source in two]


def test_the_clinics_differ_and_each_can_be_evaluated(datasets, tmp_path):
    described = dictionary("wisconsin")
    sizes, malignant = [], []
    for source in datasets.wisconsin(tmp_path):
        table = read(source.table, described)
        assert table.dropped.total() == 0
        assert sum(hold_out(SECRET, table.patients, {}).values()) > 10
        sizes.append(len(table.y))
        malignant.append(sum(table.y) / len(table.y))
    assert min(sizes) > 60
    assert max(sizes) > 1.9 * min(sizes)
    assert max(malignant) - min(malignant) > 0.1


def test_malignant_is_the_positive_outcome(datasets, tmp_path):
    from sklearn.datasets import load_breast_cancer

    described = dictionary("wisconsin")
    positive = sum(sum(read(source.table, described).y) for source in datasets.wisconsin(tmp_path))
    assert positive == int((load_breast_cancer().target == 0).sum()) == 212


@pytest.mark.skipif(not HEART.is_dir(), reason="the four hospitals' files are not at ../shared/data/uci_heart_disease")
def test_the_four_hospitals_files_are_read_as_they_are(datasets):
    described = dictionary("uci_heart_disease")
    found = {}
    for source in datasets.heart_disease(HEART):
        table = read(source.table, described)
        assert table.dropped.total() == 0
        found[source.site] = (len(table.y), round(100 * sum(table.y) / len(table.y), 1))
        assert len(set(table.patients)) == len(table.y)
    # Rows and share of disease as the data set's own description counts them.
    assert found == {
        "budapest": (294, 36.1),
        "cleveland": (303, 45.9),
        "long-beach": (200, 74.5),
        "zurich-basel": (123, 93.5),
    }


@pytest.mark.skipif(not HEART.is_dir(), reason="the four hospitals' files are not at ../shared/data/uci_heart_disease")
def test_a_cholesterol_of_0_is_missing(datasets):
    described = dictionary("uci_heart_disease")
    zurich = next(source for source in datasets.heart_disease(HEART) if source.site == "zurich-basel")
    assert read(zurich.table, described).imputed["chol"] == 123


def test_a_missing_folder_is_named(datasets, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"processed\.hungarian\.data"):
        datasets.heart_disease(tmp_path)


@pytest.mark.parametrize("kind", ["wisconsin", "uci_heart_disease"])
def test_each_study_justifies_every_column_and_invites_every_site(datasets, kind, tmp_path):
    study = load_yaml((DEMO / kind / "study.yaml").read_bytes()).value
    assert isinstance(study, dict)
    assert study["dataset"] == {"dictionary": "dictionary.yaml"}
    schema = dictionary(kind).schema
    StudySpec.model_validate(study | {"dataset": schema.model_dump()})
    columns = {feature.name for feature in schema.features} | {schema.label.column}
    assert set(study["justified_columns"]) == columns
    sites = {"wisconsin": datasets.CLINICS, "uci_heart_disease": datasets.HEART}[kind]
    assert set(study["legal_basis"]) == set(study["recipients"]) == set(sites)
