"""The coordinator's side: a running sum in constant memory that opens only when the whole cohort is in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from privacy.entropy import Float64
from privacy.errors import MissingContributors, ParameterError
from privacy.parameters import MODULUS, Grid
from privacy.secagg.field import WORD_BYTES, decode_centred, words_of
from privacy.secagg.framing import Buffer, Manifest
from privacy.secagg.refusals import Refusal, Refused


class SecureSum:
    """One attempt's sum over `cohort` of vectors of `length` words: 4 `length` bytes however many sites
    there are.

    A vector comes whole (`add`) or in chunks (`expect`, then `add_chunk` in any order, over any time). The masks
    cancel in the whole sum only; nothing is revealed about any subset, and no key is ever held here.
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
        self._manifests: dict[str, Manifest] = {}
        self._wanted: dict[str, set[int]] = {}

    @property
    def missing(self) -> tuple[str, ...]:
        """The sites whose vector is not wholly in, sorted."""
        return tuple(sorted(self._missing))

    def add(self, site: str, data: Buffer) -> None:
        """Add a site's whole masked vector of 4 `length` bytes.

        Raises Refused for a stranger, a second vector of one site, one begun in chunks, or a wrong length; the
        sum is then as before.
        """
        self._admit(site)
        if site in self._manifests:
            raise self._equivocation(site)
        self._check_length(site, len(data))
        self._sum += words_of(data)
        self._missing.discard(site)

    def expect(self, site: str, manifest: Manifest) -> tuple[int, ...]:
        """The chunks that `site` has yet to send under this manifest, in order; asked again, those still
        missing.

        Raises Refused for a stranger, a site that has contributed, a wrong length, or a manifest other than the
        site's first.
        """
        self._admit(site)
        self._check_length(site, manifest.length)
        if self._manifests.setdefault(site, manifest) != manifest:
            raise self._equivocation(site)
        return tuple(sorted(self._wanted.setdefault(site, set(range(len(manifest.digests))))))

    def add_chunk(self, site: str, index: int, chunk: Buffer) -> None:
        """Add one chunk; one that is in already is checked and left. Raises Refused for a site without a manifest
        and for a chunk that the manifest does not name; the sum is then as before.
        """
        manifest = self._manifests.get(site)
        if manifest is None:
            raise Refused(Refusal.OUT_OF_ORDER, f"{site} has sent no manifest.", "Send the manifest first.")
        start, stop = manifest.check(index, chunk)
        wanted = self._wanted[site]
        if index in wanted:
            self._sum[start // WORD_BYTES : stop // WORD_BYTES] += words_of(chunk)
            wanted.discard(index)
            if not wanted:
                self._missing.discard(site)

    def result(self, grid: Grid) -> Float64:
        """(length,) float64: the decoded sum. Raises MissingContributors while any site of the cohort is
        missing.
        """
        if self._missing:
            raise MissingContributors(self._missing)
        if grid.modulus != self._modulus:
            raise ParameterError("The grid has another modulus than the sum.", "Take both from the plan.")
        return decode_centred(self._sum, grid)

    def _admit(self, site: str) -> None:
        if site not in self._cohort:
            raise Refused(
                Refusal.NOT_IN_COHORT, f"{site} is not in the cohort of this attempt.", "Discard its contribution."
            )
        if site not in self._missing:
            raise Refused(Refusal.REPEATED_SITE, f"{site} has already contributed.", "Keep its first contribution.")

    def _check_length(self, site: str, size: int) -> None:
        expected = self._length * WORD_BYTES
        if size != expected:
            raise Refused(
                Refusal.WRONG_LENGTH,
                f"{site} sent {size} bytes where the plan has {expected}.",
                "Discard its contribution.",
            )

    def _equivocation(self, site: str) -> Refused:
        return Refused(
            Refusal.EQUIVOCATION,
            f"{site} offers a second vector for one attempt.",
            "Keep the first; if it cannot be completed, begin a new attempt.",
        )
