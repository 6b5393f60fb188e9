"""The three steps in which the sites of a study agree on pairwise secrets through the coordinator, which learns none.

Requests hold no time and Ed25519 is deterministic, so a driver that starts anew sends the same bytes and sites answer
from disk. The coordinator checks who signed what; that the keys fit together is for the sites to check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from coordinator.rounds.contributions import Excluded, refusal_code
from coordinator.rounds.exchange import Exchange, Kind, Unreached
from protocol.canonical import digest, parse, sha256_hex
from protocol.envelope import Envelope, open_envelope, seal
from protocol.errors import BadSignature, CloisterError, Malformed
from protocol.plan import Plan
from protocol.round import (
    KEY_ADVERT_TYPE,
    KEY_ENCAPSULATION_TYPE,
    KEY_ESTABLISHED_TYPE,
    KEY_REQUEST_TYPE,
    REFUSAL_TYPE,
    KeyReply,
    KeyRequest,
    Packet,
    RoundRefusal,
    envelopes_to_body,
)
from protocol.signing import SigningKey, VerifyingKey

Step = Literal["advertise", "encapsulate", "establish"]
STEPS: tuple[tuple[Step, Kind, str], ...] = (
    ("advertise", "query.keys", KEY_ADVERT_TYPE),
    ("encapsulate", "query.encapsulate", KEY_ENCAPSULATION_TYPE),
    ("establish", "query.establish", KEY_ESTABLISHED_TYPE),
)
_PAUSE_SECONDS = 0.5


class KeysNotEstablished(CloisterError):
    """A site did not complete the key set-up; `excluded` says which and why, by closed codes."""

    code = "keys-not-established"

    def __init__(self, step: str, excluded: Mapping[str, str]) -> None:
        self.excluded = dict(excluded)
        told = ", ".join(f"{site} ({code})" for site, code in sorted(excluded.items()))
        super().__init__(
            f"The key set-up stopped at the step {step}: {told}.",
            "Look at these sites' agents, then propose the study anew.",
        )


@dataclass(frozen=True)
class KeySetupRun:
    """One study's key set-up with a fixed cohort."""

    study: str
    plan: Plan
    plan_digest: str
    cohort: tuple[str, ...]
    signer: SigningKey

    def run(
        self,
        exchange: Exchange,
        *,
        deadline_seconds: float,
        now: Callable[[], float],
        joined: Callable[[tuple[str, ...]], None],
    ) -> str:
        """All three steps; the digest of the sites' signed last messages.

        deadline_seconds: for each step. now: monotonic seconds. joined: told who has advertised, as they come.
        Raises KeysNotEstablished, also where the sites did not all see the same messages.
        """
        gathered: tuple[Envelope, ...] = ()
        for step, kind, answer_type in STEPS:
            replies = self._ask(exchange, step, kind, answer_type, gathered, deadline_seconds, now, joined)
            gathered = tuple(replies[site] for site in self.cohort)
        _require_one_transcript(self.cohort, gathered)
        return digest([sha256_hex(envelope.to_bytes()) for envelope in gathered])

    def _ask(
        self,
        exchange: Exchange,
        step: Step,
        kind: Kind,
        answer_type: str,
        gathered: tuple[Envelope, ...],
        deadline_seconds: float,
        now: Callable[[], float],
        joined: Callable[[tuple[str, ...]], None],
    ) -> dict[str, Envelope]:
        packet = self._request(step, gathered).to_bytes()
        replies: dict[str, Envelope] = {}
        excluded: dict[str, str] = {}
        end = now() + deadline_seconds
        while True:
            waiting = [site for site in self.cohort if site not in replies]
            left = max(0.1, end - now())
            answers = exchange.request(
                kind, dict.fromkeys(waiting, packet), group=f"keys-{step}", deadline_seconds=left
            )
            for site in waiting:
                try:
                    replies[site] = self._reply(answers.get(site), site, step, answer_type)
                    excluded.pop(site, None)
                except Excluded as error:
                    excluded[site] = error.code
            if step == "advertise":
                joined(tuple(site for site in self.cohort if site in replies))
            if len(replies) == len(self.cohort):
                return replies
            if any(code.startswith("refused:") for code in excluded.values()) or now() >= end:
                raise KeysNotEstablished(step, excluded)
            exchange.wait(_PAUSE_SECONDS)

    def _request(self, step: Step, gathered: tuple[Envelope, ...]) -> Packet:
        body = envelopes_to_body(gathered)
        request = KeyRequest(
            study=self.study, plan_digest=self.plan_digest, step=step, cohort=self.cohort, body=sha256_hex(body)
        )
        return Packet(seal(KEY_REQUEST_TYPE, request.model_dump(mode="json"), self.signer), body)

    def _reply(self, answer: bytes | Unreached | None, site: str, step: Step, answer_type: str) -> Envelope:
        if answer is None:
            raise Excluded("no-answer")
        if isinstance(answer, Unreached):
            raise Excluded(answer.code)
        key = VerifyingKey.from_text(self.plan.site(site).identity)
        try:
            envelope = Packet.from_bytes(answer).envelope
            if envelope.payload_type == REFUSAL_TYPE:
                payload, _ = open_envelope(envelope, REFUSAL_TYPE, {key.key_id: key})
                raise Excluded(refusal_code(RoundRefusal.model_validate(parse(payload)).code))
            payload, _ = open_envelope(envelope, answer_type, {key.key_id: key})
            reply = KeyReply.model_validate(parse(payload))
        except BadSignature:
            raise Excluded("bad-signature") from None
        except (Malformed, ValidationError):
            raise Excluded("malformed") from None
        if (reply.study, reply.plan_digest, reply.site, reply.step) != (self.study, self.plan_digest, site, step):
            raise Excluded("wrong-reply")
        return envelope


def _require_one_transcript(cohort: tuple[str, ...], established: tuple[Envelope, ...]) -> None:
    """Each site's last message holds a digest of all that it saw. Where they differ, sums would be noise: stop here."""
    seen = [KeyReply.model_validate(parse(envelope.payload)).message for envelope in established]
    if any(message != seen[0] for message in seen):
        raise KeysNotEstablished("establish", dict.fromkeys(cohort, "transcripts-differ"))
