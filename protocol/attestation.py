"""What a site says of its own safeguards, signed with the site's key, together with its evidence on record.

The coordinator's gates rest on it: enrolment, and every round. A statement replaces the one before it as a whole, so
what the site has revoked is simply not in the next one. It names the coordinator it is made for by the fingerprint of
its CA, so it can't be shown to another; it carries the moment it was made, so an older one can't be shown again.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from protocol.envelope import Envelope, open_json, seal
from protocol.errors import Malformed, Refused
from protocol.evidence import NO_EXPIRY_DAYS, EvidenceRecord, standing
from protocol.identifiers import Digest, Frozen, SiteName, Timestamp
from protocol.proposal import Jurisdiction
from protocol.signing import SigningKey, VerifyingKey
from protocol.timestamp import moment, timestamp

STATEMENT_TYPE = "application/vnd.cloister.site-statement+json"
STATEMENT_LIMIT = 256 * 1024
MAX_RECORDS = 200
AHEAD_SECONDS = 600.0
"""How far ahead of the coordinator's clock a statement may be dated."""
Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
HipaaRole = Literal["covered-entity", "business-associate", "hybrid-component", "none"]
_REMEDY = "Make it with `cloister-site attest`."


class Attestation(Frozen):
    """The site's safeguards, as somebody there attested them on `attested_on`.

    country: ISO 3166 alpha-2. tls_min: the lowest TLS version that the site accepts. alternative_documented: an
    equivalent is documented for a safeguard that the site lacks (45 CFR 164.306(d)(3)). last_material_change: of the
    site's systems or their use, None where there was none. The officials' names stay at the site: what leaves it is
    that they are named.
    """

    jurisdiction: Jurisdiction
    country: Country
    hipaa_role: HipaaRole
    disk_encryption: bool
    transit_encryption: bool
    tls_min: Literal["1.2", "1.3"]
    pseudonymised: bool
    idle_logoff: bool
    alternative_documented: bool
    security_official_named: bool
    privacy_official_named: bool
    last_material_change: date | None = None
    attested_on: date

    @model_validator(mode="after")
    def _coherent(self) -> Attestation:
        if self.last_material_change is not None and self.last_material_change > self.attested_on:
            raise ValueError("the last material change lies after the day of the attestation")
        return self


class SiteStatement(Frozen):
    """Site -> coordinator. coordinator: the fingerprint of its CA. records: the site's evidence about itself that
    stands when it is made, each once."""

    site: SiteName
    coordinator: Digest
    made_at: Timestamp
    attestation: Attestation
    records: Annotated[tuple[EvidenceRecord, ...], Field(max_length=MAX_RECORDS)] = ()

    @model_validator(mode="after")
    def _coherent(self) -> SiteStatement:
        if any(record.scope != "site" or record.subject != self.site for record in self.records):
            raise ValueError("a record is not about the site that makes the statement")
        if len({record.digest for record in self.records}) != len(self.records):
            raise ValueError("a record is given twice")
        if self.attestation.attested_on > moment(self.made_at).date():
            raise ValueError("the safeguards are attested after the statement was made")
        return self


def make_statement(
    site: str, coordinator: str, attestation: Attestation, records: Iterable[EvidenceRecord], *, now: datetime
) -> SiteStatement:
    """The statement that a site makes now. Raises ValueError (pydantic's) for another site's record."""
    return SiteStatement(
        site=site, coordinator=coordinator, made_at=timestamp(now), attestation=attestation, records=tuple(records)
    )


def seal_statement(statement: SiteStatement, key: SigningKey) -> bytes:
    """The statement as a DSSE envelope under the site's key."""
    return seal(STATEMENT_TYPE, statement.model_dump(mode="json"), key).to_bytes()


def open_statement(
    data: bytes, *, site: str, coordinator: str, key: VerifyingKey, after: str | None, now: datetime
) -> SiteStatement:
    """The statement in `data`, made by `site` for the coordinator with this CA fingerprint, later than `after`.

    Raises BadSignature when `key` did not sign it, Malformed for another form, Refused for another site's or another
    coordinator's statement, one that is not newer than the last (a replay), and one dated more than 10 minutes ahead.
    """
    payload, _ = open_json(
        Envelope.from_bytes(data, limit=2 * STATEMENT_LIMIT), STATEMENT_TYPE, {key.key_id: key}, limit=STATEMENT_LIMIT
    )
    try:
        statement = SiteStatement.model_validate(payload)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in wrong["loc"]) or "statement"
        raise Malformed(f"The site's statement: {where}: {wrong['msg']}.", _REMEDY) from None
    if statement.site != site or statement.coordinator != coordinator:
        raise Refused("The statement was made by another site, or for another coordinator.", _REMEDY)
    if after is not None and moment(statement.made_at) <= moment(after):
        raise Refused("The statement is not newer than the one before it.", _REMEDY)
    if moment(statement.made_at) > now + timedelta(seconds=AHEAD_SECONDS):
        raise Refused("The statement is dated in the future.", "Set the site's clock, and make it again.")
    return statement


def attestation_facts(attestation: Attestation | None, *, on: date) -> dict[str, Any]:
    """`site.*` as far as the attestation says it; nothing where nothing was attested, so that the gates stay shut."""
    if attestation is None:
        return {}
    told = (
        "disk_encryption", "transit_encryption", "tls_min", "pseudonymised", "idle_logoff", "alternative_documented",
    )  # fmt: skip
    changed = attestation.last_material_change
    return {
        "jurisdiction": attestation.jurisdiction,
        "country": attestation.country,
        "hipaa_role": attestation.hipaa_role,
        "security_official_named": attestation.security_official_named,
        "privacy_official_named": attestation.privacy_official_named,
        "attestation": {
            "age_days": max(0, (on - attestation.attested_on).days),
            "days_since_change": NO_EXPIRY_DAYS if changed is None else max(0, (on - changed).days),
            **{name: getattr(attestation, name) for name in told},
        },
    }


def site_facts(
    site: str, attestation: Attestation | None, records: Iterable[EvidenceRecord], *, on: date
) -> dict[str, Any]:
    """`site.*` from an attestation and the records that stand: the same at the site and at the coordinator."""
    return {"name": site, **attestation_facts(attestation, on=on), "records": standing(records, on=on)}
