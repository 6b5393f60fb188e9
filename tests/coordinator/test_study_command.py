"""`cloister study validate`: all that is wrong with a file, by line, field and remedy, and what it would cost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.client.forecast import make_forecast
from coordinator.client.spec_file import Problem, SpecInvalid, load_spec
from coordinator.client.study_text import findings_text, status_text
from protocol.errors import Malformed
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


def document(**changes: object) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(study_spec().model_dump_json(exclude_none=True))
    return {**made, "dataset": {"dictionary": "hearts.yaml"}, **changes}


def write(folder: Path, content: dict[str, Any] | str) -> Path:
    (folder / "hearts.yaml").write_text(DICTIONARY)
    path = folder / "study.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def problems(folder: Path, content: dict[str, Any] | str) -> dict[str, Problem]:
    with pytest.raises(SpecInvalid) as refused:
        load_spec(write(folder, content))
    return {problem.field: problem for problem in refused.value.problems}


def line_of(folder: Path, text: str) -> int:
    lines = (folder / "study.yaml").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def test_a_valid_spec_is_read_with_the_schema_of_its_dictionary(tmp_path: Path) -> None:
    file = load_spec(write(tmp_path, document()))
    assert [feature.name for feature in file.spec.dataset.features] == ["age", "sex"]
    inline = load_spec(write(tmp_path, document(dataset=file.spec.dataset.model_dump(mode="json"))))
    assert inline.spec == file.spec


def test_every_problem_is_named_at_once_with_line_field_and_remedy(tmp_path: Path) -> None:
    made = document(study="Hearts!", dataset={"dictionary": "gone.yaml"})
    made["privacy"] = {"epsilon": 0, "delta": 1.5, "epsilom": 3}
    made["training"]["sampling_rate"] = 1.5
    del made["minimum_sites"]
    found = problems(tmp_path, made)
    assert set(found) == {
        "study", "dataset.dictionary", "privacy.epsilon", "privacy.delta", "privacy.epsilom",
        "training.sampling_rate", "minimum_sites",
    }  # fmt: skip
    for field, problem in found.items():
        assert problem.remedy, field
        if field != "minimum_sites":
            assert problem.line == line_of(tmp_path, field.rpartition(".")[2] + ":"), field
    assert "did you mean epsilon" in found["privacy.epsilom"].remedy
    assert found["training.sampling_rate"].remedy == "Give a value of at most 1.0."
    assert found["minimum_sites"].remedy == "Add the field minimum_sites."


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"training": {"rounds": 3, "sampling_rate": 0, "clip": 1, "learning_rate": 1}}, "training.sampling_rate", "0"),
        ({"privacy": {"epsilon": -1, "delta": 1e-4}}, "privacy.epsilon", "greater than 0"),
        ({"privacy": {"epsilon": ".nan", "delta": 1e-4}}, "privacy.epsilon", "number"),
        ({"privacy": {"epsilon": 1, "delta": 1e-4, "colluders": 2}}, "", "two honest sites"),
        ({"recipients": ["aachen", "aachen"]}, "", "names a site twice"),
        ({"minimum_sites": 9}, "", "larger than the number"),
        ({"model": {"architecture": "forest"}}, "model", "logistic_regression"),
        ({"dataset": {"dictionary": "hearts.yaml", "more": 1}}, "dataset", "more besides"),
        ({"dataset": {"dictionary": "."}}, "dataset.dictionary", "not a plain file"),
        ({"legal_basis": {"../x": {"jurisdiction": "EU"}}}, "legal_basis.../x", "pattern"),
    ],
)
def test_single_mistakes(tmp_path: Path, changes: dict[str, object], field: str, message: str) -> None:
    found = problems(tmp_path, document(**changes))
    matching = [problem for name, problem in found.items() if name.startswith(field) and message in problem.message]
    assert matching, found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"study: &a x\ntitle: *a\n", "line 1: anchors"),
        (b"study: a\nstudy: b\n", "line 2: the key 'study' stands twice"),
        (b"study: !!python/object:os.system x\n", "tags are not allowed"),
        (b"\x89PNG\r\n\x1a\n\0\0", "binary"),
        (b"\xff\xfe\x31", "not UTF-8"),
        (b"study: [unclosed\n", "line "),
        (b"a: 1\n---\nb: 2\n", "second document"),
        (b"", "empty"),
        (b"x: " + b"[" * 5000, "nested deeper"),
        (b"#" * ((1 << 20) + 1), "at most 1048576"),
    ],
)
def test_hostile_files_are_refused_in_words(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(Malformed, match=message):
        load_spec(path)


def test_a_bad_dictionary_is_told_by_its_own_line(tmp_path: Path) -> None:
    path = write(tmp_path, document())
    (tmp_path / "hearts.yaml").write_text(DICTIONARY.replace("maximum: 120", "maximum: -1"))
    with pytest.raises(SpecInvalid) as refused:
        load_spec(path)
    problem = refused.value.problems[0]
    assert problem.field == "dataset.dictionary"
    assert problem.message.startswith("hearts.yaml: line 6")


def test_the_forecast_has_the_total_the_rounds_and_each_site_s_worst_case(tmp_path: Path) -> None:
    file = load_spec(write(tmp_path, document()))
    made, wrong, notes = make_forecast(file, file.spec, None)
    assert made is not None
    assert wrong == ()
    assert any("not checked" in note for note in notes)
    shown = made.to_dict()
    assert 0.99 < shown["epsilon"]["global"] <= 1.0
    assert [point["steps"] for point in shown["epsilon"]["per_round"]] == [1, 2, 3, 4, 5, 6]
    assert {site["name"] for site in shown["sites"]} == set(NAMES)
    assert all(site["epsilon_worst_case"] > shown["epsilon"]["global"] for site in shown["sites"])
    assert shown["epsilon"]["evaluation_worst_site"] > shown["epsilon"]["evaluation"]
    assert f"{shown['epsilon']['evaluation_worst_site']:.3f} if all others collude" in made.text()
    assert "1.33 times the variance" in made.text()
    json.dumps(shown, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "counts", "field", "message"),
    [
        ({"privacy": {"epsilon": 1, "delta": 0.01}}, dict.fromkeys(NAMES, 80), "privacy.delta", "1 in 320"),
        ({"privacy": {"epsilon": 1, "delta": 1e-4, "epsilon_worst_site": 1}}, None, "privacy.epsilon_worst_site", "2."),
        ({"evaluation": {"bins": 5}}, None, "evaluation.bins", "odd"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_go_together_are_named(
    tmp_path: Path, changes: dict[str, object], counts: dict[str, int] | None, field: str, message: str
) -> None:
    file = load_spec(write(tmp_path, document(**changes)))
    _, wrong, _ = make_forecast(file, file.spec, counts)
    assert [problem.field for problem in wrong] == [field]
    assert message in wrong[0].message
    assert wrong[0].line == line_of(tmp_path, field.rpartition(".")[2] + ":")


def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coordinator.client.cli", "study", *arguments, "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.processes
def test_the_command_says_it_in_words_and_in_json(tmp_path: Path) -> None:
    good = write(tmp_path, document())
    told = run("validate", str(good), home=tmp_path / "nobody")
    assert told.returncode == 0, told.stderr
    assert "epsilon 0.99" in told.stdout
    asked = run("validate", str(good), "--json", home=tmp_path / "nobody")
    assert json.loads(asked.stdout)["valid"] is True
    bad = write(tmp_path, document(minimum_sites=1))
    refused = run("validate", str(bad), home=tmp_path / "nobody")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert f"line {line_of(tmp_path, 'minimum_sites')}" in refused.stderr
    assert "Traceback" not in refused.stderr
    refused = run("validate", str(bad), "--json", home=tmp_path / "nobody")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"]["problems"][0]["field"] == "minimum_sites"
    lone = run("propose", str(good), home=tmp_path / "nobody")
    assert lone.returncode == 1
    assert "cloister login" in lone.stderr


def test_findings_and_status_are_told_to_people() -> None:
    finding = {
        "rule": "G01", "citation": "GDPR Art. 6(1)", "effect": "deny", "message": "No legal basis.",
        "remedy": "Record one.",
        "facts": [{"path": "study.legal_basis", "value": None}, {"path": "plan.kind", "value": "x"}],
    }  # fmt: skip
    text = findings_text([finding])
    for part in ("G01", "GDPR Art. 6(1)", "No legal basis.", "Record one.", "study.legal_basis; plan.kind = x"):
        assert part in text
    told = status_text(
        {
            "study": "s", "state": "failed", "reason": "too-few-sites", "detail": "2 sites", "plan_digest": "sha256:0",
            "epsilon": 1.0, "candidate": None, "result_digest": None, "kind": "training", "sites": [],
            "privacy": {
                "epsilon_spent": 0.2,
                "delta": 1e-4,
                "epsilon_worst_site": 2.0,
                "epsilon_evaluation_worst_site": 2.5,
            },
            "rounds": {"committed": 1, "planned": 3, "abandoned_attempts": 1, "retries_planned": 3},
        }
    )  # fmt: skip
    assert "failed (too-few-sites: 2 sites)" in told
