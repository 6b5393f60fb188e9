"""What changed between two sets of policy documents, rule by rule and field by field.

A direction is given only where one is declared or follows from the engine's order: a parameter's `stricter`, the
order of effects (a warning, then evidence or an approval, then a denial), a rule at more or fewer gates. A changed
expression has none: whether it lets more through, a person has to read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from policies.findings import APPROVAL
from policies.packs import Pack, Policy, RuleText
from policies.parameters import ParameterDeclaration, Parameters

Direction = Literal["laxer", "stricter"] | None


def compare(old: Policy, new: Policy) -> dict[str, Any]:
    """`{"same", "packs", "rules", "facts", "parameters"}`: JSON of all that differs.

    `rules` has `added`, `removed` and `changed`; each change is `{"field", "old", "new", "direction"}`, where
    direction is "laxer", "stricter" or null. `same` is true where nothing differs but, perhaps, the bytes.
    """
    packs_old, packs_new = {p.id: p for p in old.packs}, {p.id: p for p in new.packs}
    report: dict[str, Any] = {
        "packs": _sides(
            {name: _pack_fields(pack) for name, pack in packs_old.items()},
            {name: _pack_fields(pack) for name, pack in packs_new.items()},
        ),
        "rules": _rules(old, new),
        "facts": _sides(_declared(old.catalogue.facts, "path"), _declared(new.catalogue.facts, "path")),
        "parameters": _parameters(old.parameters, new.parameters),
    }
    report["same"] = not any(report[part][side] for part in report for side in ("added", "removed", "changed"))
    return report


def in_words(report: Mapping[str, Any]) -> str:
    """`compare`'s report for a person."""
    if report["same"]:
        return "Nothing that decides differs."
    lines: list[str] = []
    for part, singular in (("packs", "pack"), ("rules", "rule"), ("facts", "fact"), ("parameters", "parameter")):
        found = report[part]
        lines += [f"+ {singular} {item['id']} is new{_leaning(item)}" for item in found["added"]]
        lines += [f"- {singular} {item['id']} is gone{_leaning(item)}" for item in found["removed"]]
        for item in found["changed"]:
            lines.append(f"~ {singular} {item['id']}")
            for change in item["changes"]:
                lines += [
                    f"    {change['field']}{_leaning(change)}",
                    f"      was: {_shown(change['old'])}",
                    f"      is:  {_shown(change['new'])}",
                ]
    return "\n".join(lines)


_WORDS = frozenset({"citation", "message", "remedy", "note", "title", "version", "description", "offenders"})
"""Fields that decide nothing."""


@dataclass(frozen=True)
class Leaning:
    """laxer: what lets more through than before, by name. unordered: what can't be put in order, a person has to read.
    settings: parameters that were moved to a laxer value within their limits."""

    laxer: tuple[str, ...]
    unordered: tuple[str, ...]
    settings: tuple[str, ...]


def leaning(report: Mapping[str, Any]) -> Leaning:
    """Which way `compare`'s report leans. A pack, rule or fact that is new only adds; a pack out of its dates denies,
    so that its dates lean no way."""
    laxer: list[str] = []
    unordered: list[str] = []
    settings: list[str] = []
    for part in ("packs", "rules", "facts", "parameters"):
        for item in report[part]["removed"]:
            (laxer if part != "facts" and item["direction"] != "stricter" else unordered).append(item["id"])
        for item in report[part]["added"]:
            if part == "rules" and item["direction"] is None:
                unordered.append(item["id"])  # the first rule of a gate opens it
        for item in report[part]["changed"]:
            for change in item["changes"]:
                name = f"{item['id']}.{change['field']}"
                if change["field"] in _WORDS or (part == "packs" and change["field"].startswith("valid_")):
                    continue
                if change["direction"] == "laxer":
                    (settings if (part, change["field"]) == ("parameters", "value") else laxer).append(name)
                elif change["direction"] is None and not (part == "parameters" and change["field"] == "default"):
                    unordered.append(name)
    return Leaning(tuple(laxer), tuple(unordered), tuple(settings))


def _rules(old: Policy, new: Policy) -> dict[str, list[dict[str, Any]]]:
    before, after = _rules_by_id(old), _rules_by_id(new)
    found = _sides(
        {name: _fields(rule) for name, rule in before.items()}, {name: _fields(rule) for name, rule in after.items()}
    )
    for item in found["added"]:
        item["direction"] = "stricter" if _others_look(after, before, item["id"]) else None
    for item in found["removed"]:
        item["direction"] = "laxer" if _others_look(before, after, item["id"]) else None
    for item in found["changed"]:
        for change in item["changes"]:
            change["direction"] = _rule_direction(change)
    return found


def _others_look(having: Mapping[str, RuleText], lacking: Mapping[str, RuleText], name: str) -> bool:
    """Whether rules look at all the rule's gates without it. Where none does, the gate is shut: the first opens it."""
    looked_at = {gate for rule in lacking.values() for gate in rule.gates}
    return set(having[name].gates) <= looked_at


def _rule_direction(change: Mapping[str, Any]) -> Direction:
    old, new = change["old"], change["new"]
    match change["field"]:
        case "effect":
            return _ordered(_weight(old), _weight(new))
        case "gates":
            return _ordered_sets(set(old), set(new))
        case "waivable":
            return _ordered(bool(new), bool(old))
        case "valid_from":
            return _ordered(new, old)  # in force earlier: stricter
        case "valid_to":
            return _ordered(old or "9999", new or "9999")
    return None


def _weight(effect: str) -> int:
    if effect == "evidence" or effect.startswith(APPROVAL):
        return 1
    return 0 if effect == "warn" else 2


def _ordered(old: Any, new: Any) -> Direction:
    if old == new:
        return None
    return "stricter" if new > old else "laxer"


def _ordered_sets(old: set[str], new: set[str]) -> Direction:
    if new > old:
        return "stricter"
    return "laxer" if new < old else None


def _parameters(old: Parameters, new: Parameters) -> dict[str, list[dict[str, Any]]]:
    """Declarations, and under `value` what the organisation set them to."""
    before, after = ({p.name: p for p in side.schema.parameters} for side in (old, new))
    found = _sides(_set_to(old), _set_to(new))
    for item in found["changed"]:
        name = item["id"]
        if (before[name].default, after[name].default) == (old.values[name], new.values[name]):
            item["changes"] = [change for change in item["changes"] if change["field"] != "value"]
        for change in item["changes"]:
            change["direction"] = _parameter_direction(change, before[name], after[name])
    return found


def _set_to(side: Parameters) -> dict[str, dict[str, Any]]:
    declared = _declared(side.schema.parameters, "name")
    return {name: {**fields, "value": side.values[name]} for name, fields in declared.items()}


def _parameter_direction(change: Mapping[str, Any], old: ParameterDeclaration, new: ParameterDeclaration) -> Direction:
    if (old.stricter, old.type) != (new.stricter, new.type):
        return None
    if change["field"] in ("default", "value"):
        laxer, stricter = old.laxer(change["new"], change["old"]), old.laxer(change["old"], change["new"])
        if laxer == stricter:
            return None  # a list that both lost and won entries
        return "laxer" if laxer else "stricter"
    # The limit on the lax side says how far an organisation may go; the other one only how strict it may be.
    if change["field"] == "maximum" and old.stricter == "lower":
        return _ordered(-_or(old.maximum, float("inf")), -_or(new.maximum, float("inf")))
    if change["field"] == "minimum" and old.stricter == "higher":
        return _ordered(_or(old.minimum, float("-inf")), _or(new.minimum, float("-inf")))
    return None


def _or(limit: float | None, otherwise: float) -> float:
    return otherwise if limit is None else limit


def _rules_by_id(policy: Policy) -> dict[str, RuleText]:
    return {f"{pack.id}/{rule.text.id}": rule.text for pack in policy.packs for rule in pack.rules}


def _pack_fields(pack: Pack) -> dict[str, Any]:
    fields = _fields(pack.text)
    del fields["rules"], fields["pack"]
    scopes = {gate: _fields(scope.text) for gate, scope in sorted(pack.scopes.items())}
    for gate, scope in scopes.items():
        del scope["gates"]
        fields[f"scope at {gate}"] = scope
    del fields["scopes"]
    return fields


def _declared(declarations: Sequence[BaseModel], key: str) -> dict[str, dict[str, Any]]:
    return {getattr(declaration, key): _fields(declaration) for declaration in declarations}


def _fields(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


def _sides(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    changed = []
    for name in sorted(old.keys() & new.keys()):
        fields = [*old[name], *(field for field in new[name] if field not in old[name])]
        changes = [
            {"field": field, "old": old[name].get(field), "new": new[name].get(field), "direction": None}
            for field in fields
            if old[name].get(field) != new[name].get(field)
        ]
        if changes:
            changed.append({"id": name, "changes": changes})
    return {
        "added": [{"id": name, "direction": None} for name in sorted(new.keys() - old.keys())],
        "removed": [{"id": name, "direction": None} for name in sorted(old.keys() - new.keys())],
        "changed": changed,
    }


def _leaning(item: Mapping[str, Any]) -> str:
    return f" ({item['direction']})" if item["direction"] else ""


def _shown(value: Any) -> str:
    if value is None:
        return "(none)"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value) or "(none)"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_shown(item)}" for name, item in value.items())
    return str(value)
