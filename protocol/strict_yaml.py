"""YAML that has one meaning: the JSON types of YAML 1.2's core schema, each with its line.

Refused: anchors and aliases, tags, merge keys, duplicate keys, keys that are not strings, several documents, nesting
deeper than 32 and documents over a size limit. `no` and `on` are strings, `012` is refused, a date is a string: a data
dictionary must not change its meaning with the parser.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from pydantic import ValidationError

from protocol.errors import Malformed

if TYPE_CHECKING:
    import yaml  # otherwise where a document is read: an idle agent reads none

YamlValue: TypeAlias = bool | int | float | str | list["YamlValue"] | dict[str, "YamlValue"] | None
Path: TypeAlias = tuple[str | int, ...]

MAX_DEPTH = 32
DEFAULT_LIMIT = 256 * 1024
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class YamlDocument:
    """A parsed document: its value, and for each path in it the line (from 1) where it stands."""

    value: YamlValue
    lines: dict[Path, int] = field(repr=False)

    def line(self, path: Path) -> int:
        """The line of `path`, or of the nearest part above it that the document has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def refuse(self, path: Path, message: str, remedy: str) -> Malformed:
        """The error for something wrong at `path`: it begins with the line."""
        return Malformed(f"line {self.line(path)}: {message}", remedy)

    def refuse_validation(self, error: ValidationError, above: Path = ()) -> Malformed:
        """The error for a document that pydantic refused; `above`: where the validated part stands.

        Every finding is named by line and field, at most ten; values are never repeated.
        """
        findings = []
        for item in error.errors(include_url=False, include_input=False, include_context=False):
            place = above + tuple(part for part in item["loc"] if isinstance(part, str | int))
            shown = self._shown(place)
            missing = f"{shown}.{place[-1]}".strip(".") if item["type"] == "missing" and place else shown
            text = item["msg"].removeprefix("Value error, ")
            findings.append(f"line {self.line(place)}: {missing + ': ' if missing else ''}{text}")
        more = f" (and {len(findings) - 10} more)" if len(findings) > 10 else ""
        return Malformed("; ".join(findings[:10]) + more, "Correct the named lines.")

    def _shown(self, place: Path) -> str:
        """The part of a path that the document has, in words; an item of a list by its own `name` if it has one."""
        words: list[str] = []
        value: YamlValue = self.value
        for index, part in enumerate(place):
            if place[: index + 1] not in self.lines:
                continue  # a part that pydantic put in, such as the kind of a union
            if isinstance(value, dict):
                value = value.get(str(part))
            elif isinstance(value, list) and isinstance(part, int):
                value = value[part]
            name = value.get("name") if isinstance(value, dict) and isinstance(part, int) else None
            words.append(name[:64] if isinstance(name, str) and name.isprintable() else str(part))
        return ".".join(words)


def load_yaml(data: bytes, *, limit: int = DEFAULT_LIMIT) -> YamlDocument:
    """The one document in UTF-8 `data`. Raises Malformed, with the line, for anything refused."""
    import yaml

    if len(data) > limit:
        raise Malformed(f"The file has {len(data)} bytes; the limit is {limit}.", "Send a smaller file.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Malformed("The file is not UTF-8 text.", "Check that it is the right file, saved as UTF-8.") from None
    try:
        _refuse_events(text)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Malformed(f"line {line}: this is not YAML ({error.problem}).", "Correct the line.") from None
    except yaml.YAMLError:
        raise Malformed(
            "The file holds characters that YAML does not allow.", "Check that it is the right text file."
        ) from None
    if node is None:
        raise Malformed("The file is empty.", "Write the document.")
    lines: dict[Path, int] = {}
    return YamlDocument(_value(node, (), lines), lines)


def _refuse_events(text: str) -> None:
    import yaml

    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise Malformed(f"line {line}: anchors and aliases are not allowed.", "Write the value out.")
        if getattr(event, "tag", None):
            raise Malformed(f"line {line}: tags are not allowed.", "Write plain values.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        if depth > MAX_DEPTH:
            raise Malformed(f"line {line}: nested deeper than {MAX_DEPTH}.", "Write a flatter document.")
        if documents > 1:
            raise Malformed(f"line {line}: a second document begins.", "Put one document in the file.")


def _value(node: yaml.Node, path: Path, lines: dict[Path, int]) -> YamlValue:
    import yaml

    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, index), lines) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines)
    assert isinstance(node, yaml.ScalarNode)
    if node.style is not None:
        return str(node.value)
    return _plain(node.value, lines[path])


def _mapping(node: yaml.MappingNode, path: Path, lines: dict[Path, int]) -> dict[str, YamlValue]:
    import yaml

    result: dict[str, YamlValue] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise Malformed(f"line {line}: a key is not a plain word.", "Use words as keys.")
        key = str(key_node.value)
        if key == "<<" and key_node.style is None:
            raise Malformed(f"line {line}: merge keys are not allowed.", "Write the fields out.")
        if key in result:
            raise Malformed(f"line {line}: the key {key[:64]!r} stands twice.", "Give each key once.")
        result[key] = _value(value_node, (*path, key), lines)
        lines[(*path, key)] = line
    return result


def _plain(text: str, line: int) -> YamlValue:
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INTEGER.fullmatch(text):
        return int(text)
    if _LEADING_ZERO.fullmatch(text):
        raise Malformed(
            f"line {line}: a number begins with 0.", "Quote it if it is a code; drop the zeros if it is a number."
        )
    if _NOT_FINITE.fullmatch(text):
        raise Malformed(f"line {line}: a number is not finite.", "Use a finite number.")
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise Malformed(f"line {line}: a number is too large.", "Use a finite number.")
        return number
    return text
