"""Policy documents on disk: a folder in the form of the packs that ship with Cloister, or one pack's file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from policies.documents import MAX_BYTES
from policies.packs import SHARED, Policy, builtin_packs, policy_from
from protocol.errors import Malformed

BUILT_IN = "built-in"
_NEEDED = ("facts", "parameters")
_SUFFIX = ".yaml"
MAX_DOCUMENTS = 200


def read_documents(place: str | None) -> dict[str, bytes]:
    """The documents of a folder by name ("gdpr", "cases/gdpr", "facts" …); None and "built-in": Cloister's own.

    Raises Malformed where there is no folder, or one without packs.
    """
    if place is None or place == BUILT_IN:
        return builtin_packs()
    folder = Path(place)
    if not folder.is_dir():
        raise Malformed(f"There is no folder of packs at {folder}.", "Name a folder that holds packs as *.yaml.")
    documents = {
        prefix + path.stem: _read(path)
        for within, prefix in ((folder, ""), (folder / "cases", "cases/"))
        for path in _files(within)
    }
    if not any("/" not in name and name not in SHARED for name in documents):
        raise Malformed(f"{folder} holds no pack.", "Name a folder that holds packs as *.yaml, and facts.yaml.")
    return documents


def read_pair(old: str, new: str) -> tuple[Policy, Policy]:
    """Two policies to compare, compiled; where one side is a single pack's file, that pack alone is compared.

    A lone file is read with the facts and parameters beside it, else with the other side's, else with Cloister's
    own. Raises Malformed and BadPolicyDocument.
    """
    lone = {place for place in (old, new) if _is_file(place)}
    whole = [read_documents(place) for place in (old, new) if place not in lone]
    sides = []
    for place in (old, new):
        if place in lone:
            path = Path(place)
            beside = {name: _read(p) for name in SHARED if (p := path.with_name(name + _SUFFIX)).is_file()}
            shared = beside if set(_NEEDED) <= set(beside) else (whole[0] if whole else builtin_packs())
            documents = {name: shared[name] for name in SHARED if name in shared}
            sides.append(policy_from({**documents, path.stem: _read(path)}))
        else:
            sides.append(policy_from(read_documents(place)))
    if len(lone) == 1:
        only = {pack.id for place, side in zip((old, new), sides, strict=True) if place in lone for pack in side.packs}
        sides = [replace(side, packs=tuple(pack for pack in side.packs if pack.id in only)) for side in sides]
    return sides[0], sides[1]


def _is_file(place: str) -> bool:
    if place == BUILT_IN or Path(place).is_dir():
        return False
    if not Path(place).is_file() or Path(place).suffix != _SUFFIX or Path(place).stem in SHARED:
        raise Malformed(
            f"There are no packs at {place}.",
            f"Name a folder of packs, one pack's {_SUFFIX} file, or {BUILT_IN} for those that ship with Cloister.",
        )
    return True


def _files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*" + _SUFFIX))
    if len(found) > MAX_DOCUMENTS:
        raise Malformed(f"{folder} holds more than {MAX_DOCUMENTS} documents.", "Keep one body of law in one pack.")
    return found


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)  # one byte more than is allowed: the reader then says so
