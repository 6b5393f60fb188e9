"""Facts: the typed, declared values that a rule may look at, and nothing else.

The catalogue (`packs/facts.yaml`) declares every path once, with its type. Whoever asks for a decision passes a
nested mapping; `Facts.of` keeps the declared paths, refuses wrong types and numbers that are not numbers, and
leaves absent what is absent or null. Absent means "nobody looked": a rule that needs the fact denies. Whoever
looked and found nothing says so with an empty string or an empty list.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from protocol.canonical import canonical
from protocol.errors import Malformed

ScalarType = Literal["string", "int", "double", "bool", "timestamp"]
FactType = Literal["string", "int", "double", "bool", "timestamp", "list", "map"]

PATH = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){0,3}")
MAX_STRING = 4096
MAX_ITEMS = 4096
MAX_INT = 2**53 - 1  # RFC 8785 numbers are IEEE doubles


class BadFact(Malformed):
    """A fact of the wrong type, out of range, or not a number."""

    code = "bad-fact"

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(
            f"fact {path}: {problem}.",
            f"Supply {path} in the form that the fact catalogue declares for it.",
        )
        self.path = path


class FactDeclaration(BaseModel):
    """One declared fact: its dotted path, its type, what it means and whether a finding may show its value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    type: FactType
    description: str = Field(min_length=8, max_length=400)
    items: ScalarType | dict[str, ScalarType] | None = None
    one_of: tuple[str, ...] | None = None
    item_one_of: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    minimum: float | None = None
    non_empty: bool = False
    shown: bool | None = None

    @model_validator(mode="after")
    def _coherent(self) -> FactDeclaration:
        if not PATH.fullmatch(self.path):
            raise ValueError(f"path {self.path!r} is not one to four dotted lower-case names")
        if self.path.split(".", 1)[0] in ("params", "now"):
            raise ValueError(f"path {self.path!r} begins with a name that the engine keeps for itself")
        container = self.type in ("list", "map")
        if container != (self.items is not None):
            raise ValueError(f"fact {self.path}: a list or a map, and only those, declares its items")
        if self.type == "map" and not isinstance(self.items, str):
            raise ValueError(f"fact {self.path}: a map holds scalars")
        if self.one_of is not None and self.type != "string":
            raise ValueError(f"fact {self.path}: one_of belongs to a string")
        if self.minimum is not None and self.type not in ("int", "double"):
            raise ValueError(f"fact {self.path}: minimum belongs to a number")
        fields = self.items if isinstance(self.items, dict) else {}
        if unknown := set(self.item_one_of) - set(fields):
            raise ValueError(f"fact {self.path}: item_one_of names unknown fields {sorted(unknown)}")
        return self

    @property
    def disclosed(self) -> bool:
        """Whether a finding may carry the value: flags, times, enumerated strings and numbers, unless declared."""
        if self.shown is not None:
            return self.shown
        return self.type in ("bool", "int", "double", "timestamp") or self.one_of is not None


FactTree = dict[str, "FactTree | FactDeclaration"]


class FactCatalogue(BaseModel):
    """Every declared fact, by path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = Field(min_length=1, max_length=40)
    facts: tuple[FactDeclaration, ...]

    @model_validator(mode="after")
    def _unique(self) -> FactCatalogue:
        paths = [fact.path for fact in self.facts]
        if doubled := {path for path in paths if paths.count(path) > 1}:
            raise ValueError(f"facts declared twice: {sorted(doubled)}")
        for path in paths:
            if nested := [other for other in paths if other.startswith(path + ".")]:
                raise ValueError(f"fact {path} would hold the declared fact {nested[0]}")
        return self

    _by_path: dict[str, FactDeclaration] = PrivateAttr(default_factory=dict)
    _tree: FactTree = PrivateAttr(default_factory=dict)

    def model_post_init(self, _context: object) -> None:
        """Index the declarations by path."""
        self._by_path = {fact.path: fact for fact in self.facts}

    @property
    def tree(self) -> FactTree:
        """The declarations, nested by the names of their paths."""
        if not self._tree:
            for fact in self.facts:
                *parents, leaf = fact.path.split(".")
                node: FactTree = self._tree
                for parent in parents:
                    below = node.setdefault(parent, {})
                    assert isinstance(below, dict)  # no fact holds another
                    node = below
                node[leaf] = fact
        return self._tree

    def get(self, path: str) -> FactDeclaration | None:
        """The declaration of `path`, or None where it is not declared."""
        return self._by_path.get(path)

    def __getitem__(self, path: str) -> FactDeclaration:
        return self._by_path[path]


def rfc3339(moment: datetime) -> str:
    """A time zone aware moment as RFC 3339 in UTC, to the microsecond where it has any."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def salted_digest(value: Any, salt: bytes) -> str:
    """`sha256:` hex over salt ‖ canonical JSON. Without a salt a small number's digest can be guessed."""
    return "sha256:" + hashlib.sha256(salt + canonical(value)).hexdigest()


@dataclass(frozen=True)
class Facts:
    """The declared facts that were supplied, normalised, by dotted path."""

    catalogue: FactCatalogue
    values: Mapping[str, Any]

    @classmethod
    def of(cls, catalogue: FactCatalogue, supplied: Mapping[str, Any]) -> Facts:
        """Keep what is declared. Raises BadFact for a wrong type, NaN, infinity, or a value that is too large."""
        values: dict[str, Any] = {}
        _gather(catalogue.tree, supplied, "", values)
        return cls(catalogue, values)

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Which of `paths` were not supplied."""
        return [path for path in paths if path not in self.values]

    def prune(self, paths: Iterable[str]) -> dict[str, Any]:
        """The values of `paths` alone, by path; absent ones are left out."""
        return {path: self.values[path] for path in paths if path in self.values}

    def to_json(self) -> dict[str, Any]:
        """Nested JSON of every supplied fact; timestamps as RFC 3339 in UTC."""
        nested: dict[str, Any] = {}
        for path, value in self.values.items():
            *parents, leaf = path.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = _plain(value)
        return nested

    def digest(self, salt: bytes = b"") -> str:
        """Deterministic digest of all supplied facts (RFC 8785 over `to_json`)."""
        return salted_digest(self.to_json(), salt)

    def digest_of(self, path: str, salt: bytes = b"") -> str:
        """Digest of one supplied fact."""
        return salted_digest(_plain(self.values[path]), salt)

    def shown(self, path: str) -> str | None:
        """The value in words where it may be disclosed, else None."""
        if path not in self.values or not self.catalogue[path].disclosed:
            return None
        return in_words(self.values[path])


def in_words(value: Any) -> str:
    """A scalar, or a list of scalars, for a sentence."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, list):
        return ", ".join(in_words(item) for item in value[:20])
    return str(value) or "(empty)"


def _gather(tree: FactTree, supplied: Mapping[str, Any], where: str, values: dict[str, Any]) -> None:
    """Walk declarations and supplied facts together, each mapping once."""
    for name, below in tree.items():
        value = supplied.get(name)
        if value is None:
            continue
        if isinstance(below, dict):
            if not isinstance(value, Mapping):
                raise BadFact(f"{where}{name}", f"must be a mapping, is {type(value).__name__}")
            _gather(below, value, f"{where}{name}.", values)
            continue
        normalised = _normalise(below, value)
        if below.non_empty and not normalised:
            continue  # an empty list here cannot stand for "none": the fact counts as missing
        values[below.path] = normalised


def _normalise(declaration: FactDeclaration, value: Any) -> Any:
    path = declaration.path
    if declaration.type == "list":
        if not isinstance(value, list | tuple):
            raise BadFact(path, f"must be a list, is {type(value).__name__}")
        if len(value) > MAX_ITEMS:
            raise BadFact(path, f"has more than {MAX_ITEMS} items")
        if isinstance(declaration.items, str) and all(_is_normal(declaration.items, item) for item in value):
            return list(value)
        return [_item(declaration, f"{path}[{index}]", item) for index, item in enumerate(value)]
    if declaration.type == "map":
        if not isinstance(value, Mapping):
            raise BadFact(path, f"must be a mapping, is {type(value).__name__}")
        if len(value) > MAX_ITEMS:
            raise BadFact(path, f"has more than {MAX_ITEMS} entries")
        kind = declaration.items
        assert isinstance(kind, str)
        return {_scalar("string", path, key): _scalar(kind, path, entry) for key, entry in value.items()}
    normalised = value if _is_normal(declaration.type, value) else _scalar(declaration.type, path, value)
    if declaration.one_of is not None and normalised not in declaration.one_of:
        raise BadFact(path, f"must be one of {', '.join(declaration.one_of)}")
    if declaration.minimum is not None and normalised < declaration.minimum:
        raise BadFact(path, f"must be at least {declaration.minimum:g}")
    return normalised


def _is_normal(kind: str, value: Any) -> bool:
    """Whether it is plain that `_scalar` returns this value as it is, as for most facts."""
    if kind == "string":
        return type(value) is str and len(value) <= MAX_STRING and value.isascii()
    if kind == "int":
        return type(value) is int and -MAX_INT <= value <= MAX_INT
    return kind == "bool" and (value is True or value is False)


def _item(declaration: FactDeclaration, where: str, item: Any) -> Any:
    kind = declaration.items
    if isinstance(kind, str):
        return _record_scalar(kind, where, item)
    assert kind is not None
    if not isinstance(item, Mapping):
        raise BadFact(where, f"must be a mapping, is {type(item).__name__}")
    record = {}
    for name, scalar in kind.items():
        value = item.get(name)
        if value is None:
            raise BadFact(f"{where}.{name}", "is missing")
        record[name] = value if _is_normal(scalar, value) else _record_scalar(scalar, f"{where}.{name}", value)
        if name in declaration.item_one_of and record[name] not in declaration.item_one_of[name]:
            raise BadFact(f"{where}.{name}", f"must be one of {', '.join(declaration.item_one_of[name])}")
    return record


def _record_scalar(kind: str, where: str, value: Any) -> Any:
    """Inside lists a timestamp stays RFC 3339 text: the engine takes no nested date; rules write timestamp(x)."""
    scalar = _scalar(kind, where, value)
    return rfc3339(scalar) if isinstance(scalar, datetime) else scalar


def _scalar(kind: str, path: str, value: Any) -> Any:
    match kind:
        case "bool" if isinstance(value, bool):
            return value
        case "int" if isinstance(value, int) and not isinstance(value, bool):
            if abs(value) > MAX_INT:
                raise BadFact(path, "is beyond the whole numbers that JSON can carry")
            return value
        case "double" if isinstance(value, int | float) and not isinstance(value, bool):
            if isinstance(value, int) and abs(value) > MAX_INT:
                raise BadFact(path, "is beyond the numbers that JSON can carry")
            if not math.isfinite(value):
                raise BadFact(path, "is not a finite number")
            return float(value)
        case "string" if isinstance(value, str):
            if len(value) > MAX_STRING:
                raise BadFact(path, f"is longer than {MAX_STRING} characters")
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise BadFact(path, "holds a character that UTF-8 cannot carry") from error
            return str(value)
        case "timestamp":
            return _timestamp(path, value)
    article = "an" if kind == "int" else "a"
    raise BadFact(path, f"must be {article} {kind}, is {type(value).__name__}")


def _timestamp(path: str, value: Any) -> datetime:
    moment = value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise BadFact(path, "is not an ISO 8601 date or an RFC 3339 time") from error
        if len(value) == 10:
            moment = moment.replace(tzinfo=UTC)
    elif isinstance(value, date) and not isinstance(value, datetime):
        moment = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(moment, datetime):
        raise BadFact(path, f"must be a timestamp, is {type(value).__name__}")
    if moment.tzinfo is None:
        raise BadFact(path, "is a time without a time zone")
    return moment.astimezone(UTC)


def _plain(value: Any) -> Any:
    return rfc3339(value) if isinstance(value, datetime) else value


__all__ = [
    "BadFact",
    "FactCatalogue",
    "FactDeclaration",
    "Facts",
    "in_words",
    "rfc3339",
    "salted_digest",
]
