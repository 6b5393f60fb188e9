"""Parameters: the organisation's limits, and a site that may only be stricter."""

from __future__ import annotations

from typing import Any

import pytest

from policies.documents import BadPolicyDocument
from policies.packs import builtin_packs, builtin_policy
from policies.parameters import BadParameter, load_parameters

DEFAULTS = builtin_policy().parameters


def test_the_defaults_are_the_design_s() -> None:
    values = DEFAULTS.values
    assert (values["epsilon_default"], values["epsilon_approval"], values["epsilon_ceiling"]) == (1.0, 3.0, 8.0)
    assert values["epsilon_worst_site_ceiling"] == 24.0
    assert (values["min_sites"], values["min_cohort"]) == (3, 10)


@pytest.mark.parametrize(
    "override",
    [
        {"epsilon_ceiling": 4},
        {"min_cohort": 50},
        {"accountants": ["pld"]},
        {"approver_roles": []},
        {"epsilon_ceiling": 8.0},
    ],
)
def test_a_site_may_be_stricter(override: dict[str, Any]) -> None:
    name, value = next(iter(override.items()))
    stricter = DEFAULTS.for_site(override)
    assert stricter.values[name] == value
    assert (stricter.digest == DEFAULTS.digest) == (DEFAULTS.values[name] == value)


@pytest.mark.parametrize(
    "override",
    [
        {"epsilon_ceiling": 8.5},
        {"epsilon_default": 1.01},
        {"min_sites": 2},
        {"checkpoint_max_age_seconds": 90000},
        {"accountants": ["pld", "moments"]},
        {"release_files": ["model.safetensors", "weights.pkl"]},
    ],
)
def test_a_site_may_not_be_laxer(override: dict[str, Any]) -> None:
    with pytest.raises(BadParameter, match="laxer") as refused:
        DEFAULTS.for_site(override)
    assert next(iter(override)) in refused.value.message
    assert "only be stricter" in refused.value.remedy


def test_every_parameter_knows_both_directions() -> None:
    for declaration in DEFAULTS.schema.parameters:
        value = DEFAULTS.values[declaration.name]
        if isinstance(value, list):
            assert declaration.laxer([*value, "more"], value)
            assert not declaration.laxer(value[1:], value)
        else:
            lower_is_laxer = declaration.laxer(value - 1, value)
            assert lower_is_laxer != declaration.laxer(value + 1, value)
            assert lower_is_laxer == (declaration.stricter == "higher")


def test_the_organisation_moves_within_the_limits() -> None:
    assert DEFAULTS.for_organisation({"epsilon_ceiling": 10.0}).values["epsilon_ceiling"] == 10.0
    with pytest.raises(BadParameter, match="at most 10"):
        DEFAULTS.for_organisation({"epsilon_ceiling": 11.0})
    with pytest.raises(BadParameter, match="at least 10"):
        DEFAULTS.for_organisation({"min_cohort": 9})


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ({"epsilon_celing": 1.0}, "no parameter 'epsilon_celing'"),
        ({"epsilon_ceiling": float("nan")}, "finite"),
        ({"epsilon_ceiling": "8"}, "must be a number"),
        ({"epsilon_ceiling": True}, "must be a number"),
        ({"min_sites": 3.0}, "whole number"),
        ({"accountants": "pld"}, "list of strings"),
        ({"accountants": ["pld", "pld"]}, "twice"),
    ],
)
def test_a_malformed_override_is_refused(override: dict[str, Any], problem: str) -> None:
    for method in (DEFAULTS.for_site, DEFAULTS.for_organisation):
        with pytest.raises(BadParameter, match=problem):
            method(override)


def test_an_override_leaves_the_former_values_alone() -> None:
    before = dict(DEFAULTS.values)
    DEFAULTS.for_site({"epsilon_ceiling": 2.0})
    assert before == DEFAULTS.values


@pytest.mark.parametrize(
    "line",
    [
        "{name: x1, type: int, default: 1, stricter: subset, description: some number}",
        "{name: x1, type: int, default: 1.5, stricter: lower, description: some number}",
        "{name: x1, type: int, default: 5, maximum: 4, stricter: lower, description: some number}",
        "{name: x1, type: string-list, default: [a], stricter: lower, description: some list}",
        "{name: x1, type: int, default: 1, description: some number}",
    ],
)
def test_a_malformed_declaration_is_refused(line: str) -> None:
    with pytest.raises(BadPolicyDocument, match="parameters"):
        load_parameters(f"version: '1'\nparameters:\n- {line}\n".encode())


def test_every_parameter_is_used_by_a_rule() -> None:
    documents = {name: data for name, data in builtin_packs().items() if "/" not in name and name != "parameters"}
    packs = b"".join(documents.values()).decode()
    assert [p.name for p in DEFAULTS.schema.parameters if f"params.{p.name}" not in packs] == []
