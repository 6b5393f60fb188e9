"""A site's side of secure aggregation, sans I/O: messages and vectors in, messages and bytes out.

The shell stores `export_state()` in the same transaction as the charge and the returned bytes, before it
sends them. A resend is those bytes from disk: this machine never answers twice for one (round, attempt),
since fresh noise under an old mask would reveal a difference. The state holds secrets: what is stored is
sealed by `privacy.secagg.sealed_state`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from privacy.entropy import Entropy, Float64, KeyStream
from privacy.parameters import Grid, require_count
from privacy.secagg import site_state
from privacy.secagg.field import Words, as_bytes
from privacy.secagg.key_agreement import MAX_ROUND, PairRoots
from privacy.secagg.key_setup import SMALLEST_COHORT, KeySetup
from privacy.secagg.masking import Mask, mask_buffer, mask_key
from privacy.secagg.messages import (
    DIGEST_BYTES,
    Encapsulations,
    KeyAdvert,
    check_bytes,
    check_name,
)
from privacy.secagg.quantization import CHUNK, Quantizer
from privacy.secagg.refusals import Refusal, Refused

TRAINING = "training"


class SecAggSite:
    """The state machine of one site in one study: advertise, on_adverts, on_encapsulations, then contribute.

    peers: the names of all sites of the study, this one included, as pinned and granted; 3 to 50.
    minimum_cohort: the fewest sites in an attempt, >= 3 (two honest sites and the colluder always assumed).
    lengths: vector length by purpose, from the plan, such as {"training": 31, "evaluation": 40}.
    allowed: the most contributions by purpose, all attempts of all rounds together (T + A), which is what the
    noise was calibrated for; a purpose left out is not counted here.
    """

    def __init__(
        self,
        *,
        site: str,
        study: str,
        plan_digest: bytes,
        peers: Iterable[str],
        minimum_cohort: int,
        lengths: Mapping[str, int],
        allowed: Mapping[str, int] | None = None,
    ) -> None:
        """Raises Refused or ParameterError for parameters that no study may have."""
        self._keys = KeySetup(site=site, study=study, plan_digest=plan_digest, peers=peers)
        require_count("the minimum cohort", minimum_cohort, SMALLEST_COHORT)
        if minimum_cohort > len(self._keys.peers) or not lengths:
            raise Refused(
                Refusal.STUDY_UNFIT, "The plan's minimum cohort or vector lengths do not fit.", "Check the plan."
            )
        for purpose, length in lengths.items():
            check_name("A purpose", purpose)
            require_count(f"the length for {purpose}", length, 1)
        self.site, self.study = self._keys.site, self._keys.study
        self.plan_digest, self.peers = self._keys.plan_digest, self._keys.peers
        self.minimum_cohort = minimum_cohort
        self.lengths = dict(lengths)
        self.allowed = dict(allowed or {})
        for purpose, most in self.allowed.items():
            require_count(f"the contributions allowed for {purpose}", most, 1)
            if purpose not in self.lengths:
                raise Refused(Refusal.STUDY_UNFIT, f"The plan has no sum for {purpose}.", "Check the plan.")
        self._roots: PairRoots | None = None
        self._transcript: bytes | None = None
        self._last: tuple[int, int] | None = None
        self._spent: dict[str, int] = {}

    @property
    def ready(self) -> bool:
        """Whether every pair has its root, so that `contribute` may be asked."""
        return self._roots is not None

    @property
    def transcript(self) -> bytes:
        """SHA-256 of all encapsulations, the same at every site that is `ready`. Raises Refused before."""
        if self._transcript is None:
            raise Refused(
                Refusal.OUT_OF_ORDER, f"{self.site} has not set up its keys.", "Complete the exchange of keys first."
            )
        return self._transcript

    @property
    def last_consumed(self) -> tuple[int, int] | None:
        """The (round, attempt) answered last."""
        return self._last

    def advertise(self, entropy: Entropy) -> KeyAdvert:
        """This site's advert; asked again before the set-up is complete, the same one. Raises Refused."""
        return self._keys.advertise(entropy)

    def on_adverts(self, adverts: Iterable[KeyAdvert]) -> Encapsulations:
        """All sites' adverts -> this site's encapsulations. Raises Refused as `KeySetup.on_adverts` does."""
        return self._keys.on_adverts(adverts)

    def on_encapsulations(self, messages: Iterable[Encapsulations]) -> None:
        """All other sites' encapsulations; afterwards the site is `ready`. Raises Refused as
        `KeySetup.on_encapsulations` does."""
        self._roots, self._transcript = self._keys.on_encapsulations(messages)

    def contribute(
        self,
        round_number: int,
        attempt: int,
        cohort: Iterable[str],
        model_digest: bytes,
        values: Float64,
        grid: Grid,
        entropy: Entropy,
        *,
        plan_digest: bytes,
        purpose: str = TRAINING,
        overwrite: bool = False,
    ) -> memoryview:
        """The masked vector: (D,) float64, already noised -> 4 D bytes, uint32 little-endian, read-only.

        overwrite: lay the result over `values`, which are lost, errors or not; without it one vector of 4 D
        bytes is made. Beside it some 1.2 MB and 0.02 D bytes are needed, whatever the number of peers.

        round_number: 0 to 100,000, the numbering shared by all purposes. model_digest: SHA-256 of the
        model that the values were computed from. Consumes (round_number, attempt), which must come after
        the last one.

        Raises Refused: not ready; a cohort under the minimum, with an unknown or repeated site,
        or without this one; another plan; a round or attempt consumed or gone; more contributions than the
        plan allows; a wrong length; values that are not finite. OverflowRisk: values beyond the modulus.
        After an error the state is as before.
        """
        if self._roots is None:
            raise Refused(
                Refusal.OUT_OF_ORDER, f"{self.site} has not set up its keys.", "Complete the exchange of keys first."
            )
        members = self._check_cohort(tuple(cohort))
        if plan_digest != self.plan_digest:
            raise Refused(
                Refusal.OTHER_PLAN,
                "The round is for another plan than the one granted.",
                "Ask for the new plan to be granted first.",
            )
        check_bytes("The model digest", model_digest, DIGEST_BYTES)
        self._check_order(round_number, attempt)
        self._check_purpose(values, purpose)
        roots = self._roots.advanced_to(round_number)
        masks = [
            Mask(
                mask_key(
                    roots.roots[peer],
                    study=self.study,
                    plan_digest=self.plan_digest,
                    purpose=purpose,
                    round_number=round_number,
                    attempt=attempt,
                    cohort=members,
                    model_digest=model_digest,
                    length=values.size,
                    modulus=grid.modulus,
                ),
                add=self.site < peer,
            )
            for peer in members
            if peer != self.site
        ]
        in_place = overwrite and values.flags.c_contiguous and values.flags.writeable
        words = values.view(np.uint32)[: values.size] if in_place else np.empty(values.size, dtype=np.uint32)
        _quantize_and_mask(values, words, Quantizer(grid, KeyStream.fresh(entropy)), masks)
        self._roots, self._last = roots, (round_number, attempt)
        self._spent[purpose] = self._spent.get(purpose, 0) + 1
        return as_bytes(words)

    def commit(self, round_number: int) -> None:
        """The round is over: ratchet past it, so that its keys are gone. A round committed before changes
        nothing.

        Raises Refused before the set-up or beyond the last round number.
        """
        if self._roots is None:
            raise Refused(
                Refusal.OUT_OF_ORDER, f"{self.site} has not set up its keys.", "Complete the exchange of keys first."
            )
        require_count("the round", round_number, 0)
        if round_number >= self._roots.round_number:
            self._roots = self._roots.advanced_to(round_number + 1)

    def export_state(self) -> bytes:
        """Everything, secrets included, as canonical bytes for `restore`."""
        return site_state.dump(
            {
                "site": self.site,
                "study": self.study,
                "plan_digest": self.plan_digest,
                "peers": self.peers,
                "minimum_cohort": self.minimum_cohort,
                "lengths": self.lengths,
                **self._keys.fields(),
                "allowed": self.allowed,
                "transcript": self._transcript,
                "roots": self._roots,
                "last": self._last,
                "spent": self._spent,
            }
        )

    @classmethod
    def restore(cls, state: bytes) -> SecAggSite:
        """The machine that `export_state` wrote. Raises Refused for bytes it did not write."""
        fields: dict[str, Any] = site_state.load(state)
        machine = cls(
            site=fields["site"],
            study=fields["study"],
            plan_digest=fields["plan_digest"],
            peers=fields["peers"],
            minimum_cohort=fields["minimum_cohort"],
            lengths=fields["lengths"],
            allowed=fields["allowed"],
        )
        machine._keys.restore(fields)
        machine._roots, machine._transcript = fields["roots"], fields["transcript"]
        machine._last, machine._spent = fields["last"], fields["spent"]
        return machine

    def _check_cohort(self, cohort: tuple[str, ...]) -> tuple[str, ...]:
        members = tuple(sorted(cohort))
        unknown = [member for member in members if member not in self.peers]
        if unknown:
            raise Refused(
                Refusal.UNKNOWN_SITE,
                f"The cohort names {', '.join(unknown)}, unknown to this study.",
                "Invite the study's sites only.",
            )
        if len(set(members)) != len(members):
            raise Refused(Refusal.REPEATED_SITE, "The cohort names a site twice.", "Name each site once.")
        if self.site not in members:
            raise Refused(
                Refusal.NOT_IN_COHORT, f"{self.site} is not in the cohort.", "Ask only the sites of the cohort."
            )
        if len(members) < self.minimum_cohort:
            raise Refused(
                Refusal.COHORT_TOO_SMALL,
                f"A cohort of {len(members)} is under the agreed minimum of {self.minimum_cohort}.",
                "Wait for more sites, or stop the study.",
            )
        return members

    def _check_order(self, round_number: int, attempt: int) -> None:
        require_count("the round", round_number, 0)
        require_count("the attempt", attempt, 0)
        assert self._roots is not None  # contribute checked
        if self._last is not None and (round_number, attempt) <= self._last:
            raise Refused(
                Refusal.CONSUMED,
                f"Round {round_number}, attempt {attempt} is consumed; the last was round {self._last[0]}, "
                f"attempt {self._last[1]}.",
                "Resend the stored bytes, or begin a new attempt.",
            )
        if not self._roots.round_number <= round_number <= MAX_ROUND:
            raise Refused(
                Refusal.ROUND_GONE,
                f"Round {round_number} is committed or beyond what the keys allow.",
                "Continue from the next round.",
            )

    def _check_purpose(self, values: Float64, purpose: str) -> None:
        expected = self.lengths.get(purpose)
        if expected is None:
            raise Refused(Refusal.NO_SUCH_SUM, f"The plan has no sum for {purpose}.", "Use a purpose of the plan.")
        if self._spent.get(purpose, 0) >= self.allowed.get(purpose, math.inf):
            raise Refused(
                Refusal.RETRIES_SPENT,
                f"All {self.allowed[purpose]} contributions that the plan allows for {purpose} are spent.",
                "Stop the study: the noise was calibrated for no more.",
            )
        if not isinstance(values, np.ndarray) or values.dtype != np.float64 or values.shape != (expected,):
            raise Refused(
                Refusal.WRONG_LENGTH,
                f"The vector for {purpose} must be float64 of length {expected}.",
                "Check the model's architecture.",
            )


def _quantize_and_mask(values: Float64, words: Words, quantizer: Quantizer, masks: list[Mask]) -> None:
    """Chunk by chunk, each read once and written once; `words` may be the front half of `values`, for a chunk
    is read before it is written and never reaches into the next.
    """
    buffer = mask_buffer(min(words.size, CHUNK))
    for start in range(0, values.size, CHUNK):
        part = words[start : start + CHUNK]
        quantizer.chunk(values[start : start + CHUNK], part, start)
        for mask in masks:
            mask.apply(part, buffer)
    quantizer.finish(words)
