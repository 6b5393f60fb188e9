"""Which patients are held out for evaluation, decided once and for ever. Pure.

Hashes are keyed with the site's secret and taken over identifiers alone, so the choice says nothing of the data.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping

from protocol.proposal import held_out_count


def hash_patient(secret: bytes, identity: str) -> bytes:
    """HMAC-SHA256 of a patient's identifier: recognises a patient at this site, and only here."""
    return hmac.new(secret, b"cloister patient\0" + identity.encode(), hashlib.sha256).digest()


def hold_out(secret: bytes, patients: Collection[bytes], known: Mapping[bytes, bool]) -> dict[bytes, bool]:
    """{patient hash: held out}. A patient in `known` keeps the role that an earlier snapshot gave.

    Of the others those with the smallest keyed hashes are held out until a quarter (rounded up) of all is. A quarter
    of at most the minimum cell (10) would be a count that must not leave the site: then nobody new is held out, and
    the site takes part in training alone.
    """
    chosen = {patient: known[patient] for patient in patients if patient in known}
    new = sorted(set(patients) - chosen.keys(), key=lambda patient: _rank(secret, patient))
    wanted = held_out_count(len(set(patients))) - sum(chosen.values())
    chosen |= {patient: place < wanted for place, patient in enumerate(new)}
    return chosen


def _rank(secret: bytes, patient: bytes) -> bytes:
    return hmac.new(secret, b"cloister held out\0" + patient, hashlib.sha256).digest()
