"""The file in which an organisation lists its papers: evidence, and at a site its safeguards. Pure: files are read by
whoever calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, StringConstraints, ValidationError

from protocol.attestation import Attestation, Country, HipaaRole
from protocol.errors import Malformed
from protocol.evidence import EvidenceRecord
from protocol.identifiers import Frozen
from protocol.proposal import Jurisdiction

M = TypeVar("M", bound=BaseModel)
FORM = "See docs/OPERATIONS.md for its form."
_Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Safeguards(Frozen):
    """What a hospital attests, as it writes it down: the officials by name or office, which stay at the site."""

    jurisdiction: Jurisdiction
    country: Country
    hipaa_role: HipaaRole
    disk_encryption: bool
    transit_encryption: bool
    tls_min: Literal["1.2", "1.3"]
    pseudonymised: bool
    idle_logoff: bool
    alternative_documented: bool = False
    last_material_change: date | None = None
    security_official: _Name | None = None
    privacy_official: _Name | None = None

    def attested(self, on: date) -> Attestation:
        """What leaves the site of it."""
        named = ("security_official", "privacy_official")
        return Attestation(
            **self.model_dump(exclude=set(named)),
            **{f"{name}_named": getattr(self, name) is not None for name in named},
            attested_on=on,
        )


def read_records(
    loaded: object, digest_of: Callable[[str, int], str], *, about: Mapping[str, str] | None = None
) -> list[EvidenceRecord]:
    """The records of a loaded YAML list. A record names its document (`document`, of which `digest_of` gives the
    SHA-256, being told the record's number too) or the SHA-256 itself (`file`).

    about: what a record that says no `scope` or `subject` is about. Raises Malformed naming the record and the field.
    """
    if not isinstance(loaded, list) or not loaded:
        raise Malformed("The file has no list named records.", FORM)
    records = []
    for number, item in enumerate(loaded, start=1):
        if not isinstance(item, dict):
            raise Malformed(f"Record {number} is no mapping.", FORM)
        fields: dict[str, Any] = {**(about or {}), **item}
        if "document" in fields:
            if "file" in fields:
                raise Malformed(f"Record {number} has a document and a file.", "Give one of them.")
            fields["file"] = digest_of(str(fields.pop("document")), number)
        records.append(_checked(EvidenceRecord, fields, f"Record {number}"))
    return records


def read_safeguards(loaded: object) -> Safeguards:
    """What the part `attestation` of the file says. Raises Malformed naming the field."""
    if not isinstance(loaded, dict):
        raise Malformed("The file has no part named attestation.", FORM)
    return _checked(Safeguards, loaded, "attestation")


def _checked(model: type[M], fields: Mapping[str, Any], what: str) -> M:
    try:
        return model.model_validate(fields, strict=False)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in wrong["loc"]) or "as a whole"
        raise Malformed(f"{what}: {where}: {wrong['msg']}.", "Correct it; nothing was recorded.") from None
