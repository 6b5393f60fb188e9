"""A site's secure aggregation state as it lies on disk: encrypted, and bound to its study and plan.

AES-256-GCM (NIST SP 800-38D) under a key of the study's own, HKDF-SHA256 of the site's key with study and plan, which
also stand in the associated data: no state opens in another's place. Nonces are 96 random bits; a study stores some
hundred states, far below the 2^32 that random nonces allow. Encryption does not replace erasure: whoever has the site's
key and an old state has its keys, so the shell overwrites what it replaces.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privacy.entropy import Entropy
from privacy.secagg.masking import KEY_BYTES, derive_key, encode_fields
from privacy.secagg.messages import DIGEST_BYTES, check_bytes
from privacy.secagg.refusals import Refusal, Refused

MAGIC = b"CLS1"
NONCE_BYTES = 12
_LABEL = b"cloister/secagg/sealed-state/v1"


def seal(state: bytes, key: bytes, *, study: str, plan_digest: bytes, entropy: Entropy) -> bytes:
    """state: from `SecAggSite.export_state`. key: 32 bytes, uniform. Raises Refused for a key of another length."""
    cipher, context = _cipher(key, study, plan_digest)
    nonce = entropy(NONCE_BYTES)
    return MAGIC + nonce + cipher.encrypt(nonce, state, context)


def unseal(sealed: bytes, key: bytes, *, study: str, plan_digest: bytes) -> bytes:
    """The inverse of `seal`. Raises Refused for another key, study or plan, for bytes that were changed, and for what
    an older version stored in the clear."""
    cipher, context = _cipher(key, study, plan_digest)
    if not sealed.startswith(MAGIC):
        raise Refused(
            Refusal.STATE_DAMAGED,
            "The stored secure aggregation state is not encrypted: an older version wrote it.",
            "Withdraw from the study and set it up anew.",
        )
    nonce, encrypted = sealed[len(MAGIC) : len(MAGIC) + NONCE_BYTES], sealed[len(MAGIC) + NONCE_BYTES :]
    try:
        return cipher.decrypt(nonce, encrypted, context)
    except (InvalidTag, ValueError):
        raise Refused(
            Refusal.STATE_DAMAGED,
            "The stored secure aggregation state does not open under this site's key.",
            "Restore the key folder from a backup, or set up the study anew.",
        ) from None


def _cipher(key: bytes, study: str, plan_digest: bytes) -> tuple[AESGCM, bytes]:
    check_bytes("The key of the stored state", key, KEY_BYTES)
    context = encode_fields(_LABEL, study, check_bytes("The plan digest", plan_digest, DIGEST_BYTES))
    return AESGCM(derive_key(key, context)), context
