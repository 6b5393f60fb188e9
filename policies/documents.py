"""Strict YAML: what a policy document may look like before its meaning is read.

Refused: more than 256 KiB, bytes that are not UTF-8, aliases and anchors (the expansion bomb), a key given twice,
tags beyond the plain ones, nesting deeper than 16.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from protocol.errors import Malformed

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16

M = TypeVar("M", bound=BaseModel)


class BadPolicyDocument(Malformed):
    """A pack, catalogue, parameter or case document that is refused; names document and rule."""

    code = "bad-policy-document"

    def __init__(self, document: str, problem: str, remedy: str, *, rule: str | None = None) -> None:
        where = f"{document}, rule {rule}" if rule else document
        super().__init__(f"{where}: {problem.rstrip('.')}.", remedy)
        self.document = document
        self.rule = rule


class _Refused(yaml.MarkedYAMLError):
    pass


class _StrictLoader(yaml.SafeLoader):
    depth = 0
    # dates stay text: the typed model reads them and can name the rule whose date is wrong
    yaml_implicit_resolvers = {  # noqa: RUF012 - the attribute's form is PyYAML's
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Refused(None, None, "anchors and aliases are not allowed", event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Refused(None, None, f"nested deeper than {MAX_DEPTH}", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or not isinstance(key.value, str):
                raise _Refused(None, None, "a key must be plain text", key.start_mark)
            if key.value in seen:
                raise _Refused(None, None, f"key {key.value[:60]!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(data: bytes, document: str) -> dict[str, Any]:
    """Read one YAML mapping. Raises BadPolicyDocument, naming the document and the line."""
    if len(data) > MAX_BYTES:
        raise BadPolicyDocument(
            document, f"larger than {MAX_BYTES // 1024} KiB", "Split the document; one pack holds one body of law."
        )
    try:
        text = data.decode("utf-8")
        loaded = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a stricter SafeLoader
    except UnicodeDecodeError as error:
        raise BadPolicyDocument(document, "not UTF-8 text", "Save the document as UTF-8 YAML.") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise BadPolicyDocument(
            document, f"{line}{error.problem or 'not valid YAML'}", "Correct that line; plain YAML only."
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise BadPolicyDocument(document, "not valid YAML", "Write plain YAML: mappings, lists, scalars.") from error
    if not isinstance(loaded, dict):
        raise BadPolicyDocument(document, "not a mapping at the top", "Begin with the document's own keys.")
    return loaded


def parse_document(model: type[M], loaded: dict[str, Any], document: str) -> M:
    """Give a loaded document its typed form. Raises BadPolicyDocument naming the rule, field and remedy."""
    try:
        return model.model_validate(loaded)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = f"{where}: {first['msg']}" if where else first["msg"]
        remedy = (
            "Remove the field, or correct its name."
            if first["type"] == "extra_forbidden"
            else "Correct the field as the message says."
        )
        raise BadPolicyDocument(document, problem, remedy, rule=_rule_at(loaded, first["loc"])) from error


def _rule_at(loaded: dict[str, Any], loc: tuple[int | str, ...]) -> str | None:
    if len(loc) >= 2 and loc[0] == "rules" and isinstance(loc[1], int):
        rule = loaded["rules"][loc[1]]
        if isinstance(rule, dict):
            return str(rule.get("id", f"number {loc[1] + 1}"))[:60]
    return None
