"""The rule engine: CEL through cel-expr-python, compiled once and given only what a rule declared.

Every fact is a typed variable with a dotted name, so a rule that uses an undeclared fact, or compares a number
with a text, does not compile. At run time a failed evaluation arrives either as RuntimeError or as a value of
type ERROR whose Python value is a non-empty, hence truthy, string: only a BOOL counts, anything else is an error.
The library bounds nesting (32), iterations and regular expressions (RE2); the length of an expression is bounded
here, the size of a fact in `policies.facts`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cel_expr_python import cel

from policies.facts import FactCatalogue, FactDeclaration
from policies.parameters import Parameters, ParameterSchema

MAX_EXPRESSION = 2000
_STATUS = re.compile(r"[A-Z_]{4,40}")
_SCALAR = {
    "string": cel.Type.STRING,
    "int": cel.Type.INT,
    "double": cel.Type.DOUBLE,
    "bool": cel.Type.BOOL,
    "timestamp": cel.Type.TIMESTAMP,
}
_PARAMETER = {
    "int": cel.Type.INT,
    "double": cel.Type.DOUBLE,
    "string-list": cel.Type.List(cel.Type.STRING),
}


class ExpressionError(ValueError):
    """An expression that does not compile; the text is the compiler's, about the expression alone."""


class EvaluationError(Exception):
    """An evaluation without a result of the expected type. Carries the engine's status code, never a value."""


@dataclass(frozen=True)
class Expression:
    """A compiled expression, the facts it declared, and every variable that it must be given: facts and more."""

    text: str
    facts: tuple[str, ...]
    variables: tuple[str, ...]
    compiled: Any

    def truth(self, values: Mapping[str, Any]) -> bool:
        """True or false. Raises EvaluationError for anything else."""
        try:
            result = self.compiled.eval(data=values)
        except (RuntimeError, ValueError, TypeError) as error:
            raise EvaluationError(_code(str(error))) from None
        plain = result.plain_value()  # an error's is no bool, as its value() is no BOOL
        if plain is not True and plain is not False:
            raise EvaluationError(_status(result))
        return plain

    def strings(self, values: Mapping[str, Any]) -> list[str]:
        """A list of strings. Raises EvaluationError for anything else."""
        try:
            result = self.compiled.eval(data=values)
        except (RuntimeError, ValueError, TypeError) as error:
            raise EvaluationError(_code(str(error))) from None
        plain = result.plain_value()
        if result.type() == cel.Type.ERROR or not isinstance(plain, list):
            raise EvaluationError(_status(result))
        if not all(isinstance(item, str) for item in plain):
            raise EvaluationError("NOT_STRINGS")
        return plain


def compile_expression(
    text: str, facts: tuple[str, ...], catalogue: FactCatalogue, parameters: ParameterSchema, *, result: str = "bool"
) -> Expression:
    """Compile with the declared facts, all parameters and `now`. Raises ExpressionError.

    `result` is "bool" or "strings": what the expression must come to.
    """
    if len(text) > MAX_EXPRESSION:
        raise ExpressionError(f"longer than {MAX_EXPRESSION} characters")
    unknown = [path for path in facts if catalogue.get(path) is None]
    if unknown:
        raise ExpressionError(f"fact {unknown[0]} is not in the fact catalogue")
    declared = {path: _type(catalogue[path]) for path in facts}
    common = {f"params.{p.name}": _PARAMETER[p.type] for p in parameters.parameters} | {"now": cel.Type.TIMESTAMP}
    variables, compiled = _compile(text, declared, common)
    returned = compiled.return_type()
    wanted = (cel.Type.BOOL,) if result == "bool" else (cel.Type.List(cel.Type.STRING), cel.Type.LIST)
    if returned not in wanted:
        raise ExpressionError(f"comes to {returned.name()}, must come to {result}")
    unused = [path for path in facts if not _names(text, path)]
    if unused and result == "bool":
        raise ExpressionError(f"fact {unused[0]} is declared and not used")
    return Expression(text, facts, tuple(variables), compiled)


def bind(values: Mapping[str, Any], parameters: Parameters, now: datetime) -> dict[str, Any]:
    """The variables that evaluations at one moment choose from: facts by path, `params.<name>`, `now`."""
    return {**values, **parameters.bound, "now": now}


def _compile(text: str, declared: Mapping[str, Any], common: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The variables and the compiled text: of the common variables those that it names, all where that is not clear.

    What an evaluation costs grows with each variable that it is given, used or not.
    """
    named = {name: kind for name, kind in common.items() if _names(text, name)}
    for chosen in (named, common):
        variables = {**declared, **chosen}
        try:
            return variables, cel.NewEnv(variables=variables).compile(text)
        except (RuntimeError, ValueError, TypeError) as error:
            problem = _first_line(str(error))
    raise ExpressionError(problem)


def _names(text: str, variable: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(variable)}(?![\w])", text) is not None


def _type(declaration: FactDeclaration) -> Any:
    if declaration.type == "list":
        if isinstance(declaration.items, str):
            # a nested time is RFC 3339 text, see policies.facts
            kind = "string" if declaration.items == "timestamp" else declaration.items
            return cel.Type.List(_SCALAR[kind])
        return cel.Type.List(cel.Type.Map(cel.Type.STRING, cel.Type.DYN))
    if declaration.type == "map":
        assert isinstance(declaration.items, str)
        return cel.Type.Map(cel.Type.STRING, _SCALAR[declaration.items])
    return _SCALAR[declaration.type]


def _status(result: Any) -> str:
    return _code(str(result.value())) if result.type() == cel.Type.ERROR else f"RESULT_{result.type().name()}"


def _code(text: str) -> str:
    found = _STATUS.match(text)
    return found.group(0) if found else "FAILED"


def _first_line(text: str) -> str:
    line = text.splitlines()[0] if text else "does not compile"
    return re.sub(r"^[A-Z_]+: ERROR: ", "", line)[:200]
