"""What one site gives to an exploration, computed in the worker: a noised sum over all patients who would train.

Light on import: the agent describes a request, the worker, with the patients and numpy, answers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from protocol.exploration import ExplorationPlan
from protocol.round import Phase
from protocol.statistics import Resolved

if TYPE_CHECKING:
    from privacy.entropy import Entropy
    from privacy.local.patients import Group
    from privacy.statistics.queries import Query


def asked_of_worker(plan: ExplorationPlan, phase: Phase) -> dict[str, Any]:
    """What the worker must know of the plan for the phase, as JSON."""
    asked = plan.spec.cluster_axes() if phase == "cluster" else plan.spec.resolved()
    return {"queries": [vars(one) for one in asked]}


def explore(group: Group, header: Mapping[str, Any], body: bytes | bytearray, entropy: Entropy) -> bytes:
    """The noised sum, float64 little-endian. header: `asked_of_worker`, with `op` and `noise_std`. body: the centres
    of a clustering. Raises PrivacyError, ValueError."""
    import numpy as np

    from privacy.statistics.clusters import private_cluster_sum
    from privacy.statistics.queries import private_statistics

    queries = [_query(told) for told in header["queries"]]
    std = float(header["noise_std"])
    if header["op"] == "statistics":
        result = private_statistics(group, queries, noise_std=std, entropy=entropy)
    else:
        centers = np.frombuffer(body, dtype="<f8").astype(np.float64).reshape(-1, len(queries))
        result = private_cluster_sum(group, queries, centers, noise_std=std, entropy=entropy)
    return result.astype("<f8", copy=False).tobytes()


def _query(told: Mapping[str, Any]) -> Query:
    from privacy.statistics.queries import Query

    resolved = Resolved(**{**told, "edges": tuple(told["edges"]), "probabilities": tuple(told["probabilities"])})
    return Query(**vars(resolved))
