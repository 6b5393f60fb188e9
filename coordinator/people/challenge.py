"""Sign-in challenges: 16 random bytes and an expiry under the coordinator's MAC, so that asking stores nothing."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from datetime import UTC, datetime

from coordinator.people.states import CHALLENGE_LIFE
from protocol.errors import Refused

_NONCE = 16
_FORM = struct.Struct(">16sq32s")


class ChallengeRefused(Refused):
    """A challenge that is not ours, for somebody else, expired or answered before."""

    code = "challenge-refused"

    def __init__(self) -> None:
        super().__init__("The sign-in challenge is not valid any more.", "Run `cloister login` again.")


def make_challenge(secret: bytes, name: str, *, now: datetime, nonce: bytes) -> str:
    """A challenge for `name`, good for 2 minutes. nonce: 16 random bytes."""
    expires = int((now + CHALLENGE_LIFE).timestamp())
    return base64.urlsafe_b64encode(_FORM.pack(nonce, expires, _mac(secret, name, nonce, expires))).decode()


def check_challenge(secret: bytes, name: str, challenge: str, *, now: datetime) -> datetime:
    """When a challenge expires, once it is found to be ours and for `name`. Raises ChallengeRefused."""
    try:
        nonce, expires, mac = _FORM.unpack(base64.b64decode(challenge, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, struct.error):
        raise ChallengeRefused from None
    if not hmac.compare_digest(mac, _mac(secret, name, nonce, expires)) or now.timestamp() >= expires:
        raise ChallengeRefused
    return datetime.fromtimestamp(expires, UTC)


def challenge_hash(challenge: str) -> str:
    """What is kept of an answered challenge: over its bytes, since base64 text can be written in more ways than one."""
    return hashlib.sha256(base64.b64decode(challenge, altchars=b"-_")).hexdigest()


def _mac(secret: bytes, name: str, nonce: bytes, expires: int) -> bytes:
    return hmac.new(
        secret, b"cloister sign-in\0" + nonce + struct.pack(">q", expires) + name.encode(), hashlib.sha256
    ).digest()
