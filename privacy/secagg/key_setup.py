"""A site's key set-up, sans I/O: every pair of sites agrees on a root through a coordinator that learns none.

Three steps, once per study: advertise, on_adverts, on_encapsulations. X25519 with ML-KEM-768 beside it; whoever calls
this has checked the senders' signatures. What follows from the roots is `privacy.secagg.client`.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from privacy.entropy import Entropy
from privacy.secagg.key_agreement import PairRoots, SetupKeys, confirmation, encapsulate, pair_root
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
from privacy.secagg.refusals import Refusal, Refused

SMALLEST_COHORT = 3
_Message = TypeVar("_Message", KeyAdvert, Encapsulations)


class KeySetup:
    """The state of one site in one study's set-up. peers: the names of all sites, this one included; 3 to 50."""

    def __init__(self, *, site: str, study: str, plan_digest: bytes, peers: Iterable[str]) -> None:
        """Raises Refused for parameters that no study may have."""
        names = tuple(sorted(check_name("A site of the study", peer) for peer in peers))
        if len(set(names)) != len(names) or not SMALLEST_COHORT <= len(names) <= MAX_SITES or site not in names:
            raise Refused(
                Refusal.STUDY_UNFIT,
                f"A study needs {SMALLEST_COHORT} to {MAX_SITES} different sites, this one among them.",
                "Check the sites that the plan names.",
            )
        self.site = site
        self.study = check_name("The study", study)
        self.plan_digest = check_bytes("The plan digest", plan_digest, DIGEST_BYTES)
        self.peers = names
        self._setup: SetupKeys | None = None
        self._adverts: dict[str, KeyAdvert] = {}
        self._sent: Encapsulations | None = None
        self._early_roots: dict[str, bytes] = {}

    def advertise(self, entropy: Entropy) -> KeyAdvert:
        """This site's advert; asked again before the set-up is complete, the same one. Raises
        Refused.
        """
        if self._setup is None and self._sent is not None:
            raise Refused(
                Refusal.OUT_OF_ORDER,
                f"{self.site} has set up its keys for the study {self.study}.",
                "Keys are made once per study.",
            )
        if self._setup is None:
            self._setup = SetupKeys.generate(entropy)
        return self._advert(self._setup)

    def _advert(self, keys: SetupKeys) -> KeyAdvert:
        return keys.advert(study=self.study, plan_digest=self.plan_digest, site=self.site)

    def on_adverts(self, adverts: Iterable[KeyAdvert]) -> Encapsulations:
        """All sites' adverts -> this site's encapsulations. The same adverts again give the same message.

        Raises Refused for a missing, unknown or repeated site, another study or plan, an advert
        in this site's name that it did not make, a key that cannot be used, and for adverts that differ
        from the first ones.
        """
        if self._setup is None and self._sent is None:
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
        if mine != self._advert(self._setup):
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

    def on_encapsulations(self, messages: Iterable[Encapsulations]) -> tuple[PairRoots, bytes]:
        """All other sites' encapsulations (this site's own may be among them) -> (the root of every pair, the
        transcript: SHA-256 of all encapsulations).

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
        self._setup, self._early_roots = None, {}
        return PairRoots(0, roots), transcript_digest(by_site.values())

    def fields(self) -> dict[str, Any]:
        """What `restore` takes: the set-up keys, the messages seen and sent, the roots so far."""
        return {
            "setup": self._setup,
            "adverts": self._adverts,
            "sent": self._sent,
            "early_roots": self._early_roots,
        }

    def restore(self, fields: Mapping[str, Any]) -> None:
        """Be as `fields` said."""
        self._setup, self._adverts = fields["setup"], fields["adverts"]
        self._sent, self._early_roots = fields["sent"], fields["early_roots"]

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


def _by_site(messages: Iterable[_Message]) -> dict[str, _Message]:
    by_site: dict[str, _Message] = {}
    for message in messages:
        if message.site in by_site:
            raise Refused(Refusal.REPEATED_SITE, f"{message.site} is there twice.", "Keep one message from each site.")
        by_site[message.site] = message
    return by_site
