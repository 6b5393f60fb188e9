"""A rule in plain words, before anything is decided: what it asks, on whose authority, and what happens if not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from policies.facts import FactCatalogue, in_words
from policies.findings import APPROVAL
from policies.packs import Gate, Pack, Policy, Rule
from policies.parameters import ParameterSchema

_USED = re.compile(r"params\.([a-z][a-z0-9_]*)")
_MOVE = {
    "lower": "a site may only lower it",
    "higher": "a site may only raise it",
    "subset": "a site may only take entries away",
}


def rules_of(policy: Policy, *, rule: str | None = None, gate: Gate | None = None) -> list[tuple[Pack, Rule]]:
    """The rules of that id, or at that gate, in the packs' order; empty where there is none."""
    return [
        (pack, found)
        for pack in policy.packs
        for found in pack.rules
        if (rule is None or found.text.id == rule) and (gate is None or gate in found.text.gates)
    ]


def rule_document(pack: Pack, rule: Rule, *, gate: Gate | None = None) -> dict[str, Any]:
    """Everything that decides about one rule, as JSON. `gate`: leave out the scopes of other gates."""
    text = rule.text
    gates = [name for name in text.gates if gate in (None, name)]
    scopes = [
        {"gate": name, "citation": scope.text.citation, "when": scope.when.text, "facts": list(scope.text.facts)}
        for name in gates
        if (scope := pack.scopes.get(name)) is not None
    ]
    guard = text.applies_when
    paths = [*text.facts, *(guard.facts if guard else ()), *(path for scope in scopes for path in scope["facts"])]
    expressions = [text.require, guard.when if guard else "", text.message, *(str(scope["when"]) for scope in scopes)]
    return {
        "rule": text.id,
        "pack": pack.id,
        "pack_version": pack.text.version,
        "citation": text.citation,
        "gates": list(text.gates),
        "valid_from": text.valid_from.isoformat(),
        "valid_to": text.valid_to.isoformat() if text.valid_to else None,
        "scopes": scopes,
        "applies_when": guard.when if guard else None,
        "require": text.require,
        "facts": [_fact(path, pack.catalogue) for path in dict.fromkeys(paths)],
        "parameters": _parameters(expressions, pack.schema),
        "effect": text.effect,
        "consequence": consequence(text.effect),
        "message": text.message,
        "remedy": text.remedy,
        "note": text.note,
    }


def rule_in_words(document: dict[str, Any]) -> str:
    """What `rule_document` gave, as several lines for a person."""
    until = f" until {document['valid_to']}" if document["valid_to"] else ""
    lines = [
        f"{document['rule']}: {document['citation']}",
        f"  Pack:             {document['pack']} {document['pack_version']}, in force from {document['valid_from']}"
        + until,
        f"  Looked at:        at the {_listed(document['gates'])} gate{'s' if len(document['gates']) > 1 else ''}",
    ]
    lines += [
        f"  Only where:       {when} (at {_listed(gates)}; {citation})"
        for (when, citation), gates in _by_scope(document["scopes"]).items()
    ]
    if document["applies_when"]:
        lines.append(f"  Only where:       {document['applies_when']}")
    lines += [f"  Must hold:        {document['require']}", "  Facts needed:"]
    lines += [f"    {fact['path']} ({fact['type']}): {fact['description']}" for fact in document["facts"]]
    if document["parameters"]:
        lines.append("  Parameters:")
        lines += [
            f"    {parameter['name']} = {in_words(parameter['default'])} ({_MOVE[parameter['stricter']]}): "
            f"{parameter['description']}"
            for parameter in document["parameters"]
        ]
    lines += [
        f"  If it is broken:  {document['consequence']}",
        "  If a fact lacks:  the gate stays shut, whatever the effect above.",
        f"  It then says:     {document['message']}",
        f"  What to do:       {document['remedy']}",
    ]
    if document["note"]:
        lines.append(f"  Note:             {document['note']}")
    return "\n".join(lines)


def consequence(effect: str) -> str:
    """What an effect does to a gate, as a sentence."""
    if effect == "evidence":
        return "the gate waits until the evidence is supplied."
    if effect.startswith(APPROVAL):
        return f"the gate waits until a {effect.removeprefix(APPROVAL).replace('_', ' ')} has approved."
    return "a warning stands in the decision; the gate may open." if effect == "warn" else "the gate stays shut."


def _fact(path: str, catalogue: FactCatalogue) -> dict[str, str]:
    declared = catalogue[path]
    return {"path": path, "type": declared.type, "description": declared.description}


def _parameters(expressions: Iterable[str], schema: ParameterSchema) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for text in expressions for name in _USED.findall(text))
    found = (schema.get(name) for name in names)
    return [
        {"name": p.name, "default": p.default, "stricter": p.stricter, "description": p.description}
        for p in found
        if p is not None
    ]


def _by_scope(scopes: list[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    gathered: dict[tuple[str, str], list[str]] = {}
    for scope in scopes:
        gathered.setdefault((scope["when"], scope["citation"]), []).append(scope["gate"])
    return gathered


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
