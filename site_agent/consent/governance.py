"""`governance.toml`: what the hospital itself says of its law, its data and its limits. No coordinator sets any of it.

There are no defaults for facts: until somebody has said them, every gate that asks for them stays shut.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from policies.packs import Policy, builtin_packs, policy_from
from protocol.attestation import HipaaRole
from protocol.errors import CloisterError
from protocol.identifiers import ColumnName, Frozen, Label
from protocol.proposal import Jurisdiction
from protocol.signing import VerifyingKey
from site_agent.durable_files import write_durably
from site_agent.policy.federation import MAX_BUNDLE, joined, newest, stored
from site_agent.settings import SiteHome, load_settings

FILE = "governance.toml"
PACKS = "packs"
EPSILON_LIMIT = 10.0
DELTA_LIMIT = 1e-3
_MAX_BYTES = 256 * 1024

Category = Literal["health", "genetic", "biometric", "other"]


class GovernanceUnset(CloisterError):
    """The hospital has not said what its gates need to know, or not in the agreed form."""

    code = "governance-unset"


class Governance(Frozen):
    """What this site says of itself.

    categories: of the data it holds for studies. collection_purpose: the code under which it was collected.
    direct_identifiers: columns that identify a person and may never be read. epsilon_limit, delta_limit: what any
    one patient's data may cost over all studies. parameters: policy parameters, each only stricter than the
    federation's.
    """

    jurisdiction: Jurisdiction
    hipaa_role: HipaaRole
    categories: Annotated[tuple[Category, ...], Field(min_length=1)]
    collection_purpose: Label
    direct_identifiers: tuple[ColumnName, ...] = ()
    epsilon_limit: Annotated[float, Field(gt=0, le=1000)] = EPSILON_LIMIT
    delta_limit: Annotated[float, Field(gt=0, lt=1)] = DELTA_LIMIT
    parameters: dict[str, int | float | list[str]] = Field(default_factory=dict)

    def to_toml(self) -> str:
        """The file's text. JSON strings, numbers and lists are TOML ones."""
        document = self.model_dump(mode="json")
        parameters = document.pop("parameters")
        lines = [f"{name} = {json.dumps(value)}" for name, value in document.items()]
        lines += ["", "[parameters]", *(f"{name} = {json.dumps(value)}" for name, value in parameters.items())]
        return "\n".join(["# What this hospital says of itself: see cloister-site governance --help.", *lines, ""])


def load_governance(home: SiteHome) -> Governance:
    """Read `governance.toml`. Raises GovernanceUnset when it is absent or wrong."""
    path = home.path / FILE
    remedy = f"Run cloister-site governance set, or correct {path}."
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES)
        return Governance.model_validate(tomllib.loads(raw.decode("utf-8")))
    except FileNotFoundError:
        raise GovernanceUnset(
            "This hospital has not said yet under which law and limits it takes part.", remedy
        ) from None
    except OSError as error:
        raise GovernanceUnset(f"{path} can't be read ({error.strerror}).", remedy) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise GovernanceUnset(f"{path} is not a TOML file ({error}).", remedy) from None
    except ValidationError as error:
        names = ", ".join(sorted({str(item["loc"][0]) for item in error.errors() if item["loc"]}))
        raise GovernanceUnset(f"{path} has a wrong or missing setting: {names}.", remedy) from None


def save_governance(home: SiteHome, governance: Governance) -> None:
    """Replace `governance.toml`, durably. Raises BadParameter for a policy parameter laxer than the federation's."""
    local_policy(home, governance)
    write_durably(home.path / FILE, governance.to_toml().encode())


def rules_digest(home: SiteHome) -> str:
    """Of every byte at this site that its decisions follow from, besides the program's own: whoever keeps a compiled
    policy compiles it again when this changes. Raises GovernanceUnset, as `load_governance` does, and where a pack
    can't be read."""
    state = hashlib.sha256()
    folder = home.path / PACKS
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".yaml") if folder.is_dir() else []
        for path in (home.path / FILE, *paths, *stored(home)):
            content = _read(path)
            state.update(f"{path.name}\0{len(content)}\0".encode() + content)
    except FileNotFoundError:
        load_governance(home)  # says which file is missing, and what to do
        raise GovernanceUnset("A pack was removed while it was read.", "Try again.") from None
    except OSError as error:
        raise GovernanceUnset(
            f"This site's rules can't be read ({error.strerror}).", f"Correct the rights of {folder} and {FILE}."
        ) from None
    return state.hexdigest()


def local_policy(home: SiteHome, governance: Governance, packs: Path | None = None) -> Policy:
    """The site's own copy of the packs: those of its installed package, and any in `<home>/packs` (or, to try them, in
    the folder `packs`), which can only add rules; the federation's packs that the site adopted, where they differ; and
    of the site's and the federation's parameters the stricter. Raises BadPolicyDocument, BadParameter, and BadSignature
    or VerificationFailed for an adopted set that somebody changed."""
    documents = builtin_packs()
    folder = home.path / PACKS if packs is None else packs
    if folder.is_dir():
        for name in sorted(os.listdir(folder)):
            if name.endswith(".yaml"):
                documents[f"site-{name.removesuffix('.yaml')}"] = _read(folder / name)
    policy = policy_from(documents)
    if not stored(home):
        return replace(policy, parameters=policy.parameters.for_site(governance.parameters))
    federation = newest(home, VerifyingKey.from_text(load_settings(home).coordinator))
    whole = policy if federation is None else joined(policy, federation)
    return replace(whole, parameters=whole.parameters.tightened(governance.parameters))


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BUNDLE)
