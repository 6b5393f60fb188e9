"""What a site tells of the models that it serves: when one began to answer, stopped, was switched to or was refused.

Signed by the site key, queued at the site and logged by the coordinator in the order in which it happened. No value of
a patient, no prediction and no name; how many records were answered only where they are more than a minimum cell.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from protocol.identifiers import Digest, Frozen, Label, ReleaseId, SiteName, Timestamp
from protocol.proposal import MINIMUM_CELL

SERVING_REPORT_TYPE = "application/vnd.cloister.serving-report+json"
MOST_RULES = 32

Change = Literal["installed", "started", "stopped", "rolled-back", "refused", "resumed"]
Moment = Literal["install", "switch", "start", "running"]
ReportId = Annotated[str, StringConstraints(pattern=r"^serving-[0-9a-f]{16}$")]
ServerId = Annotated[str, StringConstraints(pattern=r"^server-[0-9a-f]{16}$")]


class ServingReport(Frozen):
    """One change at one site.

    number: its place among all that the site ever told, from 1. server: which running server, so that a stop is told of
    its own start; None for what none was running for. moment: at what the model was refused, else None. code: a closed
    code of why it was refused or ended, rules: the rules that shut the gate, as pack:rule. decision: the digest of the
    gate's decision. answered: records that the server answered, None where at most MINIMUM_CELL.
    """

    report: ReportId
    number: Annotated[int, Field(ge=1)]
    site: SiteName
    release: ReleaseId
    subject_digest: Digest
    change: Change
    server: ServerId | None = None
    moment: Moment | None = None
    code: Label | None = None
    rules: Annotated[tuple[Label, ...], Field(max_length=MOST_RULES)] = ()
    decision: Digest | None = None
    answered: Annotated[int, Field(gt=MINIMUM_CELL)] | None = None
    at: Timestamp

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if (self.change == "refused") != (self.moment is not None):
            raise ValueError("a refusal, and nothing else, is told with what was refused")
        if self.change in ("started", "stopped", "resumed") and self.server is None:
            raise ValueError("a server that began, stopped or goes on is named")
        if self.answered is not None and self.change != "stopped":
            raise ValueError("records are counted when a server has stopped")
        return self
