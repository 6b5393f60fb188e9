"""One-time secrets and session tokens: 256 bits, base64url."""

from __future__ import annotations

import base64

from coordinator.keystore import Entropy
from protocol.enrolment import TOKEN_SECRET_BYTES


def new_secret(entropy: Entropy) -> str:
    """43 characters that carry 256 bits."""
    return base64.urlsafe_b64encode(entropy(TOKEN_SECRET_BYTES)).decode("ascii").rstrip("=")
