"""Parameters: the numbers and lists that an organisation sets, apart from the rules that use them.

Each declares its type, its default, hard limits and which way is stricter. The organisation that runs the
federation may move a parameter within its limits; a site may only make it stricter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from policies.documents import load_yaml, parse_document
from policies.facts import MAX_INT, in_words
from protocol.canonical import digest
from protocol.errors import Refused

NAME = r"^[a-z][a-z0-9_]{1,59}$"
Setting = int | float | bool | list[str]


class BadParameter(Refused):
    """A parameter that is unknown, of the wrong type, beyond its limits, or laxer than the federation's."""

    code = "bad-parameter"


class ParameterDeclaration(BaseModel):
    """One parameter. `stricter` says which way a site may move it: lower, higher, or a subset of the list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME)
    type: Literal["int", "double", "string-list"]
    default: int | float | list[str]
    stricter: Literal["lower", "higher", "subset"]
    minimum: float | None = None
    maximum: float | None = None
    description: str = Field(min_length=8, max_length=400)

    @model_validator(mode="after")
    def _coherent(self) -> ParameterDeclaration:
        if (self.type == "string-list") != (self.stricter == "subset"):
            raise ValueError(f"parameter {self.name}: a list, and only a list, becomes stricter as a subset")
        self.check(self.default)
        return self

    def check(self, value: Any) -> Setting:
        """The value in its declared type. Raises ValueError in plain words."""
        if self.type == "string-list":
            if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"parameter {self.name} must be a list of strings")
            if len(set(value)) != len(value):
                raise ValueError(f"parameter {self.name} names an entry twice")
            return list(value)
        if isinstance(value, bool) or not isinstance(value, int if self.type == "int" else int | float):
            raise ValueError(f"parameter {self.name} must be {'a whole number' if self.type == 'int' else 'a number'}")
        if not math.isfinite(value) or abs(value) > MAX_INT:
            raise ValueError(f"parameter {self.name} must be a finite number")
        if self.minimum is not None and value < self.minimum:
            raise ValueError(f"parameter {self.name} must be at least {self.minimum:g}")
        if self.maximum is not None and value > self.maximum:
            raise ValueError(f"parameter {self.name} must be at most {self.maximum:g}")
        return value if self.type == "int" else float(value)

    def laxer(self, value: Setting, than: Setting) -> bool:
        """Whether `value` is laxer than `than`."""
        if isinstance(value, list) and isinstance(than, list):
            return not set(value) <= set(than)
        assert not isinstance(value, list)
        assert not isinstance(than, list)
        return value > than if self.stricter == "lower" else value < than


class ParameterSchema(BaseModel):
    """Every declared parameter, by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = Field(min_length=1, max_length=40)
    parameters: tuple[ParameterDeclaration, ...]

    _by_name: dict[str, ParameterDeclaration] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _unique(self) -> ParameterSchema:
        names = [parameter.name for parameter in self.parameters]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"parameters declared twice: {sorted(doubled)}")
        return self

    def model_post_init(self, _context: object) -> None:
        """Index the declarations by name."""
        self._by_name = {parameter.name: parameter for parameter in self.parameters}

    def get(self, name: str) -> ParameterDeclaration | None:
        """The declaration of `name`, or None."""
        return self._by_name.get(name)

    def defaults(self) -> Parameters:
        """Every parameter at its default."""
        return Parameters(self, {p.name: p.check(p.default) for p in self.parameters})


@dataclass(frozen=True)
class Parameters:
    """A full set of values: of the federation, or of one site."""

    schema: ParameterSchema
    values: Mapping[str, Setting]

    def for_organisation(self, override: Mapping[str, Any]) -> Parameters:
        """The federation's own values, within each parameter's limits. Raises BadParameter."""
        return self._override(override, only_stricter=False)

    def for_site(self, override: Mapping[str, Any]) -> Parameters:
        """A site's values, none laxer than these. Raises BadParameter naming the parameter."""
        return self._override(override, only_stricter=True)

    def tightened(self, override: Mapping[str, Any]) -> Parameters:
        """These values, and those of `override` that are stricter: which of the two is stricter decides, one by one.
        Raises BadParameter for an unknown parameter or a value that it can't take."""
        asked = self._override(override, only_stricter=False).values
        laxer = {p.name for p in self.schema.parameters if p.laxer(asked[p.name], self.values[p.name])}
        stricter = {name: asked[name] for name in override if name not in laxer}
        return Parameters(self.schema, {**self.values, **stricter})

    @cached_property
    def digest(self) -> str:
        """Digest of all values (RFC 8785)."""
        return digest(dict(self.values))

    @cached_property
    def bound(self) -> dict[str, Setting]:
        """The values as rules name them: `params.<name>`."""
        return {f"params.{name}": value for name, value in self.values.items()}

    def _override(self, override: Mapping[str, Any], *, only_stricter: bool) -> Parameters:
        values = dict(self.values)
        for name, value in override.items():
            declaration = self.schema.get(name)
            if declaration is None:
                raise BadParameter(
                    f"There is no parameter {str(name)[:60]!r}.",
                    f"Known parameters: {', '.join(p.name for p in self.schema.parameters)}.",
                )
            try:
                checked = declaration.check(value)
            except ValueError as error:
                raise BadParameter(f"{error}.", f"{name}: {declaration.description}") from error
            if only_stricter and declaration.laxer(checked, values[name]):
                raise BadParameter(
                    f"Parameter {name} = {in_words(checked)} is laxer than the federation's {in_words(values[name])}.",
                    "A site may only be stricter: "
                    + (
                        "name some of the federation's entries."
                        if declaration.stricter == "subset"
                        else f"choose a value that is not {'higher' if declaration.stricter == 'lower' else 'lower'}."
                    ),
                )
            values[name] = checked
        return Parameters(self.schema, values)


class _Organisation(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    values: dict[str, Any]


def load_organisation(data: bytes, document: str = "organisation") -> dict[str, Any]:
    """The organisation's own values, by parameter: `values: {epsilon_ceiling: 4.0}`. Raises BadPolicyDocument; whether
    a parameter exists and may take its value, `Parameters.for_organisation` says."""
    return parse_document(_Organisation, load_yaml(data, document), document).values


def load_parameters(data: bytes, document: str = "parameters") -> ParameterSchema:
    """Read a parameter document. Raises BadPolicyDocument."""
    return parse_document(ParameterSchema, load_yaml(data, document), document)
