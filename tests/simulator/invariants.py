"""What must hold after every study, however it went."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from coordinator.rounds.attempts import request_of
from coordinator.rounds.optimiser import (
    ModelPoint,
    candidate_weights,
    from_bytes,
    initial_point,
    next_point,
)
from coordinator.rounds.states import AttemptStatus
from coordinator.studies.states import StudyState
from protocol.envelope import Envelope
from protocol.release import EpsilonStatement
from protocol.round import CONTRIBUTION_TYPE, Packet, RoundRequest
from tests.simulator.federation import Federation


def check(federation: Federation, study: str, *, rounding: float = 1e-6) -> None:
    """All of them. rounding: how far the grid may move a weight; it is the larger the larger clip and rate are."""
    the_ledger_never_undercounts(federation, study)
    an_attempt_is_answered_once(federation)
    only_whole_cohorts_are_committed(federation, study)
    the_weights_are_those_of_the_true_sums(federation, study, rounding)
    the_log_tells_of_every_round(federation, study)


def the_ledger_never_undercounts(federation: Federation, study: str) -> None:
    spec = federation.plan(study).spec
    for name, site in federation.sites.items():
        charged = federation.charged(study, name)
        assert sum(charged.values()) >= site.worker.noisy_steps, name
        assert charged.get(False, 0) <= spec.steps
        assert charged.get(True, 0) <= spec.evaluations


def an_attempt_is_answered_once(federation: Federation) -> None:
    """Whatever a site said to one attempt, it never said two different contributions."""
    contributions: dict[tuple[str, str, int, int], set[bytes]] = defaultdict(set)
    for site, request, said in federation.exchange.answers:
        if Packet.from_bytes(said).envelope.payload_type == CONTRIBUTION_TYPE:
            asked = RoundRequest.model_validate_json(Packet.from_bytes(request).envelope.payload)
            contributions[site, asked.phase, asked.round, asked.attempt].add(said)
    assert all(len(said) == 1 for said in contributions.values())


def only_whole_cohorts_are_committed(federation: Federation, study: str) -> None:
    minimum = federation.plan(study).spec.minimum_sites
    for recorded in federation.attempts(study):
        attempt = recorded.attempt
        if attempt.status is AttemptStatus.COMMITTED:
            assert attempt.contributed == attempt.cohort
            assert len(attempt.cohort) >= minimum
        if attempt.status is AttemptStatus.ABANDONED:
            assert not set(attempt.contributed) & set(attempt.excluded)
    for record in federation.records(study):
        assert len(record["contributed"]) >= minimum
        assert not set(record["contributed"]) & set(record["excluded"])


def the_weights_are_those_of_the_true_sums(federation: Federation, study: str, rounding: float) -> None:
    """Replay the optimiser over what the sites' workers really computed, run by run; the secure sum may differ by its
    rounding."""
    plan = federation.plan(study)
    first = initial_point(plan.spec.model, plan.spec.dataset.shape, federation.row(study).plan_digest or "")
    requests = {(a.attempt.phase, a.attempt.round): request_of(a) for a in federation.attempts(study)}
    runs, model = [[first]], first.digest
    begun = 0
    for record in federation.records(study):
        if record["phase"] != "train":
            continue
        run = plan.run_of("train", record["round"])
        if run > len(runs):
            runs.append([first])
            model = first.digest
        # Every run begins with the same model: what was computed of it is kept in the order of the runs.
        which = -1 if model != first.digest else begun + record["attempts"] - 1
        begun += record["attempts"] if model == first.digest else 0
        workers = [federation.sites[site].worker for site in record["contributed"]]
        true_sum = sum(
            worker.returned[model][which if len(worker.returned[model]) > which else -1] for worker in workers
        )
        entry = requests["train", record["round"]].entry
        runs[-1].append(next_point(plan.of_entry(entry), runs[-1][-1], true_sum, tuple(record["contributed"])))
        model = record["model"]
    candidate = federation.candidate(study)
    if federation.state(study) is StudyState.CANDIDATE:
        assert candidate is not None
        selection = EpsilonStatement.model_validate_json(candidate.epsilon).selection
        assert (selection is None) == (plan.spec.tuning is None)
        chosen = 0 if selection is None else selection.runs.index(selection.chosen)
        np.testing.assert_allclose(from_bytes(candidate.weights), candidate_weights(runs[chosen][-1]), atol=rounding)
    else:
        assert candidate is None
    stored = _stored(federation, study)
    if stored is not None and stored.run == len(runs):
        np.testing.assert_allclose(stored.weights, runs[-1][-1].weights, atol=rounding)
        assert stored.rounds == len(runs[-1]) - 1


def the_log_tells_of_every_round(federation: Federation, study: str) -> None:
    events = federation.events(study)
    committed = [event for event in events if event.event == "round.committed"]
    committed.sort(key=lambda event: event.labels["phase"], reverse=True)  # training first, as the records are
    records = federation.records(study)
    assert [(e.labels["phase"], e.numbers["round"], e.digests["model"]) for e in committed] == [
        (r["phase"], r["round"], r["model"]) for r in records
    ]
    for event, record in zip(committed, records, strict=True):
        assert event.groups["contributed"] == tuple(record["contributed"])
        assert event.groups["excluded"] == tuple(f"{s}:{c}" for s, c in sorted(record["excluded"].items()))
    attempted = [event for event in events if event.event == "round.attempted"]
    assert len(attempted) == len(federation.attempts(study))


def _stored(federation: Federation, study: str) -> ModelPoint | None:
    from coordinator.database import reading
    from coordinator.rounds.repository import RoundRepository

    with reading(federation.appliance.engine) as session:
        return RoundRepository(session).model(study)


def requests_sent(federation: Federation) -> dict[str, set[bytes]]:
    """Group label -> the distinct request envelopes that were sent under it."""
    sent: dict[str, set[bytes]] = defaultdict(set)
    for _, group, packets in federation.exchange.requests:
        for packet in packets.values():
            envelope: Envelope = Packet.from_bytes(packet).envelope
            sent[group].add(envelope.to_bytes())
    return sent
