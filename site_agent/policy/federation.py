"""Sets of packs that the federation decides by, kept at the site once they verify and are found no laxer than its own.

The site always decides by its own packs as well, so that another set can only add to them here. What it refuses is to
take part in a study whose other gates, at the coordinator, are judged by laxer packs than its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from policies.difference import Leaning, compare, in_words, leaning
from policies.documents import BadPolicyDocument
from policies.packs import SHARED, Pack, Policy, builtin_packs, load_pack, policy_from
from policies.parameters import BadParameter, Parameters, load_organisation
from protocol.activated_policy import ActivatedPolicy, read_bundle
from protocol.audit_event import EventType
from protocol.canonical import parse, sha256_hex
from protocol.errors import Refused
from protocol.policy_set import deciding, policy_digest
from protocol.signing import VerifyingKey
from site_agent.durable_files import make_private_folder, write_durably
from site_agent.settings import SiteHome

FOLDER = "federation-policy"
MAX_BUNDLE = 4 << 20
PREFIX = "federation-"


class PolicyLaxer(Refused):
    """The federation's packs let through what this site's own refuse, or can't be put in order with them."""

    code = "policy-laxer"


@dataclass(frozen=True)
class Compared:
    """A verified set beside the site's own documents. words: the difference, for a person."""

    found: ActivatedPolicy
    leaning: Leaning
    words: str

    @property
    def needs_a_person(self) -> bool:
        """Whether somebody here has to read the difference before the set is taken."""
        return bool(self.leaning.unordered or self.leaning.settings)


def own_documents() -> dict[str, str]:
    """The digests of what the installed package decides by, as a plan's packs name them."""
    return {name: sha256_hex(data) for name, data in deciding_bytes(builtin_packs()).items()}


def deciding_bytes(documents: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those documents that decide."""
    names = deciding(dict.fromkeys(documents, ""))
    return {name: documents[name] for name in names}


def compare_with_own(data: bytes, coordinator: VerifyingKey) -> Compared:
    """A bundle as the coordinator serves it, verified under its pinned key and compared with the package's own packs.

    Raises BadSignature, VerificationFailed, Malformed; BadPolicyDocument or BadParameter for packs that this version
    of the package can't evaluate.
    """
    found = read_bundle(data, coordinator)
    own = policy_from(builtin_packs())
    theirs = policy_from(found.documents)
    report = compare(own, theirs)
    joined(own, found)
    return Compared(found, leaning(report), in_words(report))


def adopt(home: SiteHome, data: bytes, compared: Compared, *, accepted: bool) -> None:
    """Keep a set. Raises PolicyLaxer for one that is laxer in any rule, whoever accepts it, and, unless somebody here
    accepted it, for one that moves a parameter the lax way or can't be put in order with the site's own."""
    lax = compared.leaning.laxer
    if lax:
        raise PolicyLaxer(
            f"The federation's packs are laxer than this site's own in: {_named(lax)}.",
            "Take part in nothing that is judged by them; ask the federation for packs at least as strict.",
        )
    if compared.needs_a_person and not accepted:
        moved = (*compared.leaning.settings, *compared.leaning.unordered)
        raise PolicyLaxer(
            f"A person here has to read what the federation's packs change: {_named(moved)}.",
            f"Read cloister-site policy show; then cloister-site policy accept {compared.found.set.policy}.",
        )
    folder = home.path / FOLDER
    make_private_folder(folder)
    write_durably(_path(folder, compared.found.set.policy), data)


def known(home: SiteHome, packs: Mapping[str, str]) -> bool:
    """Whether a plan's packs are the site's own, or a set that it adopted."""
    return dict(packs) == own_documents() or _path(home.path / FOLDER, policy_digest(packs)).is_file()


def stored(home: SiteHome) -> tuple[Path, ...]:
    """The files of all adopted sets, in order of name."""
    folder = home.path / FOLDER
    if not folder.is_dir():
        return ()
    return tuple(sorted(folder / name for name in os.listdir(folder) if name.endswith(".json")))


def newest(home: SiteHome, coordinator: VerifyingKey) -> ActivatedPolicy | None:
    """The adopted set with the highest number, verified again. Raises as `read_bundle`."""
    found = [read_bundle(_read(path), coordinator) for path in stored(home)]
    return max(found, key=lambda one: one.set.number, default=None)


def joined(own: Policy, federation: ActivatedPolicy) -> Policy:
    """The site's own policy with the federation's packs beside it, where they differ, under names of their own, and at
    the federation's values. Raises BadPolicyDocument, BadParameter where this package can't evaluate them."""
    added: list[Pack] = []
    for name, data in sorted(deciding_bytes(federation.documents).items()):
        if name in SHARED or own.documents.get(name) == sha256_hex(data):
            continue
        pack = load_pack(data, own.catalogue, own.parameters.schema, name)
        text = pack.text.model_copy(update={"pack": f"{PREFIX}{pack.id}"[:40]})
        added.append(replace(pack, text=text))
    values: Parameters = own.parameters
    if "organisation" in federation.documents:
        values = values.for_organisation(load_organisation(federation.documents["organisation"]))
    return replace(own, packs=(*own.packs, *added), parameters=values)


def logged_policy(entries: Iterable[bytes], plan_digest: str) -> str | None:
    """The policy that this site's own copy of the log tells was in force when the plan was proposed, or last where the
    log does not reach that far; None where it tells of none."""
    current: str | None = None
    activated, proposed = f'"{EventType.PACKS_ACTIVATED}"'.encode(), f'"{EventType.STUDY_PROPOSED}"'.encode()
    for entry in entries:
        if activated in entry:
            match parse(entry):
                case {"event": EventType.PACKS_ACTIVATED, "digests": {"policy": str(policy)}}:
                    current = policy
        elif proposed in entry and plan_digest.encode() in entry:
            match parse(entry):
                case {"event": EventType.STUDY_PROPOSED, "digests": {"plan": str(named)}} if named == plan_digest:
                    return current
    return current


def why_unknown(home: SiteHome, packs: Mapping[str, str]) -> str | None:
    """The documents of a plan that this site neither has nor adopted, in words; None where it knows them."""
    if known(home, packs):
        return None
    own = own_documents()
    return _named(tuple(sorted(name for name in own.keys() | dict(packs).keys() if own.get(name) != packs.get(name))))


def settle(home: SiteHome, coordinator: str, fetch: Callable[[str], bytes], packs: Mapping[str, str]) -> None:
    """Fetch and adopt the set that a plan's packs name, where the site does not know it and it is only stricter.

    `fetch(policy)`: the bundle's bytes. What is laxer, needs a person or a newer package is left: the review then
    objects. Raises BadSignature, VerificationFailed, Malformed for a set that does not verify.
    """
    if known(home, packs):
        return
    data = fetch(policy_digest(packs))
    try:
        adopt(home, data, compare_with_own(data, VerifyingKey.from_text(coordinator)), accepted=False)
    except (PolicyLaxer, BadPolicyDocument, BadParameter):
        return


def _named(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _path(folder: Path, policy: str) -> Path:
    return folder / f"{policy.removeprefix('sha256:')}.json"


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BUNDLE)
