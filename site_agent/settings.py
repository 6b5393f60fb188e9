"""A site's home folder and `site.toml`, the settings that enrolment pinned."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from protocol.enrolment import Address
from protocol.errors import CloisterError
from protocol.identifiers import Frozen, KeyText, SiteName

HOME_VARIABLE = "CLOISTER_SITE_HOME"
_MAX_BYTES = 64 * 1024


class NotEnrolled(CloisterError):
    """There is no site in this folder."""

    code = "not-enrolled"


class BadSettings(CloisterError):
    """`site.toml` can't be read or does not say what it must."""

    code = "bad-settings"


@dataclass(frozen=True)
class SiteHome:
    """Where a site keeps everything: one folder, open to its owner alone."""

    path: Path

    @classmethod
    def resolve(cls, option: Path | None = None) -> SiteHome:
        """`--home`, else $CLOISTER_SITE_HOME, else ~/.cloister-site; absolute."""
        chosen = option or Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".cloister-site")
        return cls(chosen.expanduser().absolute())

    @property
    def settings(self) -> Path:
        """`site.toml`."""
        return self.path / "site.toml"

    @property
    def database(self) -> Path:
        """`site.db`, SQLite."""
        return self.path / "site.db"

    @property
    def keys(self) -> Path:
        """Keys and certificates."""
        return self.path / "keys"

    @property
    def snapshots(self) -> Path:
        """Encoded data sets, one `.npz` each."""
        return self.path / "snapshots"

    @property
    def mirror(self) -> Path:
        """The site's own copy of the transparency log."""
        return self.path / "mirror"

    @property
    def releases(self) -> Path:
        """Installed releases."""
        return self.path / "releases"


class SiteDocument(Frozen):
    """The content of `site.toml`. `log`: the log's vkey; `coordinator`: the key that signs plans and requests.

    `training_processes`: how many compute one step together, each on a GPU of its own where there are as many.
    `training_megabytes`: memory of one micro-batch in each. `half_precision`: forward passes in bfloat16 on a GPU.
    """

    site: SiteName
    address: Address
    log: Annotated[str, Field(max_length=400)]
    coordinator: KeyText
    poll_seconds: Annotated[float, Field(gt=0, le=3600)] = 1.0
    training_processes: Annotated[int, Field(ge=1, le=64)] = 1
    training_megabytes: Annotated[int, Field(ge=64, le=1 << 20)] = 2048
    half_precision: bool = False

    def to_toml(self) -> str:
        """The file's text. A JSON string or number is a TOML one."""
        lines = [f"{name} = {json.dumps(value)}" for name, value in self.model_dump().items()]
        return "\n".join(["# Written by cloister-site enrol: what this site trusts.", *lines, ""])


@dataclass(frozen=True)
class SiteSettings:
    """A home and what its `site.toml` says."""

    home: SiteHome
    site: str
    address: str
    log: str
    coordinator: str
    poll_seconds: float
    training_processes: int = 1
    training_megabytes: int = 2048
    half_precision: bool = False


def load_settings(home: SiteHome) -> SiteSettings:
    """Read `site.toml`. Raises NotEnrolled when there is none, BadSettings when it is not right."""
    try:
        raw = home.settings.read_bytes()
    except FileNotFoundError:
        raise NotEnrolled(
            f"No site is enrolled in {home.path}.",
            f"Run cloister-site enrol TOKEN, or name the right folder with --home or ${HOME_VARIABLE}.",
        ) from None
    remedy = f"Restore {home.settings} from a backup, or enrol again into a new folder."
    if len(raw) > _MAX_BYTES:
        raise BadSettings(f"{home.settings} is larger than {_MAX_BYTES} bytes.", remedy)
    try:
        document = SiteDocument.model_validate(tomllib.loads(raw.decode("utf-8")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSettings(f"{home.settings} is not a TOML file ({error}).", remedy) from None
    except ValidationError as error:
        names = ", ".join(sorted({str(item["loc"][0]) for item in error.errors() if item["loc"]}))
        raise BadSettings(f"{home.settings} has a wrong or missing setting: {names}.", remedy) from None
    return SiteSettings(home=home, **document.model_dump())
