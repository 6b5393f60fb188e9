"""Errors that a person or a peer may see: each names the thing that is wrong and the remedy.

No message carries patient data, a row's value or a traceback; callers put identifiers, counts and rules in it.
"""

from __future__ import annotations


class CloisterError(Exception):
    """Something is wrong that the caller can be told of.

    `message` names the thing, `remedy` says what to do about it; `code` is stable and machine-readable.
    """

    code = "error"

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} Remedy: {self.remedy}" if self.remedy else self.message


class Malformed(CloisterError):
    """Bytes or a document that do not have the agreed form."""

    code = "malformed"


class BadSignature(CloisterError):
    """A signature that is missing, by an unknown key, or does not verify."""

    code = "bad-signature"


class Refused(CloisterError):
    """A well-formed request that the receiver's rules do not allow."""

    code = "refused"


class VerificationFailed(CloisterError):
    """Evidence that does not hold: a proof, a digest, a quorum, a signature at a given time."""

    code = "verification-failed"
