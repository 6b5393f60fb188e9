"""A second, independent CEL implementation, to check the first against.

cel-python is a development dependency: `second_engine()` is None where it is not installed. It is never used to
decide; it binds nested maps where the first engine binds typed dotted variables, so that a fault in either binding
shows as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any


class SecondEngine:
    """cel-python behind one question: what does this expression come to?"""

    def __init__(self, celpy: Any) -> None:
        self._celpy = celpy
        self._environment = celpy.Environment()
        self._programs: dict[str, Any] = {}

    def truth(self, text: str, facts: Mapping[str, Any], parameters: Mapping[str, Any], now: datetime) -> bool | None:
        """True, false, or None where the evaluation failed or came to something else. `facts` by dotted path."""
        if text not in self._programs:
            self._programs[text] = self._environment.program(self._environment.compile(text))
        activation = _nest(facts) | {"params": dict(parameters), "now": now}
        bound = {name: self._convert(value) for name, value in activation.items()}
        try:
            result = self._programs[text].evaluate(bound)
        except self._celpy.CELEvalError:
            return None
        return bool(result) if isinstance(result, self._celpy.celtypes.BoolType) else None

    def _convert(self, value: Any) -> Any:
        types = self._celpy.celtypes
        match value:
            case bool():
                return types.BoolType(value)
            case int():
                return types.IntType(value)
            case float():
                return types.DoubleType(value)
            case str():
                return types.StringType(value)
            case datetime():
                return types.TimestampType(value)
            case list():
                return types.ListType([self._convert(item) for item in value])
            case dict():
                return types.MapType({self._convert(key): self._convert(entry) for key, entry in value.items()})
        raise TypeError(f"no CEL type for {type(value).__name__}")


def second_engine() -> SecondEngine | None:
    """The second engine, or None where cel-python is not installed."""
    try:
        import celpy
    except ImportError:
        return None
    return SecondEngine(celpy)


def _nest(facts: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in facts.items():
        *parents, leaf = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return nested
