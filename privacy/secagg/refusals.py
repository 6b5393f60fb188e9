"""Why a site or the sum refuses: a closed list of codes, so that a refusal can be counted and logged without
anything of what the other side wrote.
"""

from __future__ import annotations

from enum import StrEnum

from privacy.errors import ProtocolViolation


class Refusal(StrEnum):
    """Everything that secure aggregation ever refuses for; MissingContributors and OverflowRisk apart."""

    MALFORMED = "secagg-malformed"
    STUDY_UNFIT = "secagg-study-unfit"
    OUT_OF_ORDER = "secagg-out-of-order"
    OTHER_STUDY = "secagg-other-study"
    OTHER_PLAN = "secagg-other-plan"
    UNKNOWN_SITE = "secagg-unknown-site"
    REPEATED_SITE = "secagg-repeated-site"
    MISSING_SITE = "secagg-missing-site"
    NOT_IN_COHORT = "secagg-not-in-cohort"
    COHORT_TOO_SMALL = "secagg-cohort-too-small"
    SPLIT_VIEW = "secagg-split-view"
    KEY_UNUSABLE = "secagg-key-unusable"
    KEY_UNCONFIRMED = "secagg-key-unconfirmed"
    CONSUMED = "secagg-consumed"
    ROUND_GONE = "secagg-round-gone"
    RETRIES_SPENT = "secagg-retries-spent"
    NO_SUCH_SUM = "secagg-no-such-sum"
    WRONG_LENGTH = "secagg-wrong-length"
    NOT_FINITE = "secagg-not-finite"
    EQUIVOCATION = "secagg-equivocation"
    DAMAGED_CHUNK = "secagg-damaged-chunk"
    STATE_DAMAGED = "secagg-state-damaged"


class Refused(ProtocolViolation):
    """A message or request that the protocol forbids; `code` is one of `Refusal`."""

    def __init__(self, code: Refusal, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.code = code.value
