"""What privacy/ refuses. Each error names the thing that is wrong and the remedy; none carries a patient's
value.

The shape (`message`, `remedy`, `code`) is that of the product's other errors, so one handler serves both.
"""

from __future__ import annotations

from collections.abc import Iterable


class PrivacyError(Exception):
    """A privacy rule that does not hold; `code` is stable and machine-readable."""

    code = "privacy-error"

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} Remedy: {self.remedy}" if self.remedy else self.message


class ParameterError(PrivacyError):
    """A parameter outside its range, or an array without the agreed shape."""

    code = "privacy-parameter"


class BudgetExceeded(PrivacyError):
    """A charge or reservation that the ledger does not allow. Raised before anything changes."""

    code = "budget-exceeded"


class OverflowRisk(PrivacyError):
    """Values that would not fit the modulus of the secure sum."""

    code = "overflow-risk"


class ProtocolViolation(PrivacyError):
    """A message or a request that the secure aggregation protocol forbids."""

    code = "secagg-violation"


class MissingContributors(ProtocolViolation):
    """The secure sum was asked for while sites of the cohort were missing; `missing` names them in order."""

    code = "secagg-missing"

    def __init__(self, missing: Iterable[str]) -> None:
        self.missing = tuple(sorted(missing))
        super().__init__(
            f"The masked sum lacks {', '.join(self.missing)}; without them it is noise.",
            "Wait for the missing sites, or begin a new attempt on the smaller cohort.",
        )
