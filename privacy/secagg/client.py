"""A site's side of secure aggregation, sans I/O: messages and vectors in, messages and bytes out.

The shell stores `export_state()` in the same transaction as the charge and the returned bytes, before it
sends them. A resend is those bytes from disk: this machine never answers twice for one (round, attempt),
since fresh noise under an old mask would reveal a difference. The state holds secrets and belongs in the
site's encrypted database.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from privacy.entropy import Entropy, Float64, KeyStream
from privacy.parameters import Grid, require_count
from privacy.secagg import site_state
from privacy.secagg.field import Words, as_bytes
from privacy.secagg.key_agreement import MAX_ROUND, PairRoots, SetupKeys, confirmation, encapsulate, pair_root
from privacy.secagg.masking import Mask, mask_buffer, mask_key
from privacy.secagg.messages import (
    DIGEST_BYTES,
    MAX_SITES,
    Encapsulations,
    KeyAdvert,
    adverts_digest,
    check_bytes,
    check_name,
    transcript_digest,
)
from privacy.secagg.quantization import CHUNK, Quantizer
from privacy.secagg.refusals import Refusal, Refused

SMALLEST_COHORT = 3
TRAINING = "training"
_Message = TypeVar("_Message", KeyAdvert, Encapsulations)


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
        names = tuple(sorted(check_name("A site of the study", peer) for peer in peers))
        if len(set(names)) != len(names) or not SMALLEST_COHORT <= len(names) <= MAX_SITES or site not in names:
            raise Refused(
                Refusal.STUDY_UNFIT,
                f"A study needs {SMALLEST_COHORT} to {MAX_SITES} different sites, this one among them.",
                "Check the sites that the plan names.",
            )
        require_count("the minimum cohort", minimum_cohort, SMALLEST_COHORT)
        if minimum_cohort > len(names) or not lengths:
            raise Refused(
                Refusal.STUDY_UNFIT, "The plan's minimum cohort or vector lengths do not fit.", "Check the plan."
            )
        for purpose, length in lengths.items():
            check_name("A purpose", purpose)
            require_count(f"the length for {purpose}", length, 1)
        self.site = site
        self.study = check_name("The study", study)
        self.plan_digest = check_bytes("The plan digest", plan_digest, DIGEST_BYTES)
        self.peers = names
        self.minimum_cohort = minimum_cohort
        self.lengths = dict(lengths)
        self.allowed = dict(allowed or {})
        for purpose, most in self.allowed.items():
            require_count(f"the contributions allowed for {purpose}", most, 1)
            if purpose not in self.lengths:
                raise Refused(Refusal.STUDY_UNFIT, f"The plan has no sum for {purpose}.", "Check the plan.")
        self._setup: SetupKeys | None = None
        self._adverts: dict[str, KeyAdvert] = {}
        self._sent: Encapsulations | None = None
        self._early_roots: dict[str, bytes] = {}
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
        """This site's advert; asked again before the set-up is complete, the same one. Raises
        Refused.
        """
        if self.ready:
            raise Refused(
                Refusal.OUT_OF_ORDER,
                f"{self.site} has set up its keys for the study {self.study}.",
                "Keys are made once per study.",
            )
        if self._setup is None:
            self._setup = SetupKeys.generate(entropy)
        return self._setup.advert(study=self.study, plan_digest=self.plan_digest, site=self.site)

    def on_adverts(self, adverts: Iterable[KeyAdvert]) -> Encapsulations:
        """All sites' adverts -> this site's encapsulations. The same adverts again give the same message.

        Raises Refused for a missing, unknown or repeated site, another study or plan, an advert
        in this site's name that it did not make, a key that cannot be used, and for adverts that differ
        from the first ones.
        """
        if self._setup is None and not self.ready:
            raise Refused(Refusal.OUT_OF_ORDER, f"{self.site} has not advertised its keys.", "Advertise first.")
        by_site = self._check_adverts(tuple(adverts))
        if self._sent is not None:
            if adverts_digest(by_site.values()) != self._sent.adverts:
                raise Refused(
                    Refusal.SPLIT_VIEW,
                    "The adverts differ from those shown before.",
                    "Begin the study anew; keys are made once.",
                )
            return self._sent
        assert self._setup is not None  # the first adverts come before the set-up keys are dropped
        mine = by_site[self.site]
        if mine != self.advertise(_no_entropy):
            raise Refused(
                Refusal.SPLIT_VIEW,
                f"The advert in the name of {self.site} is not its own.",
                "Treat the coordinator as compromised.",
            )
        roots: dict[str, bytes] = {}
        ciphertexts: dict[str, bytes] = {}
        for peer, advert in by_site.items():
            if peer != self.site:
                shared = self._setup.x25519_shared(advert)  # also for earlier names: refuse bad keys at once
                if peer > self.site:
                    secret, ciphertexts[peer] = encapsulate(advert)
                    roots[peer] = pair_root(shared, secret, ciphertexts[peer], mine, advert)
        seen = adverts_digest(by_site.values())
        message = Encapsulations(
            study=self.study,
            plan_digest=self.plan_digest,
            site=self.site,
            adverts=seen,
            ciphertexts=ciphertexts,
            confirmations={
                peer: confirmation(root, adverts=seen, sender=self.site, receiver=peer) for peer, root in roots.items()
            },
        )
        self._adverts, self._early_roots, self._sent = by_site, roots, message
        return message

    def on_encapsulations(self, messages: Iterable[Encapsulations]) -> None:
        """All other sites' encapsulations (this site's own may be among them); afterwards the site is
        `ready`.

        Raises Refused for a missing, unknown or repeated sender, another study or plan, a sender
        that saw other adverts, one without a ciphertext for this site, or one whose confirmation shows that it
        has another root (a ciphertext was changed on the way). The set-up keys are dropped. Repeating is
        refused.
        """
        if self._setup is None or self._sent is None:
            raise Refused(
                Refusal.OUT_OF_ORDER,
                f"{self.site} expects no encapsulations now.",
                "Exchange adverts first, and encapsulations once.",
            )
        by_site = _by_site(messages)
        by_site.setdefault(self.site, self._sent)
        if tuple(sorted(by_site)) != self.peers or by_site[self.site] != self._sent:
            raise Refused(
                Refusal.MISSING_SITE,
                "The encapsulations are not one from each site of the study.",
                "Wait for every site's message.",
            )
        roots = dict(self._early_roots)
        for sender, message in by_site.items():
            self._check_binding(message.study, message.plan_digest, sender)
            expected = {peer for peer in self.peers if peer > sender}
            if message.adverts != self._sent.adverts or set(message.ciphertexts) != expected:
                raise Refused(
                    Refusal.SPLIT_VIEW,
                    f"{sender} saw other adverts than {self.site}, or left a site out.",
                    "Treat the coordinator as compromised.",
                )
            if sender < self.site:
                advert, ciphertext = self._adverts[sender], message.ciphertexts[self.site]
                shared = self._setup.x25519_shared(advert)
                secret = self._setup.decapsulate(ciphertext, sender)
                root = pair_root(shared, secret, ciphertext, self._adverts[self.site], advert)
                expected_tag = confirmation(root, adverts=message.adverts, sender=sender, receiver=self.site)
                if not hmac.compare_digest(expected_tag, message.confirmations[self.site]):
                    raise Refused(
                        Refusal.KEY_UNCONFIRMED,
                        f"{sender} and {self.site} do not have the same key: a message was changed on the way.",
                        "Treat the coordinator as compromised.",
                    )
                roots[sender] = root
        self._roots, self._transcript = PairRoots(0, roots), transcript_digest(by_site.values())
        self._setup, self._early_roots = None, {}

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
                "setup": self._setup,
                "adverts": self._adverts,
                "sent": self._sent,
                "early_roots": self._early_roots,
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
        machine._setup, machine._adverts, machine._sent = fields["setup"], fields["adverts"], fields["sent"]
        machine._early_roots, machine._roots = fields["early_roots"], fields["roots"]
        machine._transcript, machine._last, machine._spent = fields["transcript"], fields["last"], fields["spent"]
        return machine

    def _check_adverts(self, adverts: tuple[KeyAdvert, ...]) -> dict[str, KeyAdvert]:
        by_site = _by_site(adverts)
        for site, advert in by_site.items():
            if site not in self.peers:
                raise Refused(
                    Refusal.UNKNOWN_SITE,
                    f"{site} advertises keys but is not pinned for the study.",
                    "Grant a plan that names it.",
                )
            self._check_binding(advert.study, advert.plan_digest, site)
        missing = [peer for peer in self.peers if peer not in by_site]
        if missing:
            raise Refused(
                Refusal.MISSING_SITE, f"The adverts lack {', '.join(missing)}.", "Wait for every site of the study."
            )
        return {peer: by_site[peer] for peer in self.peers}

    def _check_binding(self, study: str, plan_digest: bytes, sender: str) -> None:
        if study != self.study or plan_digest != self.plan_digest:
            raise Refused(
                Refusal.OTHER_STUDY,
                f"The message of {sender} is for another study or plan.",
                "Grant the same plan at every site.",
            )

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


def _no_entropy(count: int) -> bytes:
    raise AssertionError("the set-up keys exist already")


def _by_site(messages: Iterable[_Message]) -> dict[str, _Message]:
    by_site: dict[str, _Message] = {}
    for message in messages:
        if message.site in by_site:
            raise Refused(Refusal.REPEATED_SITE, f"{message.site} is there twice.", "Keep one message from each site.")
        by_site[message.site] = message
    return by_site
