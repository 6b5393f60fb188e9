"""A draft: sections of entries, each either known, with where it is known from, or plainly left to a person.

A draft never guesses. It carries the digests of what each section says, so that a later draft from newer facts shows
which of them are stale.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from protocol.canonical import canonical, digest, parse_canonical
from protocol.errors import Malformed

Kind = Literal["dpia", "ropa", "hipaa"]
KINDS: tuple[Kind, ...] = ("dpia", "ropa", "hipaa")
State = Literal["known", "fill-in", "pending"]
MARK = "TO BE FILLED IN"
"""How a blank begins, in every form."""
LATER = "NOT KNOWN YET"
MARKER = "cloister-draft: "
DESIGN = "how Cloister works"


@dataclass(frozen=True)
class Entry:
    """One item. known: value and its source. fill-in: what a person must say. pending: when the system will know."""

    item: str
    state: State
    text: str
    source: str = ""

    @property
    def shown(self) -> str:
        """The text with its mark."""
        return {"known": "", "fill-in": f"{MARK}: ", "pending": f"{LATER}: "}[self.state] + self.text


@dataclass(frozen=True)
class Section:
    """A titled part of a draft; citation: what asks for it."""

    title: str
    citation: str
    entries: tuple[Entry, ...]

    @property
    def digest(self) -> str:
        """Of what it says."""
        return digest([self.title, [[entry.item, entry.state, entry.text, entry.source] for entry in self.entries]])


@dataclass(frozen=True)
class Basis:
    """What a draft rests on. subject: the study, or the log; view: of a register; spec: the digest of the study's spec,
    "" for what is not about one; sections: what each said, by title."""

    kind: Kind
    subject: str
    view: str
    spec: str
    sections: dict[str, str]

    def to_text(self) -> str:
        """One line that `read_basis` finds in a document."""
        return MARKER + canonical(
            {
                "kind": self.kind,
                "subject": self.subject,
                "view": self.view,
                "spec": self.spec,
                "sections": self.sections,
            }
        ).decode("utf-8")


@dataclass(frozen=True)
class Draft:
    """A whole draft. notices: what a reader must know before the first section. made_at: when."""

    kind: Kind
    title: str
    subject: str
    made_at: str
    sections: tuple[Section, ...]
    notices: tuple[str, ...] = ()
    view: str = ""
    spec: str = ""

    @property
    def blanks(self) -> int:
        """How many entries are left to a person."""
        return sum(entry.state == "fill-in" for section in self.sections for entry in section.entries)

    @property
    def basis(self) -> Basis:
        """What it rests on."""
        return Basis(
            self.kind, self.subject, self.view, self.spec,
            {section.title: section.digest for section in self.sections},
        )  # fmt: skip


def known(item: str, value: object, source: str) -> Entry:
    """An entry that the system knows. ValueError for an empty value: that is a blank."""
    text = str(value).strip()
    if not text:
        raise ValueError(f"{item} has no value")
    return Entry(item, "known", text, source)


def blank(item: str, ask: str) -> Entry:
    """An entry that only a person can fill in."""
    return Entry(item, "fill-in", ask)


def pending(item: str, when: str) -> Entry:
    """An entry that the system will know, and does not yet."""
    return Entry(item, "pending", when)


def known_or_blank(item: str, value: object, source: str, ask: str) -> Entry:
    """The value where there is one, else the blank."""
    return known(item, value, source) if value is not None and str(value).strip() else blank(item, ask)


def listed(values: Iterable[object]) -> str:
    """Values in one line."""
    return ", ".join(str(value) for value in values)


def read_basis(text: str) -> Basis:
    """The basis in a document's text. Raises Malformed where there is none, or not one."""
    line = next((line.strip() for line in text.splitlines() if line.strip().startswith(MARKER)), None)
    if line is None:
        raise Malformed("This document is no draft of Cloister's: its last line is missing.", "Draft it again.")
    document = parse_canonical(line.removeprefix(MARKER).encode("utf-8"))
    match document:
        case {
            "kind": "dpia" | "ropa" | "hipaa" as kind, "subject": str(subject), "view": str(view), "spec": str(spec),
            "sections": dict(sections), **rest,
        } if not rest and all(isinstance(value, str) for value in sections.values()):  # fmt: skip
            return Basis(kind, subject, view, spec, {str(name): str(value) for name, value in sections.items()})
    raise Malformed(f"The draft's last line is damaged: {json.dumps(document)[:80]}.", "Draft it again.")


def stale_sections(before: Basis, now: Basis) -> tuple[str, ...]:
    """Titles of the sections that say something else now, are gone, or are new."""
    titles = {*before.sections, *now.sections}
    return tuple(sorted(title for title in titles if before.sections.get(title) != now.sections.get(title)))
