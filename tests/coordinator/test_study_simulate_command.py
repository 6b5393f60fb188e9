"""`cloister study simulate`: patients from tables or made up, the curve, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from coordinator.client import simulated_audit
from coordinator.client.cli import app
from coordinator.client.simulated_patients import from_tables, synthetic
from coordinator.client.simulation import SimulationRefused
from coordinator.client.spec_file import SpecFile, load_spec
from coordinator.client.utility_curve import AUDITED, OWN_DATA, make_curve
from protocol.delimited import DatasetRefused
from protocol.dictionary import parse_dictionary
from protocol.errors import CloisterError
from tests.simulator.federation import NAMES, study_spec

DICTIONARY = """\
dictionary: 1
name: hearts
file: {patient_id: id}
columns:
- {name: id, role: patient_id}
- {name: age, role: feature, type: number, unit: years, minimum: 0, maximum: 120, center: 54, scale: 9}
- {name: sex, role: feature, type: category, levels: [0, 1]}
- {name: num, role: label, type: integer, minimum: 0, maximum: 4}
label: {name: disease, operator: ">", value: 0}
"""
TRAINING = {"rounds": 8, "sampling_rate": 0.5, "clip": 0.25, "learning_rate": 2.0}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    made: dict[str, Any] = json.loads(study_spec(training=TRAINING).model_dump_json(exclude_none=True))
    (tmp_path / "hearts.yaml").write_text(DICTIONARY)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**made, "dataset": {"dictionary": "hearts.yaml"}}))
    return path


@pytest.fixture
def file(study: Path) -> SpecFile:
    return load_spec(study)


def patients(path: Path, count: int, seed: int = 1) -> Path:
    random = np.random.default_rng(seed)
    rows = ["id,age,sex,num"]
    for number in range(count):
        sick = random.random() < 0.5
        rows.append(f"p{number},{random.normal(64 if sick else 46, 5):.1f},{random.integers(0, 2)},{int(sick)}")
    path.write_text("\n".join(rows) + "\n")
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["study", "simulate", *map(str, arguments)])


def test_the_command_writes_picture_and_table(study: Path, tmp_path: Path) -> None:
    tables = [value for name in NAMES for value in ("--data", patients(tmp_path / f"{name}.csv", 60))]
    out = tmp_path / "out"
    result = run(study, *tables, "--seeds", 2, "--epsilons", "0.5,8", "--out", out)
    assert result.exit_code == 0, result.output
    assert OWN_DATA in result.stdout
    assert "240 patients of 4 tables" in result.stdout
    assert (out / "utility.png").read_bytes().startswith(b"\x89PNG")
    with (out / "utility.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert [(row["epsilon"], row["seed"]) for row in rows] == [
        (epsilon, seed) for epsilon in ("0.5", "8.0", "inf") for seed in ("0", "1")
    ]
    assert all(row["attempts"] == "8" and not row["failure"] for row in rows)
    assert sorted(path.name for path in out.iterdir()) == ["utility.csv", "utility.png"]
    again = run(study, *tables, "--seeds", 2, "--epsilons", "0.5,8", "--json")
    document = json.loads(again.stdout)
    found = [run["measured"] for point in document["points"] for run in point["runs"]]
    assert found == [float(row["measured"]) for row in rows]
    assert document["note"] == OWN_DATA
    assert document["points"][-1]["mean"] > 0.9


def test_noise_costs_utility_and_epsilon_buys_it_back(file: SpecFile) -> None:
    spec = file.spec.model_copy(update={"training": file.spec.training.model_copy(update={"rounds": 20})})
    curve = make_curve(spec, synthetic(spec, 300), epsilons=(0.1, 30), seeds=4)
    little, much, plain = (point.mean for point in curve.points)
    assert little is not None
    assert much is not None
    assert plain is not None
    assert little < much - 0.05
    assert abs(much - plain) < 0.05
    assert plain > 0.75
    assert [point.plan.epsilon <= (point.epsilon or 99) for point in curve.points] == [True] * 3


def test_one_table_is_dealt_over_all_sites_and_nobody_stands_twice(file: SpecFile, tmp_path: Path) -> None:
    source = from_tables(file, [f"{patients(tmp_path / 'all.csv', 203)}:{tmp_path / 'hearts.yaml'}"])
    first, second = source.sites(0), source.sites(1)
    sizes = {name: (c.training.patients + c.held_out.patients, c.held_out.patients) for name, c in first.items()}
    assert sizes == source.counts == dict(zip(NAMES, [(51, 13), (51, 13), (51, 13), (50, 13)], strict=True))
    ages = np.concatenate([group.x[:, 0] for c in first.values() for group in (c.training, c.held_out)])
    assert ages.size == 203
    assert not np.array_equal(first["aachen"].training.x, second["aachen"].training.x)


def test_tables_named_like_the_sites_belong_to_them(file: SpecFile, tmp_path: Path) -> None:
    paths = [patients(tmp_path / f"{name}.csv", 50 + index) for index, name in enumerate(NAMES)]
    source = from_tables(file, [str(path) for path in reversed(paths)])
    assert [count for count, _ in source.counts.values()] == [50, 51, 52, 53]


def test_made_up_patients_are_new_for_each_seed_and_within_the_schema(file: SpecFile) -> None:
    source = synthetic(file.spec, 400)
    first, again, other = source.sites(0), source.sites(0), source.sites(1)
    assert np.array_equal(first["berlin"].training.x, again["berlin"].training.x)
    assert not np.array_equal(first["berlin"].training.x, other["berlin"].training.x)
    for cohort in first.values():
        assert (np.linalg.norm(cohort.training.x, axis=1) <= 3).all()
        assert 0.2 < cohort.training.y.mean() < 0.8


@pytest.mark.parametrize("graph", [False, True], ids=["linear", "graph"])
def test_a_number_is_simulated_by_its_error(tmp_path: Path, graph: bool) -> None:
    label = "num, role: label, type: number, minimum: 0, maximum: 400, unit: mmHg"
    text = DICTIONARY.replace("num, role: label, type: integer, minimum: 0, maximum: 4", label).replace(
        'operator: ">", value: 0', "kind: number, center: 120, scale: 20"
    )
    (tmp_path / "hearts.yaml").write_text(text)
    schema = parse_dictionary(text.encode()).schema
    linear = {"architecture": "linear_regression"}
    given = [("input", "x"), ("weight", "p0"), ("bias", "p1")]
    arguments = [{"name": name, "kind": "tensor", "value": value} for name, value in given]
    own = {
        "architecture": "exported_graph", "loss": "squared", "input": [schema.width],
        "parameters": [[1, schema.width], [1]], "output": "n0",
        "nodes": [{"operator": "linear.default", "arguments": arguments}],
    }  # fmt: skip
    (tmp_path / "graph.json").write_text(json.dumps(own))
    training = {"rounds": 30, "sampling_rate": 0.5, "clip": 0.5, "learning_rate": 2.0}
    spec = study_spec(dataset=schema.model_dump(mode="json"), model=linear, training=training)
    made = json.loads(spec.model_dump_json(exclude_none=True))
    path = tmp_path / "study.yaml"
    model = {"graph": "graph.json"} if graph else linear
    path.write_text(yaml.safe_dump({**made, "model": model, "dataset": {"dictionary": "hearts.yaml"}}))
    result = run(path, "--synthetic", "400", "--epsilons", "8", "--seeds", 2, "--json")
    assert result.exit_code == 0, result.output
    private, plain = json.loads(result.stdout)["points"]
    assert {private["measure"], plain["measure"]} == {"RMSE"}
    # Made-up values have a spread of 20 mmHg, of which a third of the variance follows no rule.
    assert 10 < plain["mean"] < 15
    assert private["mean"] < 20


@pytest.mark.parametrize("hidden", [[], [4]])
def test_a_survival_study_is_simulated_from_its_own_table(tmp_path: Path, hidden: list[int]) -> None:
    text = DICTIONARY.replace("num, role: label, type: integer, minimum: 0, maximum: 4", "dead, role: label, "
        "type: category, levels: [0, 1]}\n- {name: months, role: time, type: number, minimum: 0, maximum: 240").replace(
        'operator: ">", value: 0', 'operator: "==", value: 1, edges: [12, 24, 60]')  # fmt: skip
    (tmp_path / "hearts.yaml").write_text(text)
    model = {"architecture": "discrete_time_survival", "intervals": 3, "hidden": hidden}
    schema = parse_dictionary(text.encode()).schema.model_dump(mode="json")
    training = {"rounds": 25, "sampling_rate": 0.5, "clip": 0.5, "learning_rate": 2.0}
    spec = study_spec(dataset=schema, model=model, training=training)
    made = json.loads(spec.model_dump_json(exclude_none=True))
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**made, "dataset": {"dictionary": "hearts.yaml"}}))
    random = np.random.default_rng(1)
    rows = ["id,age,sex,dead,months"]
    for number in range(400):
        age = random.normal(55, 10)
        months, seen = random.exponential(40 * np.exp(-(age - 55) / 6)), random.uniform(10, 120)
        rows.append(f"p{number},{age:.1f},{number % 2},{int(months < seen)},{min(months, seen, 240):.2f}")
    (tmp_path / "all.csv").write_text("\n".join(rows) + "\n")
    result = run(path, "--data", tmp_path / "all.csv", "--epsilons", "20", "--seeds", 2, "--json")
    assert result.exit_code == 0, result.output
    private, plain = json.loads(result.stdout)["points"]
    assert plain["mean"] > 0.85  # age decides; who dies early is older
    assert private["mean"] > 0.75
    file = load_spec(path)
    made_up = synthetic(file.spec, 400).sites(0)["berlin"].training.y
    assert set(made_up) <= set(range(7))
    assert {1.0, 6.0} <= set(made_up)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "No patients"),
        (("--synthetic", 400, "--data", "x.csv"), "two kinds"),
        (("--synthetic", 0), "can't be had"),
        (("--synthetic", 30), "more than 10"),
        (("--synthetic", 100), "hold patients out"),
        (("--synthetic", 100_000), "delta"),
        (("--synthetic", 400, "--epsilons", "1,x"), "no list of numbers"),
        (("--synthetic", 400, "--epsilons", "0"), "no list of numbers"),
        (("--synthetic", 400, "--epsilons", "1", "--seeds", 0), "seeds"),
        (("--synthetic", 400, "--missing", 1), "missing"),
        (("--data", "a.csv", "--data", "b.csv"), "2 files for 4 sites"),
        (("--data", "gone.csv"), "not a regular file"),
    ],
)
def test_what_can_t_be_simulated_is_refused(study: Path, arguments: tuple[object, ...], message: str) -> None:
    result = run(study, *arguments)
    assert isinstance(result.exception, CloisterError)
    assert message in result.exception.message
    assert result.exception.remedy


def test_a_bad_cell_is_told_by_row_and_never_repeated(file: SpecFile, tmp_path: Path) -> None:
    path = patients(tmp_path / "all.csv", 60)
    path.write_text(path.read_text() + "p99,999,1,0\n")
    with pytest.raises(DatasetRefused, match="row 61, column age") as refused:
        from_tables(file, [str(path)])
    assert "999" not in str(refused.value)


def test_another_dictionary_than_the_study_s_is_refused(file: SpecFile, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(DICTIONARY.replace("scale: 9", "scale: 8"))
    with pytest.raises(SimulationRefused, match="another schema"):
        from_tables(file, [f"{patients(tmp_path / 'all.csv', 60)}:{other}"])


def test_a_study_that_always_fails_ends_with_an_error_and_says_why(study: Path) -> None:
    result = run(study, "--synthetic", 400, "--epsilons", "1", "--seeds", 1, "--missing", 0.95)
    assert result.exit_code == 1
    assert "failed: retries-exhausted" in result.stdout


def test_the_command_runs_what_the_study_declares_and_audits_the_sum(study: Path, tmp_path: Path) -> None:
    made = yaml.safe_load(study.read_text())
    made["training"] |= {"checks": {"every": 3, "epsilon": 2.0, "tolerance": 0.1, "retries": 1}}
    made["audit"] = {"membership": {"mode": "on", "epsilon": 2.0}}
    study.write_text(yaml.safe_dump(made))
    out = tmp_path / "out"
    told = run(study, "--synthetic", 300, "--epsilons", "2", "--seeds", 1, "--audit", "--out", out)
    assert told.exit_code == 0, told.output
    for words in ("rounds undone of 8", "attack AUC", "as the study would tell", "epsilon by the audit", AUDITED):
        assert words in told.stdout
    with (out / "utility.csv").open() as opened:
        row, plain = csv.DictReader(opened)
    assert (plain["audit_epsilon_at_least"], row["failure"]) == ("", "")
    document = json.loads(run(study, "--synthetic", 300, "--epsilons", "2", "--seeds", 1, "--audit", "--json").stdout)
    private, without = document["points"]
    audit = private["audit"]
    assert (audit["refuted"], audit["confidence"], without["audit"]) == (False, 0.95, None)
    assert 0 <= audit["epsilon_at_least"] == float(row["audit_epsilon_at_least"]) < audit["epsilon_claimed"] <= 2
    (found,) = private["runs"]
    assert [check["rounds"] for check in found["checks"]] == [3, 6]
    assert found["membership"]["ran"]
    assert 0.3 < found["attack_auc"] < 0.7
    assert document["audit_note"] == AUDITED


def test_a_refuted_promise_ends_the_command_with_an_error(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = simulated_audit.private_gradient_sum
    monkeypatch.setattr(
        simulated_audit, "private_gradient_sum",
        lambda *given, **stated: kept(*given, **{**stated, "noise_std": stated["noise_std"] / 5}),
    )  # fmt: skip
    told = run(study, "--synthetic", 300, "--epsilons", "1", "--seeds", 1, "--audit")
    assert told.exit_code == 1
    assert "REFUTED" in told.stdout
