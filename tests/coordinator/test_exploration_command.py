"""An exploration on the command line: validated, forecast, simulated, read; what is refused before anybody is asked."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from coordinator.client.cli import app
from coordinator.client.exploration_forecast import make_exploration_forecast
from coordinator.client.results import COLUMNS, results_text, rows_of, write_csv
from coordinator.client.spec_file import SpecInvalid, load_spec
from coordinator.studies.exploration_plan import calibrate_exploration, exploration_forecast
from coordinator.studies.plan import PlanRefused, require_plausible
from privacy.accounting.gaussian import repeated_gaussian_epsilon
from protocol.errors import Refused
from protocol.exploration import ExplorationResult, ExplorationSpec
from protocol.plan import PlannedSite
from protocol.signing import SigningKey

DEMO = Path(__file__).resolve().parents[2] / "packaging" / "demo" / "wisconsin"
RESULT: dict[str, Any] = {
    "study": "look", "plan_digest": "sha256:" + "0" * 64, "epsilon": 1.0, "delta": 1e-4, "patients": 400,
    "patients_clustered": 390, "noise_std": 18.0, "completed_at": "2026-03-01T12:00:00Z",
    "statistics": [
        {
            "statistic": {"kind": "count", "column": "malignant", "level": 1}, "unit": "patients", "names": ["1"],
            "figures": [{"value": 2.0, "low": 0.0, "high": 37.3}],
        },
    ],
    "clusters": [
        {"patients": {"value": 200, "low": 150, "high": 250}, "center": {"age": {"value": 50, "low": 48, "high": 52}}},
        {"patients": {"value": 3, "low": 0, "high": 53}, "center": None},
    ],
}  # fmt: skip


def document(**changes: object) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((DEMO / "exploration.yaml").read_text())
    return {**made, **changes}


def write(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "dictionary.yaml").write_bytes((DEMO / "dictionary.yaml").read_bytes())
    path = folder / "exploration.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def spec(**changes: object) -> ExplorationSpec:
    schema = load_spec(DEMO / "exploration.yaml").spec.dataset.model_dump(mode="json")
    return ExplorationSpec.model_validate(document(dataset=schema, **changes))


def privacy(**changes: object) -> dict[str, Any]:
    return {**document()["privacy"], **changes}


def test_the_template_is_valid_and_its_forecast_says_what_it_costs_and_how_sharp_it_is() -> None:
    file = load_spec(DEMO / "exploration.yaml")
    assert isinstance(file.spec, ExplorationSpec)
    made, problems, _ = make_exploration_forecast(file, file.spec, dict.fromkeys(file.spec.invited, 142))
    assert made is not None
    assert not problems
    told = made.to_dict()
    assert told["sums"] == (1 + 1) + (3 + 1)
    assert told["epsilon"]["global"] == pytest.approx(1.0, rel=1e-6)
    assert told["epsilon"]["worst_site"] > told["epsilon"]["global"]
    assert told["count_half_interval"] == pytest.approx(35.3, abs=0.1)
    assert "nothing is trained or released" in made.text()


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"privacy": privacy(epsilon=0)}, "privacy.epsilon", "greater than 0"),
        ({"privacy": privacy(epsilon=-1)}, "privacy.epsilon", "greater than 0"),
        ({"privacy": privacy(delta=1)}, "privacy.delta", "less than 1"),
        ({"privacy": privacy(mode="local")}, "", "for studies that train"),
        ({"statistics": []}, "statistics", "at least 1"),
        (
            {"statistics": [{"kind": "mean", "column": "mean_radius"}, {"kind": "mean", "column": "mean_radius"}]},
            "", "asked twice",
        ),
        ({"statistics": [{"kind": "mean", "column": "blood_pressure"}]}, "", "no column blood_pressure"),
        ({"statistics": [{"kind": "count", "column": "mean_radius", "level": 3}]}, "", "no levels to count"),
        ({"statistics": [{"kind": "mean", "column": "malignant"}]}, "", "is a category"),
        (
            {"statistics": [{"kind": "histogram", "column": "mean_radius", "bins": bins} for bins in range(2, 67)]},
            "statistics", "at most 64",
        ),
        ({"statistics": [{"kind": "mean", "column": "mean_radius", "where": "x > 1"}]}, "statistics.0.where", ""),
        ({"clustering": {"clusters": 1, "rounds": 3, "columns": ["mean_radius"]}}, "clustering.clusters", ""),
        ({"clustering": {"clusters": 2, "rounds": 3, "columns": ["mean_radius", "mean_radius"]}}, "", "a column twice"),
        ({"clustering": {"clusters": 2, "rounds": 3, "columns": ["malignant"]}}, "", "is a category"),
        ({"clustering": {"clusters": 2, "rounds": 0, "columns": ["mean_radius"]}}, "clustering.rounds", ""),
        ({"model": {"architecture": "logistic_regression"}}, "model", ""),
        ({"kind": "survey"}, "kind", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_by_field(
    tmp_path: Path, changes: dict[str, object], field: str, says: str
) -> None:
    with pytest.raises(SpecInvalid) as refused:
        load_spec(write(tmp_path, document(**changes)))
    found = [problem for problem in refused.value.problems if problem.field == field and says in problem.message]
    assert found, [problem.to_dict() for problem in refused.value.problems]
    assert all(problem.remedy for problem in found)


def test_a_delta_of_one_in_the_patients_is_refused_before_anything_is_planned() -> None:
    asked = spec(privacy=privacy(delta=0.01))
    sites = [
        PlannedSite(
            name=name, identity=SigningKey.generate().public.text, jurisdiction="EU", patients=50, held_out=0,
            snapshot="sha256:" + "0" * 64,
        )
        for name in asked.invited
    ]  # fmt: skip
    with pytest.raises(PlanRefused, match="delta"):
        require_plausible(asked, sites)
    file = load_spec(DEMO / "exploration.yaml")
    _, problems, _ = make_exploration_forecast(file, file.spec, dict.fromkeys(file.spec.invited, 5000))  # type: ignore[arg-type]
    assert [problem.field for problem in problems] == ["privacy.delta"]


def test_one_multiplier_covers_every_sum_of_every_phase_exactly() -> None:
    for changes in ({}, {"clustering": None}, {"privacy": privacy(retries=5)}):
        asked = spec(**changes)
        noise = calibrate_exploration(asked, 4)
        assert noise.epsilon == repeated_gaussian_epsilon(noise.noise_multiplier, asked.steps, 1e-4) <= 1.0
        assert noise.epsilon == pytest.approx(1.0, rel=1e-6)
        curve = exploration_forecast(asked, noise.noise_multiplier)
        assert curve[-1] == (asked.steps, noise.epsilon)
        assert [value for _, value in curve] == sorted(value for _, value in curve)


def test_a_simulation_tells_the_truth_beside_each_answer_and_how_often_its_interval_held(tmp_path: Path) -> None:
    arguments = ["study", "simulate", str(DEMO / "exploration.yaml"), "--synthetic", "569", "--seeds", "6"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    rows = told["statistics"]
    held = sum(int(row["held"].split(" of ")[0]) for row in rows)
    assert held >= 0.8 * 6 * len(rows)
    assert len(told["runs"]) == 6
    assert all(len(run["result"]["clusters"]) == 2 for run in told["runs"])
    with (tmp_path / "out" / "exploration.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_a_simulation_with_lost_answers_uses_retries_and_may_fail_saying_so() -> None:
    arguments = ["study", "simulate", str(DEMO / "exploration.yaml"), "--synthetic", "569", "--seeds", "3"]
    done = CliRunner().invoke(app, [*arguments, "--missing", "0.9"])
    assert done.exit_code == 1
    assert "failed: " in done.stdout


def test_results_show_each_number_with_its_interval_small_ones_too(tmp_path: Path) -> None:
    found = ExplorationResult.model_validate(RESULT)
    text = results_text(found)
    assert "37.3" in text
    assert "perhaps nobody" in text
    assert "400 training patients" in text
    assert rows_of(found)[0] == ("count", "malignant", "1", 2.0, 0.0, 37.3, "patients")
    path = tmp_path / "found.csv"
    write_csv(path, rows_of(found))
    lines = list(csv.reader(path.read_text().splitlines()))
    assert tuple(lines[0]) == COLUMNS
    assert len(lines) == 1 + 5
    with pytest.raises(Refused, match="already"):
        write_csv(path, rows_of(found))
