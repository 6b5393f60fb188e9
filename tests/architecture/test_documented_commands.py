"""Every command and option that README and OPERATIONS name exists: documentation is held against --help."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer.main

ROOT = Path(__file__).parents[2]


def applications() -> dict[str, click.Command]:
    from coordinator.cli import app as coordinator
    from coordinator.client.cli import app as person
    from site_agent.cli import app as site

    named = {"cloister-coordinator": coordinator, "cloister-site": site, "cloister": person}
    return {name: typer.main.get_command(app) for name, app in named.items()}


def documented() -> list[str]:
    """`cloister… …` in code spans and blocks, with the README table's commands spelled out."""
    readme, operations = (ROOT / "README.md").read_text(), (ROOT / "docs" / "OPERATIONS.md").read_text()
    found = re.findall(r"`(cloister[a-z-]*(?: [^`]+)?)`", readme + operations)
    found += re.findall(r"^(cloister[a-z-]* .+?)(?:\s+#.*)?$", operations, flags=re.MULTILINE)
    for row in re.findall(r"^\|[^|]+\| `(cloister[a-z-]*)` \|(.+)\|$", readme, flags=re.MULTILINE):
        found += [f"{row[0]} {step}" for step in re.findall(r"`([^`]+)`", row[1])]
    return sorted({line for line in found if " " in line})


def resolve(line: str) -> tuple[click.Command, list[str]]:
    words = line.split()
    command: click.Command = applications()[words[0]]
    rest = words[1:]
    while rest and isinstance(command, click.Group):
        assert rest[0] in command.commands, f"{line}: there is no {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def test_there_is_something_to_check() -> None:
    assert len(documented()) > 20


@pytest.mark.parametrize("line", documented())
def test_documented_commands_exist(line: str) -> None:
    command, rest = resolve(line)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in re.findall(r"--[a-z-]+", " ".join(rest)):
        assert word in known | {"--help", "--json"}, f"{line}: there is no option {word}"
