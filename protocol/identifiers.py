"""Identifiers that both parties write into signed documents: closed character sets, so that none can carry
free text, a path or an injection. All are lower case; none names a patient.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from protocol.errors import Malformed

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,62}[a-z0-9]$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
LABEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/+-]{0,95}$"
TIME_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"
COLUMN_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"

SiteName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
StudyId = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
ReleaseId = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
PersonName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
Label = Annotated[str, StringConstraints(pattern=LABEL_PATTERN)]
Timestamp = Annotated[str, StringConstraints(pattern=TIME_PATTERN)]
ColumnName = Annotated[str, StringConstraints(pattern=COLUMN_PATTERN)]
KeyText = Annotated[str, StringConstraints(pattern=r"^ed25519:[A-Za-z0-9_-]{43}$")]


class Frozen(BaseModel):
    """A closed, immutable document: an unknown field is an error, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Role(StrEnum):
    """What a person at the coordinator may do. One person holds exactly one role. A data steward and a site's IT belong
    to one site; regulatory affairs decide on a model's classification."""

    RESEARCHER = "researcher"
    DATA_STEWARD = "data_steward"
    SITE_IT = "site_it"
    COMPLIANCE_OFFICER = "compliance_officer"
    CLINICAL_LEAD = "clinical_lead"
    REGULATORY = "regulatory"
    AUDITOR = "auditor"
    ADMINISTRATOR = "administrator"


def require_name(value: str, what: str) -> str:
    """`value` unchanged if it is a valid name, else Malformed naming `what`."""
    if not re.fullmatch(NAME_PATTERN, value):
        raise Malformed(
            f"{what} is not a valid name.",
            "Use 2 to 64 characters: lower-case letters, digits and hyphens, beginning with a letter.",
        )
    return value
