"""What the privacy library refuses, as the closed code that a site answers with: one code for each reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from privacy.errors import BudgetExceeded, MissingContributors, OverflowRisk, ParameterError, PrivacyError
from privacy.secagg.refusals import Refusal
from protocol.round import RefusalCode

CODES: Mapping[str, RefusalCode] = {
    Refusal.MALFORMED: RefusalCode.SECAGG_MALFORMED,
    Refusal.STUDY_UNFIT: RefusalCode.STUDY_UNFIT,
    Refusal.OUT_OF_ORDER: RefusalCode.OUT_OF_ORDER,
    Refusal.OTHER_STUDY: RefusalCode.OTHER_STUDY,
    Refusal.OTHER_PLAN: RefusalCode.OTHER_PLAN,
    Refusal.UNKNOWN_SITE: RefusalCode.UNKNOWN_SITE,
    Refusal.REPEATED_SITE: RefusalCode.REPEATED_SITE,
    Refusal.MISSING_SITE: RefusalCode.MISSING_SITE,
    Refusal.NOT_IN_COHORT: RefusalCode.NOT_IN_COHORT,
    Refusal.COHORT_TOO_SMALL: RefusalCode.COHORT_TOO_SMALL,
    Refusal.SPLIT_VIEW: RefusalCode.SPLIT_VIEW,
    Refusal.KEY_UNUSABLE: RefusalCode.KEY_UNUSABLE,
    Refusal.KEY_UNCONFIRMED: RefusalCode.KEY_UNCONFIRMED,
    Refusal.CONSUMED: RefusalCode.MASK_CONSUMED,
    Refusal.ROUND_GONE: RefusalCode.ROUND_GONE,
    Refusal.RETRIES_SPENT: RefusalCode.RETRIES_SPENT,
    Refusal.NO_SUCH_SUM: RefusalCode.NO_SUCH_SUM,
    Refusal.WRONG_LENGTH: RefusalCode.WRONG_LENGTH,
    Refusal.NOT_FINITE: RefusalCode.VECTOR_NOT_FINITE,
    Refusal.EQUIVOCATION: RefusalCode.EQUIVOCATION,
    Refusal.DAMAGED_CHUNK: RefusalCode.DAMAGED_CHUNK,
    Refusal.STATE_DAMAGED: RefusalCode.KEYS_DAMAGED,
    OverflowRisk.code: RefusalCode.VECTOR_TOO_LARGE,
    ParameterError.code: RefusalCode.PARAMETERS_UNFIT,
    BudgetExceeded.code: RefusalCode.LEDGER_EXHAUSTED,
    MissingContributors.code: RefusalCode.MISSING_CONTRIBUTORS,
}


def code_of(error: PrivacyError) -> RefusalCode:
    """The code of a refusal of the library; INTERNAL for an error that names none of its reasons."""
    return CODES.get(error.code, RefusalCode.INTERNAL)
