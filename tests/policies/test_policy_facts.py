"""Facts: types, limits, pruning and digests."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.documents import BadPolicyDocument
from policies.facts import BadFact, FactCatalogue, Facts
from policies.packs import builtin_policy, load_catalogue
from protocol.evidence import KINDS

CATALOGUE = load_catalogue(
    b"""
version: "1"
facts:
- {path: a.text, type: string, description: any text at all}
- {path: a.count, type: int, minimum: 0, shown: false, description: a whole number}
- {path: a.share, type: double, description: a number of any size}
- {path: a.flag, type: bool, description: yes or no it is}
- {path: a.when, type: timestamp, description: a moment in time}
- {path: a.names, type: list, items: string, description: some list of names}
- {path: a.mode, type: string, one_of: [x, y], description: one of two modes}
- path: a.sites
  type: list
  items: {name: string, n: int, at: timestamp}
  item_one_of: {name: [p, q]}
  non_empty: true
  description: some records
- {path: a.letters, type: map, items: string, description: name to a letter}
- {path: who, type: string, description: a top level fact}
"""
)


def of(**values: Any) -> Facts:
    return Facts.of(CATALOGUE, {"a": values})


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("text", 3, "must be a string"),
        ("text", "x" * 4097, "longer than 4096"),
        ("text", "\ud800", "UTF-8"),
        ("count", True, "must be an int"),
        ("count", 1.0, "must be an int"),
        ("count", "1", "must be an int"),
        ("count", 2**53, "beyond"),
        ("count", -1, "at least 0"),
        ("share", math.nan, "finite"),
        ("share", math.inf, "finite"),
        ("share", -math.inf, "finite"),
        ("share", 10**400, "beyond"),
        ("share", True, "must be a double"),
        ("flag", 1, "must be a bool"),
        ("flag", "true", "must be a bool"),
        ("when", "yesterday", "ISO 8601"),
        ("when", "2026-01-01T00:00:00", "time zone"),
        ("when", datetime(2026, 1, 1), "time zone"),
        ("when", 5, "must be a timestamp"),
        ("names", "abc", "must be a list"),
        ("names", [1], r"a\.names\[0\]: must be a string"),
        ("names", ["x"] * 4097, "more than 4096"),
        ("mode", "z", "one of x, y"),
        ("sites", [{"name": "p", "n": 1}], r"a\.sites\[0\]\.at: is missing"),
        ("sites", [{"name": "P", "n": 1, "at": "2026-01-01"}], "one of p, q"),
        ("sites", ["p"], "must be a mapping"),
        ("letters", [], "must be a mapping"),
        ("letters", {1: "e"}, "must be a string"),
        ("letters", {"s": 5}, "must be a string"),
        ("letters", {"s": object()}, "must be a string"),
    ],
)
def test_a_wrong_value_is_refused_by_path(name: str, value: Any, problem: str) -> None:
    with pytest.raises(BadFact, match=problem) as refused:
        of(**{name: value})
    assert f"a.{name}" in refused.value.message
    assert refused.value.remedy


def test_only_declared_facts_remain() -> None:
    facts = Facts.of(
        CATALOGUE,
        {"a": {"text": "t", "secret": 1, "sites": [{"name": "p", "n": 2, "at": "2026-01-01", "mrn": 7}]}, "b": {}},
    )
    assert facts.to_json() == {"a": {"text": "t", "sites": [{"name": "p", "n": 2, "at": "2026-01-01T00:00:00Z"}]}}
    assert facts.prune(["a.text", "a.flag"]) == {"a.text": "t"}


def test_absent_null_and_an_empty_list_that_must_not_be_empty_are_missing() -> None:
    facts = of(text=None, sites=[], names=[])
    assert facts.missing(["a.text", "a.sites", "a.flag", "a.names"]) == ["a.text", "a.sites", "a.flag"]


def test_a_scalar_where_a_mapping_belongs_is_refused() -> None:
    with pytest.raises(BadFact, match="fact a: must be a mapping"):
        Facts.of(CATALOGUE, {"a": "x"})


def test_one_moment_has_one_digest() -> None:
    elsewhere = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    digests = {
        of(when=when).digest()
        for when in ("2026-01-01", "2026-01-01T00:00:00Z", elsewhere, datetime(2026, 1, 1, tzinfo=UTC))
    }
    assert len(digests) == 1


@given(st.dictionaries(st.sampled_from(["text", "who2"]), st.text(max_size=5)), st.floats(allow_nan=False, width=32))
def test_the_digest_ignores_order_and_undeclared_facts(noise: dict[str, str], share: float) -> None:
    if math.isinf(share):
        return
    one = Facts.of(CATALOGUE, {"a": {"flag": True, "share": share}, "who": "x"})
    other = Facts.of(CATALOGUE, {"zz": noise, "who": "x", "a": {"share": share, "flag": True, "u": 1}})
    assert one.digest() == other.digest()
    assert one.digest() != of(flag=False, share=share).digest()


def test_a_salt_changes_every_digest() -> None:
    facts = of(count=7)
    assert facts.digest(b"salt") != facts.digest()
    assert facts.digest_of("a.count", b"salt") != facts.digest_of("a.count")


def test_only_what_may_be_shown_is_shown() -> None:
    facts = of(count=7, text="free text", mode="x", share=0.25, when="2026-01-01", flag=True)
    assert facts.shown("a.count") is None
    assert facts.shown("a.text") is None
    assert [facts.shown(f"a.{name}") for name in ("mode", "share", "when", "flag")] == [
        "x",
        "0.25",
        "2026-01-01T00:00:00Z",
        "true",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{path: A.b, type: int, description: some number}", "lower-case"),
        ("{path: params.b, type: int, description: some number}", "keeps for itself"),
        ("{path: a.b, type: float, description: some number}", "type"),
        ("{path: a.b, type: list, description: some number}", "declares its items"),
        ("{path: a.b, type: int, items: string, description: some number}", "declares its items"),
        ("{path: a.b, type: map, items: {x: int}, description: some number}", "a map holds scalars"),
        ("{path: a.b, type: int, one_of: [x], description: some number}", "one_of belongs"),
        ("{path: a.b, type: string, minimum: 0, description: some number}", "minimum belongs"),
        (
            "{path: a.b, type: list, items: {x: string}, item_one_of: {y: [z]}, description: some list}",
            "unknown fields",
        ),
        ("{path: a.b, type: int, description: some number, unit: s}", "unit"),
    ],
)
def test_a_malformed_declaration_is_refused(line: str, problem: str) -> None:
    with pytest.raises(BadPolicyDocument, match=problem):
        load_catalogue(f"version: '1'\nfacts:\n- {line}\n".encode())


@pytest.mark.parametrize("second", ["a.b", "a.b.c"])
def test_declarations_neither_repeat_nor_nest(second: str) -> None:
    text = f"""
version: "1"
facts:
- {{path: a.b, type: int, description: some number}}
- {{path: {second}, type: int, description: some number}}
"""
    with pytest.raises(BadPolicyDocument, match=r"a\.b"):
        load_catalogue(text.encode())


def test_the_catalogue_is_found_by_path() -> None:
    assert isinstance(CATALOGUE, FactCatalogue)
    assert CATALOGUE["a.count"].type == "int"
    assert CATALOGUE.get("a.nothing") is None


def test_rules_may_ask_for_the_kinds_of_evidence_that_can_be_recorded() -> None:
    records = [fact for fact in builtin_policy().catalogue.facts if fact.path.endswith(".records")]
    assert {"study.records", "release.records", "site.records", "deployment.records"} <= {fact.path for fact in records}
    for fact in records:
        assert sorted(fact.item_one_of["kind"]) == sorted(KINDS), fact.path
