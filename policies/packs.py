"""Rule packs: data that says, gate by gate, what must hold, on whose authority and what to do about it.

A pack is compiled when it is loaded, so a pack that uses an undeclared fact, misspells a parameter or breaks the
form is refused before it can decide anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property
from importlib import resources
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from policies.documents import BadPolicyDocument, load_yaml, parse_document
from policies.engine import Expression, ExpressionError, compile_expression
from policies.facts import FactCatalogue
from policies.parameters import Parameters, ParameterSchema, load_organisation, load_parameters
from protocol.canonical import sha256_hex
from protocol.identifiers import Role
from protocol.policy_set import CASES, policy_digest

SHARED = ("facts", "parameters", "organisation")
"""Documents that are no packs: the fact catalogue, the parameters' declarations, and the organisation's own values."""

Gate = Literal["enrolment", "proposal", "consent", "round", "aggregation", "release", "serving", "retention"]
GATES: tuple[Gate, ...] = (
    "enrolment",
    "proposal",
    "consent",
    "round",
    "aggregation",
    "release",
    "serving",
    "retention",
)
PLACEHOLDER = re.compile(r"\{([a-z0-9_.]+)\}")
_EFFECTS = "|".join(["deny", "evidence", "warn", *(f"approval:{role.value}" for role in Role)])

RuleId = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9-]{1,39}$")]
PackId = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{1,39}$")]
Sentence = Annotated[str, StringConstraints(min_length=8, max_length=600, strip_whitespace=True)]
Cel = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Paths = Annotated[tuple[str, ...], Field(max_length=40)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Guard(_Closed):
    """When a rule applies at all. Evaluated as strictly as the rule: a missing fact here denies too."""

    facts: Annotated[Paths, Field(min_length=1)]
    when: Cel


class Scope(_Closed):
    """When a whole pack applies at some gates, e.g. where a site under that law takes part."""

    gates: Annotated[tuple[Gate, ...], Field(min_length=1)]
    citation: Sentence
    facts: Annotated[Paths, Field(min_length=1)]
    when: Cel


class _Validity(_Closed):
    valid_from: date
    valid_to: date | None = None

    @model_validator(mode="after")
    def _ordered(self) -> _Validity:
        if self.valid_to is not None and self.valid_to < self.valid_from:
            raise ValueError("valid_to is before valid_from")
        return self

    def valid_on(self, day: date) -> bool:
        """Whether `day` (UTC) lies within valid_from and valid_to, both included."""
        return self.valid_from <= day and (self.valid_to is None or day <= self.valid_to)


UNWAIVABLE = frozenset({"actor", "approvals", "audit", "dataset", "ledger", "plan", "round", "site", "update"})
"""No rule that rests on such a fact can be waived: the log, approvals, consent and the data themselves."""


class RuleText(_Validity):
    """One rule as written. waivable: approvers may answer for it at the release gate, for a time and with a reason;
    only where it asks for a paper, and never on a fact of UNWAIVABLE."""

    id: RuleId
    citation: Sentence
    gates: Annotated[tuple[Gate, ...], Field(min_length=1)]
    facts: Annotated[Paths, Field(min_length=1)]
    require: Cel
    effect: Annotated[str, StringConstraints(pattern=f"^({_EFFECTS})$")]
    message: Sentence
    remedy: Sentence
    applies_when: Guard | None = None
    offenders: Cel | None = None
    waivable: bool = False
    note: Annotated[str, StringConstraints(max_length=600)] = ""

    @model_validator(mode="after")
    def _may_be_waived(self) -> RuleText:
        if not self.waivable:
            return self
        if self.effect != "evidence" or self.gates != ("release",):
            raise ValueError("only a rule of the release gate that asks for evidence can be waivable")
        if fixed := sorted({path.partition(".")[0] for path in self.facts} & UNWAIVABLE):
            raise ValueError(f"a rule on {fixed[0]} can't be waivable")
        return self


class PackText(_Validity):
    """A pack as written."""

    pack: PackId
    version: Annotated[str, StringConstraints(pattern=r"^\d{4}\.\d{1,2}\.\d{1,3}$")]
    title: Sentence
    scopes: tuple[Scope, ...] = ()
    rules: Annotated[tuple[RuleText, ...], Field(min_length=1, max_length=200)]

    @model_validator(mode="after")
    def _coherent(self) -> PackText:
        ids = [rule.id for rule in self.rules]
        if doubled := sorted({identifier for identifier in ids if ids.count(identifier) > 1}):
            raise ValueError(f"rule {doubled[0]} is given twice; every rule has its own id")
        scoped = [gate for scope in self.scopes for gate in scope.gates]
        if doubled := sorted({gate for gate in scoped if scoped.count(gate) > 1}):
            raise ValueError(f"gate {doubled[0]} has two scopes")
        used = {gate for rule in self.rules for gate in rule.gates}
        if self.scopes and (unscoped := sorted(used - set(scoped))):
            raise ValueError(f"gate {unscoped[0]} has rules and no scope, though the pack declares scopes")
        return self


@dataclass(frozen=True)
class Rule:
    """A compiled rule."""

    text: RuleText
    require: Expression
    guard: Expression | None
    offenders: Expression | None


@dataclass(frozen=True)
class CompiledScope:
    """A compiled scope."""

    text: Scope
    when: Expression


@dataclass(frozen=True)
class Pack:
    """A pack that was checked and compiled. `digest` is over the document's own bytes."""

    text: PackText
    digest: str
    rules: tuple[Rule, ...]
    scopes: dict[str, CompiledScope]
    catalogue: FactCatalogue
    schema: ParameterSchema

    @property
    def id(self) -> str:
        """The pack's name."""
        return self.text.pack

    def at(self, gate: str, now: datetime) -> list[Rule]:
        """The rules of a gate that are in force."""
        day = now.astimezone(UTC).date()
        known = self._in_force.get(gate)
        if known is None or known[0] != day:
            rules = [rule for rule in self.rules if gate in rule.text.gates and rule.text.valid_on(day)]
            known = self._in_force[gate] = (day, rules)
        return known[1]

    @cached_property
    def _in_force(self) -> dict[str, tuple[date, list[Rule]]]:
        return {}  # per gate, for the day that was asked of last

    def facts_needed(self, gate: str) -> set[str]:
        """Every path that this pack may ask for at a gate."""
        paths = set(self.scopes[gate].text.facts) if gate in self.scopes else set()
        for rule in self.rules:
            if gate in rule.text.gates:
                paths |= set(rule.text.facts)
                paths |= set(rule.text.applies_when.facts) if rule.text.applies_when else set()
        return paths


@dataclass(frozen=True)
class Policy:
    """What one party decides by: its packs and its parameters. documents: the digests of all that it was made from."""

    catalogue: FactCatalogue
    packs: tuple[Pack, ...]
    parameters: Parameters
    documents: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One digest over all that decides."""
        return policy_digest(self.documents)

    def facts_needed(self, gate: str) -> list[str]:
        """Every fact path that some rule may ask for at a gate, sorted: what a gatherer must supply."""
        return sorted(set().union(*(pack.facts_needed(gate) for pack in self.packs)))


def load_catalogue(data: bytes, document: str = "facts") -> FactCatalogue:
    """Read a fact catalogue. Raises BadPolicyDocument."""
    return parse_document(FactCatalogue, load_yaml(data, document), document)


def load_pack(data: bytes, catalogue: FactCatalogue, schema: ParameterSchema, document: str = "pack") -> Pack:
    """Read, check and compile a pack. Raises BadPolicyDocument naming pack, rule and remedy."""
    loaded = load_yaml(data, document)
    name = loaded.get("pack")
    document = f"pack {name[:40]}" if isinstance(name, str) and name.isprintable() else document
    text = parse_document(PackText, loaded, document)
    rules = tuple(_compile(rule, document, catalogue, schema) for rule in text.rules)
    scopes: dict[str, CompiledScope] = {}
    for scope in text.scopes:
        where = f"scope of {', '.join(scope.gates)}"
        compiled = CompiledScope(scope, _expression(scope.when, scope.facts, where, document, None, catalogue, schema))
        scopes |= dict.fromkeys(scope.gates, compiled)
    return Pack(text, sha256_hex(data), rules, scopes, catalogue, schema)


def builtin_packs() -> dict[str, bytes]:
    """The documents that ship with Cloister, by name: facts, parameters, the packs, and cases/<pack>."""
    root = resources.files("policies").joinpath("packs")
    documents = {}
    for folder, prefix in ((root, ""), (root.joinpath("cases"), "cases/")):
        for entry in folder.iterdir():
            if entry.name.endswith(".yaml"):
                documents[prefix + entry.name.removesuffix(".yaml")] = entry.read_bytes()
    return dict(sorted(documents.items()))


def policy_from(documents: dict[str, bytes]) -> Policy:
    """Compile a set of documents in the form of `builtin_packs`, at the organisation's values where the document
    `organisation` gives them, else at default parameters.

    Raises BadPolicyDocument, BadParameter.
    """
    for required in ("facts", "parameters"):
        if required not in documents:
            raise BadPolicyDocument(required, "the document is absent", "Supply it beside the packs.")
    catalogue = load_catalogue(documents["facts"])
    schema = load_parameters(documents["parameters"])
    packs = tuple(
        load_pack(data, catalogue, schema, name)
        for name, data in sorted(documents.items())
        if name not in SHARED and not name.startswith(CASES)
    )
    identifiers = [pack.id for pack in packs]
    if doubled := sorted({name for name in identifiers if identifiers.count(name) > 1}):
        raise BadPolicyDocument(f"pack {doubled[0]}", "two documents carry this pack id", "Keep one of them.")
    parameters = schema.defaults()
    if "organisation" in documents:
        parameters = parameters.for_organisation(load_organisation(documents["organisation"]))
    digests = {name: sha256_hex(documents[name]) for name in SHARED if name in documents}
    return Policy(catalogue, packs, parameters, digests | {pack.id: pack.digest for pack in packs})


def builtin_policy() -> Policy:
    """The packs that ship with Cloister, compiled, at default parameters."""
    return policy_from(builtin_packs())


def _compile(rule: RuleText, document: str, catalogue: FactCatalogue, schema: ParameterSchema) -> Rule:
    require = _expression(rule.require, rule.facts, "require", document, rule.id, catalogue, schema)
    guard = None
    if rule.applies_when is not None:
        when = rule.applies_when
        guard = _expression(when.when, when.facts, "applies_when", document, rule.id, catalogue, schema)
    offenders = None
    if rule.offenders is not None:
        offenders = _expression(
            rule.offenders, rule.facts, "offenders", document, rule.id, catalogue, schema, result="strings"
        )
    _check_message(rule, document, catalogue, schema)
    return Rule(rule, require, guard, offenders)


def _expression(
    text: str,
    facts: tuple[str, ...],
    field: str,
    document: str,
    rule: str | None,
    catalogue: FactCatalogue,
    schema: ParameterSchema,
    *,
    result: Literal["bool", "strings"] = "bool",
) -> Expression:
    try:
        return compile_expression(text, facts, catalogue, schema, result=result)
    except ExpressionError as error:
        raise BadPolicyDocument(
            document,
            f"{field}: {error}",
            "Declare every fact that the expression uses under facts, in the types of the fact catalogue.",
            rule=rule,
        ) from error


def _check_message(rule: RuleText, document: str, catalogue: FactCatalogue, schema: ParameterSchema) -> None:
    for name in PLACEHOLDER.findall(rule.message):
        if name == "offenders" and rule.offenders is not None:
            continue
        if name.startswith("params.") and schema.get(name.removeprefix("params.")) is not None:
            continue
        if name in rule.facts and catalogue[name].disclosed:
            continue
        raise BadPolicyDocument(
            document,
            f"message: {{{name}}} is not a parameter, nor a fact of this rule that may be shown",
            "Use the rule's own facts that the catalogue lets be shown, params.<name>, or offenders.",
            rule=rule.id,
        )
