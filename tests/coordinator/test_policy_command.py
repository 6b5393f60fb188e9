"""`cloister policy`: every case through both engines, a rule in plain words, and what changed between two packs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import policies.cases
from coordinator.client.cli import app
from policies.difference import compare
from policies.explain_rule import rule_document, rule_in_words, rules_of
from policies.packs import GATES, Policy, builtin_packs, builtin_policy, policy_from
from policies.parameters import load_parameters
from protocol.errors import CloisterError

runner = CliRunner()
POLICY = builtin_policy()
ALL = [(pack, rule) for pack in POLICY.packs for rule in pack.rules]


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    """Cloister's own packs, in a folder that a test may change."""
    folder = tmp_path / "packs"
    for name, data in builtin_packs().items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def invoke(*arguments: str) -> tuple[int, Any]:
    result = runner.invoke(app, ["policy", *arguments, "--json"])
    if isinstance(result.exception, CloisterError):
        raise result.exception
    return result.exit_code, json.loads(result.stdout)


def text(*arguments: str) -> str:
    result = runner.invoke(app, ["policy", *arguments])
    assert result.exit_code == 0, result.exception
    return result.stdout


def edit(path: Path, changes: dict[str, Any], *, within: str = "rules", key: str = "id") -> None:
    """Set fields of the entries so named; None takes a whole entry away."""
    document = yaml.safe_load(path.read_text())
    entries = {entry[key]: entry for entry in document[within]}
    for name, fields in changes.items():
        if fields is None:
            del entries[name]
        else:
            entries[name] = {**entries.get(name, {}), **fields}
    document[within] = list(entries.values())
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def test_every_case_of_every_pack_runs_through_both_engines() -> None:
    pytest.importorskip("celpy", reason="cel-python is a development dependency")
    status, report = invoke("test")
    assert (status, report["failed"], report["failures"], report["engines_agree"]) == (0, 0, [], True)
    policy = builtin_policy()
    assert report["rules"] == sum(len(pack.rules) for pack in policy.packs)
    assert report["cases"] == sum(of["cases"] for of in report["packs"].values()) >= 3 * report["rules"]


def test_without_the_second_engine_agreement_is_unknown_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.cases, "second_engine", lambda: None)
    status, report = invoke("test")
    assert (status, report["failed"], report["engines_agree"]) == (0, 0, None)
    assert "cel-python" in report["engines_reason"]
    assert "both engines agree" not in text("test")


def test_engines_that_disagree_fail_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Contrary:
        def truth(self, *_: object) -> bool:
            return False

    monkeypatch.setattr(policies.cases, "second_engine", Contrary)
    status, report = invoke("test")
    assert (status, report["engines_agree"]) == (1, False)
    assert report["failed"] == len(report["failures"]) > 0


def test_a_broken_rule_and_a_rule_without_cases_fail(packs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.cases, "second_engine", lambda: None)
    rules = {rule.text.id: rule.text for pack in POLICY.packs for rule in pack.rules}
    edit(packs / "gdpr.yaml", {"G04": {"require": f"!({rules['G04'].require})"}})
    (packs / "cases" / "hipaa.yaml").unlink()
    status, report = invoke("test", "--packs", str(packs))
    assert status == 1
    assert any("G04" in failure and "came to" in failure for failure in report["failures"])
    assert any(failure.startswith("hipaa: H26: no passed case") for failure in report["failures"])
    result = runner.invoke(app, ["policy", "test", "--packs", str(packs)])
    assert isinstance(result.exception, CloisterError)
    assert "G04" in result.stdout
    assert result.exception.remedy


def test_a_document_that_is_no_pack_is_refused_by_name(packs: Path, tmp_path: Path) -> None:
    (packs / "gdpr.yaml").write_text("pack: gdpr\nrules: [{id: G01, requires: 'true'}]\n")
    with pytest.raises(CloisterError, match="pack gdpr"):
        invoke("test", "--packs", str(packs))
    (packs / "gdpr.yaml").write_bytes(b"#" * (1 << 20))
    with pytest.raises(CloisterError, match="larger than 256 KiB"):
        invoke("test", "--packs", str(packs))
    empty = tmp_path / "empty"
    empty.mkdir()
    for place in (empty, tmp_path / "nowhere"):
        with pytest.raises(CloisterError):
            invoke("test", "--packs", str(place))


def test_every_rule_is_explained_with_law_facts_effect_and_remedy() -> None:
    for pack in POLICY.packs:
        for rule in pack.rules:
            assert rules_of(POLICY, rule=rule.text.id) == [(pack, rule)]
            document = rule_document(pack, rule)
            scopes = [pack.scopes[gate] for gate in rule.text.gates if gate in pack.scopes]
            needed = set(rule.text.facts).union(*(scope.text.facts for scope in scopes))
            assert needed <= {fact["path"] for fact in document["facts"]}
            words = rule_in_words(document)
            for part in (rule.text.citation, rule.text.require, rule.text.remedy, document["consequence"], *needed):
                assert part in words
    _, documents = invoke("explain", "G04")
    assert [(d["rule"], d["pack"]) for d in documents] == [("G04", "gdpr")]


def test_an_explanation_is_in_words_and_names_the_parameters() -> None:
    words = text("explain", "N05")
    for part in ("NIST SP 800-226", "aggregation gate", "round.participants (int)", "What to do:", "stays shut"):
        assert part in words
    assert "min_cohort = 10 (a site may only raise it)" in words
    approvals = [item for item in ALL if item[1].text.effect.startswith("approval:")]
    assert approvals
    assert all("waits until a" in rule_in_words(rule_document(*item)) for item in approvals)


def test_a_gate_is_explained_by_all_its_rules() -> None:
    for gate in GATES:
        found = rules_of(POLICY, gate=gate)
        assert found == [item for item in ALL if gate in item[1].text.gates]
        scopes = [scope for item in found for scope in rule_document(*item, gate=gate)["scopes"]]
        assert {scope["gate"] for scope in scopes} <= {gate}
    _, documents = invoke("explain", "--gate", "release")
    assert [d["rule"] for d in documents] == [rule.text.id for _, rule in ALL if "release" in rule.text.gates]
    empty = next((gate for gate in GATES if not rules_of(POLICY, gate=gate)), None)
    assert empty is None or "never opens" in text("explain", "--gate", empty)


@pytest.mark.parametrize("arguments", [(), ("G01", "--gate", "release"), ("--gate", "door"), ("G0l",), ("g01",)])
def test_what_is_not_there_is_not_explained(arguments: tuple[str, ...]) -> None:
    with pytest.raises(CloisterError) as caught:
        invoke("explain", *arguments)
    assert caught.value.remedy
    if arguments == ("g01",):
        assert "G01" in caught.value.remedy


def test_the_same_packs_do_not_differ(packs: Path) -> None:
    (packs / "gdpr.yaml").write_bytes((packs / "gdpr.yaml").read_bytes() + b"# a remark\n")
    _, report = invoke("diff", "built-in", str(packs))
    assert report["same"] is True
    assert "Nothing" in text("diff", "built-in", str(packs))


def test_a_diff_names_rules_fields_and_directions(packs: Path) -> None:
    g04 = next(r.text for p in POLICY.packs for r in p.rules if r.text.id == "G04")
    nonsense = "plan.sites == [] || study.art9_condition == study.member_state_law_ref"
    new_rule = {**g04.model_dump(mode="json", exclude_none=True), "id": "G99"}
    edit(
        packs / "gdpr.yaml",
        {
            "G99": new_rule,
            "G01": None,
            "G02": {"effect": "warn", "require": nonsense},
            "G03": {"effect": "deny", "valid_to": "2027-01-01"},
            "G04": {"gates": ["release"]},
        },
    )  # fmt: skip
    edit(packs / "gdpr.yaml", {"G02": {"remedy": "Ask the data protection officer."}})
    _, report = invoke("diff", "built-in", str(packs))
    rules = report["rules"]
    assert rules["added"] == [{"id": "gdpr/G99", "direction": "stricter"}]
    assert rules["removed"] == [{"id": "gdpr/G01", "direction": "laxer"}]
    changes = {(i["id"], c["field"]): c for i in rules["changed"] for c in i["changes"]}
    directions = {key: change["direction"] for key, change in changes.items()}
    assert directions == {
        ("gdpr/G02", "effect"): "laxer",
        ("gdpr/G02", "require"): None,
        ("gdpr/G02", "remedy"): None,
        ("gdpr/G03", "effect"): "stricter",
        ("gdpr/G03", "valid_to"): "laxer",
        ("gdpr/G04", "gates"): "laxer",
    }
    assert changes["gdpr/G04", "gates"]["old"] == list(g04.gates)
    _, back = invoke("diff", str(packs), "built-in")
    opposite = {"laxer": "stricter", "stricter": "laxer", None: None}
    reversed_directions = {
        (i["id"], c["field"]): c["direction"] for i in back["rules"]["changed"] for c in i["changes"]
    }
    assert reversed_directions == {key: opposite[value] for key, value in directions.items()}
    words = text("diff", "built-in", str(packs))
    assert "- rule gdpr/G01 is gone (laxer)" in words
    assert g04.gates[-1] in words


@pytest.mark.parametrize(
    ("name", "field", "value", "direction"),
    [
        ("epsilon_ceiling", "default", 9.0, "laxer"),
        ("epsilon_ceiling", "default", 4.0, "stricter"),
        ("epsilon_ceiling", "maximum", 50.0, "laxer"),
        ("epsilon_ceiling", "minimum", 0.001, None),
        ("min_cohort", "default", 20, "stricter"),
        ("min_cohort", "minimum", 5, "laxer"),
        ("min_cohort", "maximum", 5000, None),
        ("accountants", "default", ["pld"], "stricter"),
        ("accountants", "default", ["pld", "rdp", "moments"], "laxer"),
        ("accountants", "default", ["pld", "moments"], None),
        ("min_cohort", "description", "The fewest patients at all", None),
    ],
)
def test_a_parameter_s_own_declaration_says_which_way_it_moved(
    name: str, field: str, value: object, direction: str | None
) -> None:
    document = yaml.safe_load(builtin_packs()["parameters"])
    next(entry for entry in document["parameters"] if entry["name"] == name)[field] = value
    schema = load_parameters(yaml.safe_dump(document).encode())
    report = compare(POLICY, Policy(POLICY.catalogue, POLICY.packs, schema.defaults()))
    assert report["rules"] == {"added": [], "removed": [], "changed": []}
    (item,) = report["parameters"]["changed"]
    (change,) = item["changes"]
    assert (item["id"], change["field"], change["new"], change["direction"]) == (name, field, value, direction)


def test_a_folder_s_own_parameters_are_compared(packs: Path) -> None:
    edit(packs / "parameters.yaml", {"epsilon_ceiling": {"default": 9.0}}, within="parameters", key="name")
    words = text("diff", "built-in", str(packs))
    assert "parameter epsilon_ceiling" in words
    assert "default (laxer)" in words


def test_a_lone_pack_is_compared_with_its_own_kind_only(packs: Path, tmp_path: Path) -> None:
    edit(packs / "gdpr.yaml", {"G04": {"effect": "warn"}})
    lone = tmp_path / "mine.yaml"
    lone.write_bytes((packs / "gdpr.yaml").read_bytes())
    for old, new in (("built-in", lone), ("built-in", packs / "gdpr.yaml")):
        _, report = invoke("diff", str(old), str(new))
        assert [item["id"] for item in report["rules"]["changed"]] == ["gdpr/G04"]
        assert not any(report[part][side] for part in ("packs", "facts", "parameters") for side in report[part])
    _, report = invoke("diff", str(packs / "gdpr.yaml"), str(lone))
    assert report["same"] is True
    for bad in (tmp_path / "nowhere.yaml", packs / "facts.yaml"):
        with pytest.raises(CloisterError):
            invoke("diff", "built-in", str(bad))


def test_taking_away_a_gate_s_last_rule_is_not_called_laxer() -> None:
    """Where no rule looks, the gate never opens: the first rule at a gate is what opens it."""
    documents = builtin_packs()
    alone = {"facts": documents["facts"], "parameters": documents["parameters"]}
    pack = yaml.safe_load(documents["gdpr"])
    g04 = next(rule for rule in pack["rules"] if rule["id"] == "G04")
    other = next(rule for rule in pack["rules"] if rule["id"] == "G01")
    both = policy_from({**alone, "gdpr": yaml.safe_dump({**pack, "rules": [g04, other]}).encode()})
    without = policy_from({**alone, "gdpr": yaml.safe_dump({**pack, "rules": [other]}).encode()})
    assert compare(both, without)["rules"]["removed"] == [{"id": "gdpr/G04", "direction": None}]
    assert compare(without, both)["rules"]["added"] == [{"id": "gdpr/G04", "direction": None}]
