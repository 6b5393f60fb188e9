"""Pairwise secrets, once per study: X25519 with ML-KEM-768 beside it, so that breaking one alone reveals
nothing.

Of each pair the site whose name sorts first encapsulates to the other. The pair's root is derived from
both shared secrets together with everything that the two must agree on (RFC 7748, FIPS 203, RFC 5869). The
encapsulation's randomness comes from OpenSSL's generator, which the library gives no way to pass in.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from privacy.entropy import Entropy
from privacy.secagg.masking import KEY_BYTES, derive_key, encode_fields
from privacy.secagg.messages import KeyAdvert
from privacy.secagg.refusals import Refusal, Refused

MLKEM_SEED_BYTES = 64
MAX_ROUND = 100_000
_ROOT_LABEL = b"cloister/secagg/pair-root/v1"
_CONFIRM_LABEL = b"cloister/secagg/confirm/v1"
_RATCHET_LABEL = b"cloister/secagg/ratchet/v1"


@dataclass(frozen=True, repr=False)
class SetupKeys:
    """A site's private keys for one study's set-up (32 and 64 bytes); dropped as soon as the roots are
    made.
    """

    x25519_private: bytes
    mlkem_seed: bytes

    @classmethod
    def generate(cls, entropy: Entropy) -> SetupKeys:
        """Fresh keys from 96 bytes of `entropy`."""
        return cls(entropy(KEY_BYTES), entropy(MLKEM_SEED_BYTES))

    def advert(self, *, study: str, plan_digest: bytes, site: str) -> KeyAdvert:
        """The public half."""
        x25519 = X25519PrivateKey.from_private_bytes(self.x25519_private)
        mlkem = MLKEM768PrivateKey.from_seed_bytes(self.mlkem_seed)
        return KeyAdvert(
            study=study,
            plan_digest=plan_digest,
            site=site,
            x25519_public=x25519.public_key().public_bytes_raw(),
            mlkem_public=mlkem.public_key().public_bytes_raw(),
        )

    def x25519_shared(self, peer: KeyAdvert) -> bytes:
        """32 bytes. Raises Refused for a low-order key, whose shared secret would be all zeros."""
        try:
            private = X25519PrivateKey.from_private_bytes(self.x25519_private)
            shared = private.exchange(X25519PublicKey.from_public_bytes(peer.x25519_public))
        except ValueError as error:
            raise _bad_key(peer.site, "X25519") from error
        if shared == bytes(KEY_BYTES):
            raise _bad_key(peer.site, "X25519")
        return shared

    def decapsulate(self, ciphertext: bytes, sender: str) -> bytes:
        """32 bytes. A ciphertext that was tampered with gives an unrelated secret (FIPS 203, implicit
        rejection).
        """
        try:
            return MLKEM768PrivateKey.from_seed_bytes(self.mlkem_seed).decapsulate(ciphertext)
        except ValueError as error:
            raise _bad_key(sender, "ML-KEM-768 ciphertext") from error


def _bad_key(site: str, what: str) -> Refused:
    return Refused(
        Refusal.KEY_UNUSABLE,
        f"The {what} key of {site} cannot be used.",
        f"Ask {site} to set up its keys for the study anew.",
    )


def encapsulate(peer: KeyAdvert) -> tuple[bytes, bytes]:
    """(shared secret of 32 bytes, ciphertext of 1088). Raises Refused for a malformed key."""
    try:
        return MLKEM768PublicKey.from_public_bytes(peer.mlkem_public).encapsulate()
    except ValueError as error:
        raise _bad_key(peer.site, "ML-KEM-768") from error


def pair_root(x25519_shared: bytes, mlkem_shared: bytes, ciphertext: bytes, a: KeyAdvert, b: KeyAdvert) -> bytes:
    """The 32-byte root of one pair, the same at both ends whichever way round the adverts are given.

    Binds study, plan, both names, both adverts and the ciphertext: a swapped key or ciphertext gives
    another root.
    """
    first, second = sorted((a, b), key=lambda advert: advert.site)
    info = encode_fields(
        _ROOT_LABEL,
        first.study,
        first.plan_digest,
        first.site,
        second.site,
        first.digest(),
        second.digest(),
        hashlib.sha256(ciphertext).digest(),
    )
    return derive_key(x25519_shared + mlkem_shared, info)


def confirmation(root: bytes, *, adverts: bytes, sender: str, receiver: str) -> bytes:
    """32 bytes with which `sender` shows `receiver` that it has the pair's root and saw the same adverts.

    HMAC-SHA256 under a key derived from the root for this alone (key confirmation, NIST SP 800-56A, 5.9). The
    receiver compares with `hmac.compare_digest`.
    """
    key = derive_key(root, encode_fields(_CONFIRM_LABEL))
    return hmac.digest(key, encode_fields(_CONFIRM_LABEL, adverts, sender, receiver), "sha256")


@dataclass(frozen=True, repr=False)
class PairRoots:
    """The roots shared with every peer, as they stand for one round.

    `ratchet` is one-way: from the roots of a round none of an earlier round can be found. The caller drops
    the old value and overwrites its stored copy; Python cannot promise that no trace is left in memory.
    """

    round_number: int
    roots: Mapping[str, bytes]

    def ratchet(self) -> PairRoots:
        """The roots of the next round."""
        label = encode_fields(_RATCHET_LABEL, self.round_number)
        return PairRoots(self.round_number + 1, {peer: derive_key(root, label) for peer, root in self.roots.items()})

    def advanced_to(self, round_number: int) -> PairRoots:
        """The roots of a later round, or these. Raises Refused for an earlier one, whose roots
        are gone.
        """
        if not self.round_number <= round_number <= MAX_ROUND:
            raise Refused(
                Refusal.ROUND_GONE,
                f"The keys stand at round {self.round_number}; those of round {round_number} do not exist.",
                "Continue from the current round.",
            )
        current = self
        while current.round_number < round_number:
            current = current.ratchet()
        return current
