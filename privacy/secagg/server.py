"""The coordinator's side: a running sum in constant memory that opens only when the whole cohort is in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from privacy.entropy import Float64
from privacy.errors import MissingContributors, ParameterError, ProtocolViolation
from privacy.parameters import MODULUS, Grid
from privacy.secagg.field import WORD_BYTES, decode_centred, words_of

Buffer = bytes | bytearray | memoryview


class SecureSum:
    """One attempt's sum over `cohort` of vectors of `length` words: 4 `length` bytes however many sites
    there are.

    The masks cancel in the whole sum only; nothing is revealed about any subset, and no key is ever held
    here.
    """

    def __init__(self, cohort: Iterable[str], length: int, modulus: int = MODULUS) -> None:
        """Raises ParameterError for a cohort under two, a repeated name, a length under 1 or another
        modulus.
        """
        names = tuple(cohort)
        self._missing = set(names)
        if len(names) != len(self._missing) or len(names) < 2:
            raise ParameterError("A secure sum needs two or more different sites.", "List each site once.")
        if length < 1 or modulus != MODULUS:
            raise ParameterError("A secure sum needs words modulo 2^32, at least one.", "Take both from the plan.")
        self._cohort = frozenset(names)
        self._length = length
        self._modulus = modulus
        self._sum = np.zeros(length, dtype=np.uint32)
        self._spoiled_by: str | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """The sites whose vector has not come in, sorted."""
        return tuple(sorted(self._missing))

    def add(self, site: str, data: Buffer | Iterable[Buffer]) -> None:
        """Add a site's masked vector: 4 `length` bytes, whole or as an iterable of pieces in order.

        Raises ProtocolViolation for a stranger, a second vector of one site or a wrong length. After a
        wrong length in a whole vector the sum is as before; in pieces, part of them is already in, and the
        attempt is lost.
        """
        self._admit(site)
        if isinstance(data, bytes | bytearray | memoryview):
            if len(data) != self._length * WORD_BYTES:
                raise self._wrong_length(site, len(data))
            self._sum += words_of(data)
        else:
            self._add_pieces(site, data)
        self._missing.discard(site)

    def result(self, grid: Grid) -> Float64:
        """(length,) float64: the decoded sum. Raises MissingContributors while any site of the cohort is
        missing.
        """
        self._refuse_if_spoiled()
        if self._missing:
            raise MissingContributors(self._missing)
        if grid.modulus != self._modulus:
            raise ParameterError("The grid has another modulus than the sum.", "Take both from the plan.")
        return decode_centred(self._sum, grid)

    def _admit(self, site: str) -> None:
        self._refuse_if_spoiled()
        if site not in self._cohort:
            raise ProtocolViolation(f"{site} is not in the cohort of this attempt.", "Discard its contribution.")
        if site not in self._missing:
            raise ProtocolViolation(f"{site} has already contributed.", "Keep its first contribution.")

    def _refuse_if_spoiled(self) -> None:
        if self._spoiled_by is not None:
            raise ProtocolViolation(
                f"The attempt was spoiled by a vector of wrong length from {self._spoiled_by}.",
                "Begin a new attempt.",
            )

    def _wrong_length(self, site: str, size: int) -> ProtocolViolation:
        expected = self._length * WORD_BYTES
        return ProtocolViolation(
            f"{site} sent {size} bytes where the plan has {expected}.", "Discard its contribution."
        )

    def _add_pieces(self, site: str, pieces: Iterable[Buffer]) -> None:
        filled = 0
        carry = b""
        self._spoiled_by = site
        for piece in pieces:
            data = carry + bytes(piece) if carry else piece
            whole = len(data) - len(data) % WORD_BYTES
            words = words_of(memoryview(data)[:whole])
            if filled + words.size > self._length:
                raise self._wrong_length(site, (filled + words.size) * WORD_BYTES)
            self._sum[filled : filled + words.size] += words
            filled += words.size
            carry = bytes(memoryview(data)[whole:])
        if carry or filled != self._length:
            raise self._wrong_length(site, filled * WORD_BYTES + len(carry))
        self._spoiled_by = None
