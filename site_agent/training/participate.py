"""Answers the coordinator's requests for one site: refuse, or charge, compute, mask, keep and only then send.

The order of a round's attempt is fixed: verify, ask the site's own round gate, find a stored answer, make the worker
ready, charge durably, compute in the worker, mask here, store the packet with the keys' new state, return it. Whatever
is refused before the charge costs the patients nothing; whatever fails after it stays charged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import BaseModel

from privacy.errors import PrivacyError
from protocol.canonical import canonical, sha256_hex
from protocol.envelope import seal
from protocol.errors import CloisterError
from protocol.round import (
    CONTRIBUTION_TYPE,
    KEY_ADVERT_TYPE,
    KEY_ENCAPSULATION_TYPE,
    KEY_ESTABLISHED_TYPE,
    MAX_CHUNK,
    REFUSAL_TYPE,
    Contribution,
    KeyReply,
    KeyRequest,
    Packet,
    RefusalCode,
    RoundRefusal,
    RoundRequest,
)
from protocol.signing import VerifyingKey
from protocol.study_kind import AnyPlan
from protocol.timestamp import moment, timestamp
from site_agent.consent.plans import open_plan
from site_agent.consent.tables import StudyGrant
from site_agent.database import DatabaseUnusable
from site_agent.keystore import SiteKeys
from site_agent.settings import SiteSettings
from site_agent.training.budget_store import BudgetStore
from site_agent.training.engine import engine_version
from site_agent.training.refusals import code_of
from site_agent.training.requests import Asked, check_cohort, check_own_counts, check_round, open_request, peer_messages
from site_agent.training.round_gate import RoundGate, RoundRefused
from site_agent.training.states import AttemptKey, AttemptRefused
from site_agent.training.sums import largest_parameter, sum_parameters
from site_agent.training.tables import RoundDecision
from site_agent.training.worker_client import WorkerClient, WorkerFailed

if TYPE_CHECKING:
    from privacy.entropy import Entropy
    from privacy.secagg.client import SecAggSite

_REPLY_TYPES = {
    "advertise": KEY_ADVERT_TYPE,
    "encapsulate": KEY_ENCAPSULATION_TYPE,
    "establish": KEY_ESTABLISHED_TYPE,
}
_log = structlog.get_logger()


class Participant:
    """One site in all its studies. Use from one thread; every answer is a packet, a refusal too.

    entropy: the operating system's generator. clock: aware UTC. chunk_bytes: a longer vector is announced by its
    manifest and stored for the transport to send in chunks of this size, 4 KiB to 1 MiB. reached: told each point that
    is behind, for tests that end the process there.
    """

    def __init__(
        self,
        *,
        settings: SiteSettings,
        keys: SiteKeys,
        store: BudgetStore,
        worker: WorkerClient,
        clock: Callable[[], datetime],
        entropy: Entropy = os.urandom,
        chunk_bytes: int = MAX_CHUNK,
        reached: Callable[[str], None] = lambda _point: None,
    ) -> None:
        self._settings = settings
        self._key = keys.identity
        self._state_key = keys.state
        self._coordinator = VerifyingKey.from_text(settings.coordinator)
        self._store = store
        self._worker = worker
        self._clock = clock
        self._entropy = entropy
        self._chunk_bytes = chunk_bytes
        self._reached = reached
        self._gate = RoundGate(settings, keys.identity.public, entropy=entropy)
        self._plans: dict[str, AnyPlan] = {}

    def answer(self, kind: str, packet: bytes) -> bytes:
        """The packet to send back: what was asked for, or a signed refusal with a closed code. Never raises for
        anything that the coordinator sent."""
        about = ("unknown", "unknown", 0, 0)
        try:
            asked = open_request(kind, packet, self._coordinator)
            about = _subject(asked)
            return self._answer(asked)
        except AttemptRefused as refused:
            return self._refuse(about, refused.code, refused.record if isinstance(refused, RoundRefused) else None)
        except WorkerFailed as error:
            _log.warning("training-failed", study=about[0], reason=error.message)
            return self._refuse(about, RefusalCode.TRAINING_FAILED)
        except PrivacyError as error:
            _log.error("secure-sum-refused", study=about[0], code=error.code)
            return self._refuse(about, code_of(error))
        except CloisterError as error:
            _log.error("request-failed", study=about[0], code=error.code)
            return self._refuse(about, RefusalCode.INTERNAL)

    def _answer(self, asked: Asked) -> bytes:
        self._store.require_sound()
        self._store.require_tested()
        grant, plan = self._granted(asked)
        check_cohort(asked.document.cohort, plan, self._settings.site)
        if isinstance(asked.document, KeyRequest):
            return self._key_step(asked.document, asked, plan)
        return self._contribute(asked.document, asked, plan, grant)

    def _granted(self, asked: Asked) -> tuple[StudyGrant, AnyPlan]:
        grant = self._store.granted(asked.document.plan_digest)
        if grant is None or grant.study != asked.document.study:
            raise AttemptRefused(RefusalCode.PLAN_NOT_GRANTED)
        plan = self._plans.get(grant.plan_digest)
        if plan is None:
            signed = open_plan(grant.plan, self._settings.coordinator)
            if signed.digest != grant.plan_digest:
                raise AttemptRefused(RefusalCode.PLAN_NOT_GRANTED)
            plan = self._plans.setdefault(grant.plan_digest, signed.plan)
        return grant, plan

    # Keys

    def _key_step(self, request: KeyRequest, asked: Asked, plan: AnyPlan) -> bytes:
        from privacy.secagg.client import SecAggSite
        from privacy.secagg.messages import Encapsulations, KeyAdvert

        before = self._store.key_reply(request.study, request.step)
        if before is not None and before[0] == asked.digest:
            return before[1]
        anew = request.step == "advertise"
        if anew:
            machine = SecAggSite(
                site=self._settings.site,
                study=request.study,
                plan_digest=_raw(request.plan_digest),
                peers=request.cohort,
                minimum_cohort=plan.spec.minimum_sites,
                lengths={phase: plan.secure_sum(phase, request.cohort).length for phase in plan.attempts},
                allowed=dict(plan.attempts.items()),
            )
        else:
            machine = self._machine(request.study, request.plan_digest)
        if machine.peers != request.cohort:
            raise AttemptRefused(RefusalCode.KEYS_REFUSED)
        message: dict[str, Any]
        if request.step == "advertise":
            message = dict(machine.advertise(self._entropy).to_dict())
        elif request.step == "encapsulate":
            adverts = [KeyAdvert.from_dict(said) for said in _of_signers(request, asked, plan)]
            message = machine.on_adverts(adverts).to_dict()
        else:
            received = [Encapsulations.from_dict(said) for said in _of_signers(request, asked, plan)]
            machine.on_encapsulations(received)
            message = {"transcript": f"sha256:{machine.transcript.hex()}"}
        reply = KeyReply(
            study=request.study,
            plan_digest=request.plan_digest,
            site=self._settings.site,
            step=request.step,
            message=message,
        )
        packet = self._sealed(_REPLY_TYPES[request.step], reply)
        self._store.keep_key_step(
            request.study,
            request.step,
            plan_digest=request.plan_digest,
            request_digest=asked.digest,
            packet=packet,
            state=self._sealed_state(machine),
            anew=anew,
        )
        _log.info("key-step", study=request.study, step=request.step, sites=len(request.cohort))
        return packet

    def _machine(self, study: str, plan_digest: str) -> SecAggSite:
        from privacy.secagg.client import SecAggSite
        from privacy.secagg.sealed_state import unseal

        state = self._store.keys(study, plan_digest)
        if state is None:
            raise AttemptRefused(RefusalCode.KEYS_MISSING)
        return SecAggSite.restore(unseal(state, self._state_key, study=study, plan_digest=_raw(plan_digest)))

    def _sealed_state(self, machine: SecAggSite) -> bytes:
        from privacy.secagg.sealed_state import seal as seal_state

        return seal_state(
            machine.export_state(),
            self._state_key,
            study=machine.study,
            plan_digest=machine.plan_digest,
            entropy=self._entropy,
        )

    # Rounds

    def _contribute(self, request: RoundRequest, asked: Asked, plan: AnyPlan, grant: StudyGrant) -> bytes:
        check_round(request, asked.body, plan)
        with self._store.reading() as session:
            decision = self._gate.ask(session, grant, request, plan, now=self._clock())
        plan = plan.of_entry(request.entry)
        key = AttemptKey(request.study, request.phase, request.round, request.attempt)
        stored = self._store.stored(key, plan_digest=request.plan_digest, request_digest=asked.digest)
        if stored is not None:
            _log.info("resent", study=key.study, phase=key.phase, round=key.round, attempt=key.attempt)
            return stored

        import numpy as np

        from privacy.secagg.framing import Manifest

        model = np.frombuffer(asked.body, dtype="<f8")
        if not bool(np.isfinite(model).all()):
            raise AttemptRefused(RefusalCode.MODEL_NOT_FINITE)
        if model.size and max(float(model.max()), -float(model.min())) > largest_parameter(plan):
            raise AttemptRefused(RefusalCode.MODEL_TOO_LARGE)
        machine = self._machine(request.study, request.plan_digest)
        if not machine.ready:
            raise AttemptRefused(RefusalCode.KEYS_MISSING)
        if not set(request.cohort) <= set(machine.peers):
            raise AttemptRefused(RefusalCode.UNKNOWN_SITE)
        grid, noise_std = sum_parameters(plan.secure_sum(request.phase, request.cohort))
        snapshot = self._store.snapshot_in_use(grant)
        check_own_counts(request, plan, snapshot.held_out)
        self._worker.open(plan, snapshot.digest)
        now = self._clock()
        position = plan.position(request.phase, request.round)
        stored = self._store.consume(
            key,
            position=position,
            plan_digest=request.plan_digest,
            request_digest=asked.digest,
            model=request.model,
            expired=now > moment(request.expires_at),
            at=timestamp(now),
            snapshot=snapshot.digest,
            steps=plan.steps_of(request.phase),
            decision=decision,
        )
        if stored is not None:
            return stored
        noised = self._worker.compute(plan, request.phase, request.round, asked.body, noise_std=noise_std)
        self._reached("computed")
        # The masked words are laid over the worker's own buffer: no second vector is made.
        masked = machine.contribute(
            position,
            request.attempt,
            request.cohort,
            _raw(request.asked),
            np.frombuffer(noised, dtype="<f8").astype(np.float64, copy=False),
            grid,
            self._entropy,
            plan_digest=_raw(request.plan_digest),
            purpose=request.phase,
            overwrite=True,
        )
        manifest = Manifest.of(masked, self._chunk_bytes) if len(masked) > self._chunk_bytes else None
        body = bytes(masked) if manifest is None else canonical(manifest.to_dict())
        contribution = Contribution(
            study=request.study,
            plan_digest=request.plan_digest,
            phase=request.phase,
            round=request.round,
            attempt=request.attempt,
            site=self._settings.site,
            cohort=request.cohort,
            model=request.model,
            length=len(masked) // 4,
            body=sha256_hex(body),
            engine=engine_version().digest,
            manifest=None if manifest is None else f"sha256:{manifest.digest().hex()}",
        )
        packet = self._sealed(CONTRIBUTION_TYPE, contribution, body)
        self._store.keep(key, packet, self._sealed_state(machine), None if manifest is None else masked)
        # The state just replaced could unmask earlier rounds: it must not linger in the write-ahead log.
        self._store.erase_traces()
        _log.info("contributed", study=key.study, phase=key.phase, round=key.round, attempt=key.attempt)
        return packet

    # Answers

    def _sealed(self, payload_type: str, document: BaseModel, body: bytes = b"") -> bytes:
        return Packet(seal(payload_type, document.model_dump(mode="json"), self._key), body).to_bytes()

    def _refuse(
        self, about: tuple[str, str, int, int], code: RefusalCode, decision: RoundDecision | None = None
    ) -> bytes:
        study, phase, round_number, attempt = about
        _log.warning("refused", study=study, phase=phase, round=round_number, attempt=attempt, code=code.value)
        try:
            self._store.record_refusal(
                study=study,
                phase=phase,
                round_number=round_number,
                attempt=attempt,
                code=code.value,
                at=timestamp(self._clock()),
                decision=decision,
            )
        except DatabaseUnusable as error:
            _log.error("refusal-not-recorded", code=error.code)
        refusal = RoundRefusal(
            study=study, site=self._settings.site, phase=phase, round=round_number, attempt=attempt, code=code.value
        )
        return self._sealed(REFUSAL_TYPE, refusal)


def _subject(asked: Asked) -> tuple[str, str, int, int]:
    """(study, phase, round, attempt) of a request, as a refusal names it."""
    document = asked.document
    if isinstance(document, KeyRequest):
        return document.study, "keys", 0, 0
    return document.study, document.phase, document.round, document.attempt


def _of_signers(request: KeyRequest, asked: Asked, plan: AnyPlan) -> list[dict[str, Any]]:
    """The peers' messages, each naming the site whose pinned key signed it."""
    said = []
    for site, message in peer_messages(request, asked.body, plan):
        if message.get("site") != site:
            raise AttemptRefused(RefusalCode.BAD_PEER_SIGNATURE)
        said.append(message)
    return said


def _raw(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("sha256:"))
