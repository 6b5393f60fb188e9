"""What each site computes in a simulation, by the sites' own code, and what a study never learns: exact figures over
all patients. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.metrics import roc_auc_score

from coordinator.rounds.states import MEMBERSHIP, TRAIN
from privacy.auditing.membership import prediction_attack
from privacy.entropy import Entropy, Float64
from privacy.federated.local_training import LocalTraining, delta_without_noise, local_delta
from privacy.local.contribution import (
    clipped_gradient_sum,
    membership_histogram,
    private_gradient_sum,
    score_histogram,
)
from privacy.local.model import LocalModel
from privacy.local.network import Network
from privacy.local.patients import Cohort
from privacy.local.subgroups import Banding
from privacy.parameters import plan_grid
from protocol.architectures import NETWORKS
from protocol.dataset import NumberLabel
from protocol.evaluation import cells, residual_limit
from protocol.graph import ExportedGraph
from protocol.graph_shapes import measure
from protocol.media import Shape
from protocol.membership import MOST_SCORED, PREDICTIONS
from protocol.model import Model, layer_widths, loss_of
from protocol.plan import SecureSum
from protocol.round import Phase
from protocol.study import StudyPlan
from protocol.subgroups import bandings


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

    noise False: the comparison without any, which no study runs; what its membership audit would say is noised all the
    same. site: its name in the plan; local mode needs it.
    """
    planned, spec = plan.secure_sum(phase, cohort), plan.spec
    network = network_of(spec.model, spec.dataset.shape)
    std = None
    if noise and planned.noise_multiplier is not None:
        std = plan_grid(
            planned.clip, planned.sites, planned.tolerated, planned.largest_batch, planned.noise_multiplier
        ).site_std
    if phase == MEMBERSHIP:
        return _attacked(plan, patients, parameters, entropy, planned)
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


def _attacked(plan: StudyPlan, patients: Cohort, parameters: Float64, entropy: Entropy, planned: SecureSum) -> Float64:
    assert planned.noise_multiplier is not None
    grid = plan_grid(planned.clip, planned.sites, planned.tolerated, planned.largest_batch, planned.noise_multiplier)
    return membership_histogram(
        patients.training,
        patients.held_out,
        network_of(plan.spec.model, plan.spec.dataset.shape),
        parameters,
        prediction=PREDICTIONS[plan.kind],
        bins=plan.spec.audit.membership.bins,
        most=MOST_SCORED,
        noise_std=grid.site_std,
        entropy=entropy,
    )


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


def attack_auc(plan: StudyPlan, sites: Mapping[str, Cohort], weights: Float64) -> float | None:
    """How well the loss attack tells those who trained from those held out, over all sites and without noise: 0.5 for a
    coin. None where one of the groups is empty."""
    network, prediction = network_of(plan.spec.model, plan.spec.dataset.shape), PREDICTIONS[plan.kind]
    groups = [(group, member) for site in sites.values() for group, member in ((site.training, 1), (site.held_out, 0))]
    scores = [prediction_attack(prediction, network.scores(weights, group)) for group, _ in groups]
    member = np.concatenate([np.full(len(found), of) for found, (_, of) in zip(scores, groups, strict=True)])
    if np.unique(member).size < 2:
        return None
    return float(roc_auc_score(member, np.concatenate(scores)))
