"""A worker that computes on known patients, in the place of the simulator's worker that knows only its sums."""

from __future__ import annotations

import numpy as np

from coordinator.rounds.optimiser import from_bytes
from privacy.entropy import Entropy
from privacy.local.contribution import membership_histogram, private_gradient_sum, score_histogram
from privacy.local.model import LocalModel
from privacy.local.patients import Cohort
from privacy.local.subgroups import Banding
from protocol.evaluation import cells
from protocol.membership import MOST_SCORED, PREDICTIONS
from protocol.round import Phase
from protocol.study import StudyPlan
from protocol.subgroups import bandings
from site_agent.training.architectures.catalogue import local_model


def planned_model(plan: StudyPlan) -> LocalModel:
    """The plan's model, as a site builds it."""
    return local_model(plan.spec.model, plan.spec.dataset.width)


class ComputingWorker:
    """The site's own step on known patients, with the bytes that the simulation draws, in the same order."""

    def __init__(self, cohort: Cohort, entropy: Entropy) -> None:
        self._cohort = cohort
        self._entropy = entropy
        self.noisy_steps = 0

    def open(self, plan: StudyPlan, snapshot: str) -> None:
        del plan, snapshot

    def reset(self) -> None:
        """Nothing is kept."""

    def compute(
        self, plan: StudyPlan, phase: Phase, round_number: int, body: bytes, *, noise_std: float | None
    ) -> bytes:
        del round_number
        if phase in ("evaluate", "check"):
            return self._evaluate(plan, phase, body, noise_std)
        if phase == "membership":
            return self._attack(plan, body, noise_std or 0.0)
        assert noise_std is not None
        return self._train(plan, body, noise_std)

    def _train(self, plan: StudyPlan, parameters: bytes, noise_std: float) -> bytes:
        training = plan.spec.training
        total = private_gradient_sum(
            self._cohort.training, planned_model(plan), from_bytes(parameters), clip=training.clip,
            sampling_rate=training.sampling_rate, noise_std=noise_std, entropy=self._entropy,
        )  # fmt: skip
        return self._give(total)

    def _attack(self, plan: StudyPlan, parameters: bytes, noise_std: float) -> bytes:
        counts = membership_histogram(
            self._cohort.training, self._cohort.held_out, planned_model(plan), from_bytes(parameters),
            prediction=PREDICTIONS[plan.kind], bins=plan.spec.audit.membership.bins, most=MOST_SCORED,
            noise_std=noise_std, entropy=self._entropy,
        )  # fmt: skip
        return self._give(counts)

    def _evaluate(self, plan: StudyPlan, phase: Phase, parameters: bytes, noise_std: float | None) -> bytes:
        declared = plan.spec.evaluation.subgroups if phase == "evaluate" else ()
        counts = score_histogram(
            self._cohort.held_out, planned_model(plan), from_bytes(parameters),
            cells=cells(plan.kind, plan.spec.evaluation.bins), noise_std=noise_std, entropy=self._entropy,
            subgroups=[
                Banding(one.at, one.width, one.edges)
                for one in bandings(declared, plan.spec.dataset)
            ],
        )  # fmt: skip
        return self._give(counts)

    def _give(self, vector: np.ndarray) -> bytes:
        self.noisy_steps += 1
        self._entropy(32)  # the simulation rounds onto the grid here; a site does so with bytes of its own
        return vector.astype("<f8").tobytes()
