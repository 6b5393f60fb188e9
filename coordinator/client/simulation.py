"""A study in one process, as it would run: the driver's own decisions, optimiser and evaluation, the sites' own step.

Left out is what changes no number: messages, signatures, and the masks of secure aggregation, which cancel. What each
site would send is rounded onto the plan's grid and summed modulo 2^32, as in a study. Nothing is charged to a ledger
and nothing leaves the machine, so the patients must be the researcher's own or made up. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from sklearn.metrics import roc_auc_score

from coordinator.rounds.attempts import grid_of, unmasked_sum
from coordinator.rounds.evaluation import evaluate_histogram
from coordinator.rounds.optimiser import ModelPoint, candidate_weights, next_point
from coordinator.rounds.runs import Run, first_point, is_last, point_after, scored, selection_of
from coordinator.rounds.states import (
    TRAIN,
    Attempt,
    AttemptStatus,
    Begin,
    Design,
    Fail,
    Finish,
    Progress,
    next_action,
)
from coordinator.studies.plan import Papers, build_plan, plan_digest
from privacy.entropy import Entropy, Float64, KeyStream
from privacy.federated.local_training import LocalTraining, delta_without_noise, local_delta
from privacy.local.contribution import clipped_gradient_sum, private_gradient_sum, score_histogram
from privacy.local.model import LocalModel
from privacy.local.network import Network
from privacy.local.patients import Cohort
from privacy.local.subgroups import Banding
from privacy.parameters import plan_grid
from privacy.secagg.field import WIRE
from privacy.secagg.quantization import quantize
from protocol.architectures import NETWORKS
from protocol.canonical import sha256_hex
from protocol.dataset import NumberLabel
from protocol.errors import CloisterError
from protocol.evaluation import EvaluationReport, cells, residual_limit
from protocol.graph import ExportedGraph
from protocol.graph_shapes import measure
from protocol.media import Shape
from protocol.model import Model, layer_widths, loss_of
from protocol.plan import PlannedSite
from protocol.proposal import MINIMUM_CELL, Proposal
from protocol.release import Selection
from protocol.round import Phase
from protocol.signing import SigningKey
from protocol.study import StudyPlan, StudySpec
from protocol.subgroups import bandings

_NO_TIME = "1970-01-01T00:00:00Z"


class SimulationRefused(CloisterError):
    """The study can't be simulated with these patients."""

    code = "simulation-refused"


@dataclass(frozen=True)
class Simulated:
    """How one run ended. failure: why there is no candidate. weights: (P,) the candidate's.

    measured: the first of the report's figures over all held-out patients, from their scores as they are; None where it
    is undefined. report: what the study itself would say, from its noised histogram. selection: of a tuned
    study.
    """

    rounds: int
    attempts: int
    failure: str | None = None
    weights: Float64 | None = None
    measured: float | None = None
    report: EvaluationReport | None = None
    selection: Selection | None = None


def network_of(model: Model, inputs: int | Shape) -> LocalModel:
    """The plan's model for encoded records of the shape `inputs`; a number D stands for (D,)."""
    shape = (inputs,) if isinstance(inputs, int) else inputs
    if isinstance(model, NETWORKS):
        from privacy.architectures.catalogue import network

        return network(model.architecture, shape, model.model_dump(exclude={"architecture"}))
    if isinstance(model, ExportedGraph):
        from privacy.local.graph_network import graph_model

        return graph_model(model, model.loss, measure(model).outputs)
    (width,) = shape
    return Network(layer_widths(model, width), loss_of(model))


def simulated_plan(spec: StudySpec, counts: Mapping[str, tuple[int, int]]) -> StudyPlan:
    """The plan that the coordinator would make; counts: (patients, held-out ones among them) by invited site.

    Raises SimulationRefused for a site that no plan takes, PlanRefused, PrivacyError.
    """
    papers = simulated_papers(spec, counts)
    evaluators = [name for name, (_, held_out) in counts.items() if held_out]
    if len(evaluators) < spec.minimum_sites:
        raise SimulationRefused(
            f"Only {len(evaluators)} sites would hold patients out for evaluation; minimum_sites is "
            f"{spec.minimum_sites}.",
            "Simulate with more patients: a site holds some out from 41 patients on.",
        )
    return build_plan(spec, papers, ())


def simulated_papers(spec: Proposal, counts: Mapping[str, tuple[int, int]]) -> Papers:
    """What goes into the plan beside the spec and the noise; its keys are nobody's. Raises SimulationRefused for a site
    that no plan takes."""
    for name, (patients, _) in counts.items():
        if patients <= MINIMUM_CELL:
            raise SimulationRefused(
                f"{name} would have {patients} patients; a study takes sites with more than {MINIMUM_CELL}.",
                "Simulate with more patients or fewer sites.",
            )
    sites = tuple(
        PlannedSite(
            name=name,
            identity=_key(name),
            jurisdiction=spec.legal_basis[name].jurisdiction,
            patients=counts[name][0],
            held_out=counts[name][1],
            snapshot=sha256_hex(name.encode()),
        )
        for name in spec.invited
    )
    return Papers(
        proposal_digest=sha256_hex(b"simulation"),
        submitter="simulation",
        sites=sites,
        packs={},
        witness_policy={},
        coordinator=_key("coordinator"),
        created_at=_NO_TIME,
    )


def _key(name: str) -> str:
    seed = hashlib.sha256(b"cloister simulation\0" + name.encode()).digest()
    return SigningKey.from_seed(seed).public.text


def site_vector(
    plan: StudyPlan,
    phase: Phase,
    cohort: tuple[str, ...],
    patients: Cohort,
    parameters: Float64,
    entropy: Entropy,
    *,
    noise: bool = True,
    site: str = "",
) -> Float64:
    """(length,) float64: what one site of the cohort computes in one attempt, before rounding onto the grid.

    noise False: the comparison without any, which no study runs. site: its name in the plan; local mode needs it.
    """
    planned, spec = plan.secure_sum(phase, cohort), plan.spec
    network = network_of(spec.model, spec.dataset.shape)
    std = None
    if noise and planned.noise_multiplier is not None:
        std = plan_grid(
            planned.clip, planned.sites, planned.tolerated, planned.largest_batch, planned.noise_multiplier
        ).site_std
    if phase != TRAIN:
        declared = spec.evaluation.subgroups if phase == "evaluate" else ()
        return score_histogram(
            patients.held_out,
            network,
            parameters,
            cells=cells(plan.kind, spec.evaluation.bins),
            noise_std=std,
            entropy=entropy,
            subgroups=[Banding(one.at, one.width, one.edges) for one in bandings(declared, spec.dataset)],
        )
    if spec.privacy.mode == "local":
        delta = local_delta if noise else delta_without_noise
        change = delta(patients.training, network, parameters, _local_training(plan, site), entropy=entropy)
        return change * plan.patients_share((site,))
    clip, rate = spec.training.clip, spec.training.sampling_rate
    if std is None:
        return clipped_gradient_sum(
            patients.training, network, parameters, clip=clip, sampling_rate=rate, entropy=entropy
        )
    return private_gradient_sum(
        patients.training, network, parameters, clip=clip, sampling_rate=rate, noise_std=std, entropy=entropy
    )


def _local_training(plan: StudyPlan, site: str) -> LocalTraining:
    training, here = plan.spec.training, plan.site(site)
    return LocalTraining(
        steps=training.local_steps,
        learning_rate=training.learning_rate,
        clip=training.clip,
        sampling_rate=training.sampling_rate,
        noise_multiplier=plan.noise_multiplier,
        expected_batch=training.sampling_rate * (here.patients - here.held_out),
        momentum=training.momentum,
        largest_delta=training.largest_delta,
    )


def simulate(
    plan: StudyPlan,
    sites: Mapping[str, Cohort],
    entropy: Entropy,
    *,
    answers: Callable[[], bool] = lambda: True,
    noise: bool = True,
    committed: Callable[[], None] = lambda: None,
) -> Simulated:
    """Run the plan to its candidate or its failure.

    sites: each planned site's patients. answers: asked once for each site of each attempt, whether its answer arrives.
    committed: called after each round.
    """
    design, progress = Design.of(plan), Progress(established=plan.names)
    its_digest = plan_digest(plan)
    point, runs = first_point(plan, its_digest), tuple[Run, ...]()
    report: EvaluationReport | None = None
    while True:
        action = next_action(design, plan.names, progress, frozenset(plan.names), patient=False)
        if isinstance(action, Fail):
            return Simulated(progress.done(TRAIN), progress.steps(TRAIN), failure=f"{action.code}: {action.detail}")
        if isinstance(action, Finish):
            weights = candidate_weights(point)
            measured = exact_measure(plan, sites, weights)
            done, steps = progress.done(TRAIN), progress.steps(TRAIN)
            chosen = selection_of(plan, runs)
            return Simulated(done, steps, weights=weights, measured=measured, report=report, selection=chosen)
        if not isinstance(action, Begin):
            raise AssertionError(f"a simulation never has to {type(action).__name__.lower()}")
        attempt = Attempt(action.phase, action.round, action.attempt, action.cohort)
        late = {name: "no-answer" for name in action.cohort if not answers()}
        if late:
            there = tuple(name for name in action.cohort if name not in late)
            closed = replace(attempt, status=AttemptStatus.ABANDONED, contributed=there, excluded=late)
            progress = progress.after(attempt).after(closed)
            continue
        here = plan.of_entry(point.entry)
        total = _sum(here, attempt, sites, point, entropy, noise)
        if attempt.phase == TRAIN:
            point = next_point(here, point, total, attempt.cohort)
        else:
            report = evaluate_histogram(plan, attempt.cohort, total)
            if not is_last(plan, point):
                runs = (*runs, scored(point, report))
                point = point_after(plan, its_digest, runs)
        closed = replace(attempt, status=AttemptStatus.COMMITTED, contributed=attempt.cohort)
        progress = progress.after(attempt).after(closed)
        committed()


def _sum(
    plan: StudyPlan, attempt: Attempt, sites: Mapping[str, Cohort], point: ModelPoint, entropy: Entropy, noise: bool
) -> Float64:
    planned = plan.secure_sum(attempt.phase, attempt.cohort)
    parameters = point.weights if attempt.phase == TRAIN else candidate_weights(point)
    bodies = {}
    for name in attempt.cohort:
        vector = site_vector(
            plan, attempt.phase, attempt.cohort, sites[name], parameters, entropy, noise=noise, site=name
        )
        words = quantize(vector, grid_of(planned), KeyStream.fresh(entropy))
        bodies[name] = words.astype(WIRE, copy=False).tobytes()
    return unmasked_sum(planned, attempt.cohort, bodies)


def exact_measure(plan: StudyPlan, sites: Mapping[str, Cohort], weights: Float64) -> float | None:
    """Over the held-out patients of all sites: the AUC of those whose outcome is known, None where they have one; the
    RMSE for a number, in its unit, of residuals cut to the limit; the mean of what is measured otherwise."""
    network = network_of(plan.spec.model, plan.spec.dataset.shape)
    found = [network.scores(weights, patients.held_out) for patients in sites.values()]
    scores = np.concatenate([site.scores for site in found])
    labels = np.concatenate([site.labels for site in found])
    label = plan.spec.dataset.label
    if isinstance(label, NumberLabel):
        residuals = (2.0 * scores - 1.0) * residual_limit(label)
        return float(np.sqrt(np.mean(residuals**2))) if residuals.size else None
    if found[0].groups == 1:
        return float(scores.mean()) if scores.size else None
    known = labels < 2
    return float(roc_auc_score(labels[known], scores[known])) if np.unique(labels[known]).size == 2 else None


def seeded_entropy(*numbers: int) -> Entropy:
    """Bytes that repeat with the numbers, so that a simulation does. They protect nobody."""
    stream = KeyStream(hashlib.sha256(b"cloister simulation\0" + repr(numbers).encode()).digest())
    return stream.bytes
