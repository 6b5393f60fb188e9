"""The page of threats names only tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "THREATS.md"
_NAMED = re.compile(r"`((?:[\w/]+\.py)?(?:::\w+)?)`")


def named() -> list[tuple[int, str, str]]:
    """(line, file, function) of each test that a row names; `::name` alone is of the file named before it."""
    found = []
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("| ") or line.startswith("|---"):
            continue
        file = ""
        for text in _NAMED.findall(line.rsplit("| ", 1)[-1]):
            path, _, function = text.partition("::")
            file = path or file
            if text:
                found.append((number, file, function))
    return found


def functions(file: str) -> set[str]:
    path = ROOT / "tests" / file
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_named_test_exists() -> None:
    rows = named()
    assert len(rows) > 100
    missing = [
        f"line {number}: {file}::{function}"
        for number, file, function in rows
        if not (ROOT / "tests" / file).is_file() or (function and function not in functions(file))
    ]
    assert missing == []


def test_every_threat_names_a_test() -> None:
    """A row without one is a promise that nothing holds: `the same` refers to the row above."""
    bare = [
        f"line {number}: {line[:80]}"
        for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), start=1)
        if line.startswith("| ") and line.count(" | ") >= 2
        and not re.search(r"\.py|\.yaml|the same", line.rsplit(" | ", 1)[-1]) and "Control | Test" not in line
    ]  # fmt: skip
    assert bare == []
