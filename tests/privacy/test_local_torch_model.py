"""Torch modules as models of a site: the same sum as patient by patient, however little fits into memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from privacy.dpsgd.private_gradients import Engine
from privacy.errors import ParameterError
from privacy.local.model import Hardware
from privacy.local.patients import Group
from privacy.local.torch_model import TorchModel

torch.set_num_threads(1)
PATIENTS, RECORDS = 7, 23


class Recurrent(nn.Module):
    """Codes in, the last state's logit out."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.memory, self.head = nn.Embedding(9, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.memory(self.codes(x))
        return self.head(states[:, -1])


class OneByOne(nn.Module):
    """Takes one record at a time, as an exported graph does, and owns its parameters itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 6, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 6) @ self.weight.t() + self.bias


def image() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))


def loss(output: Tensor, label: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(output[:, 0], label, reduction="none")


def score(output: Tensor) -> Tensor:
    return torch.sigmoid(output[:, 0])


def codes(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).long()


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Engine, Any]] = {
    "image": (image, (1, 6, 6), "auto", None),
    "recurrent": (Recurrent, (8,), "auto", codes),
    "one by one": (OneByOne, (2, 3), "vmap", None),
}


def model_of(family: str) -> TorchModel:
    build, _, engine, inputs = FAMILIES[family]
    return TorchModel(build, loss, score, inputs=inputs, engine=engine)


def group_of(family: str, seed: int = 1) -> Group:
    """Patients with 0 to many records: the last one has none."""
    random, shape = np.random.default_rng(seed), FAMILIES[family][1]
    owners = np.sort(np.concatenate([np.arange(PATIENTS - 1), random.integers(0, 3, RECORDS - PATIENTS + 1)]))
    x = (
        random.integers(0, 9, (RECORDS, *shape)).astype(float)
        if len(shape) == 1
        else random.normal(size=(RECORDS, *shape))
    )
    return Group(x, random.integers(0, 2, RECORDS).astype(float), owners, PATIENTS)


def by_hand(family: str, parameters: np.ndarray, group: Group, clip: float) -> np.ndarray:
    """Each patient's mean gradient by plain autograd, one record after the other."""
    build, _, _, inputs = FAMILIES[family]
    module = build().double()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(parameters), module.parameters())
    total = np.zeros(parameters.size)
    for number in range(group.patients):
        mine = np.flatnonzero(group.patient == number)
        module.zero_grad()
        for row in mine:
            x = torch.from_numpy(group.x[row : row + 1]) if inputs is None else inputs(group.x[row : row + 1])
            (loss(module(x), torch.from_numpy(group.y[row : row + 1])).sum() / len(mine)).backward()
        if len(mine):
            flat = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).numpy()
            total += flat * min(1.0, clip / np.linalg.norm(flat))
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("memory", [1 << 30, 20_000, 1], ids=["all at once", "some", "one by one"])
@pytest.mark.parametrize("clip", [0.05, 50.0])
def test_the_sum_is_that_of_clipped_patients(family: str, memory: int, clip: float) -> None:
    model, group = model_of(family), group_of(family)
    parameters = np.random.default_rng(3).normal(size=model.parameters) / 3
    expected = by_hand(family, parameters, group, clip)
    for _ in range(2):  # the second round finds the engine warm
        found = model.gradient_sum(parameters, group, clip, Hardware(memory=memory))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        parameters = parameters * 0.9
        expected = by_hand(family, parameters, group, clip)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_mean_over_a_patient_s_records(family: str) -> None:
    model, group = model_of(family), group_of(family)
    parameters = np.random.default_rng(3).normal(size=model.parameters)
    found = model.scores(parameters, group)
    assert found.scores.shape == (PATIENTS - 1,)  # nobody knows of one without records
    alone = model.scores(parameters, group.block(2, 1), Hardware(memory=1))
    assert alone.scores == pytest.approx(found.scores[2:3], rel=1e-5)
    assert set(found.labels) <= {0.0, 1.0}


def test_nobody_gives_zeros_and_a_patient_who_is_no_number_gives_nothing() -> None:
    model, group = model_of("image"), group_of("image")
    parameters = np.random.default_rng(3).normal(size=model.parameters)
    nobody = group.select(np.zeros(PATIENTS, dtype=bool))
    assert not model.gradient_sum(parameters, nobody, 1.0).any()
    spoiled = Group(
        np.where((group.patient == 1)[:, None, None, None], np.nan, group.x), group.y, group.patient, PATIENTS
    )
    others = group.select(np.arange(PATIENTS) != 1)
    found = model.gradient_sum(parameters, spoiled, 1.0)
    np.testing.assert_allclose(found, model.gradient_sum(parameters, others, 1.0), rtol=1e-4, atol=1e-5)
    assert np.isfinite(model.scores(parameters, spoiled).scores).all()


def test_memory_is_cut_by_what_a_record_keeps() -> None:
    model, x = model_of("image"), group_of("image").x
    sizes = [model._records_at_once(x, memory) for memory in (1, 1 << 16, 1 << 20)]
    assert sizes[0] == 1 < sizes[1] < sizes[2]


@pytest.mark.parametrize("size", [0, 1])
def test_a_vector_of_another_length_or_without_numbers_is_refused(size: int) -> None:
    model, group = model_of("image"), group_of("image")
    bad = np.zeros(model.parameters + size)
    bad[0] = 0.0 if size else np.inf
    with pytest.raises(ParameterError, match="finite numbers"):
        model.gradient_sum(bad, group, 1.0)
    with pytest.raises(ParameterError, match="finite numbers"):
        model.scores(bad, group)


def test_layers_that_couple_patients_are_refused() -> None:
    with pytest.raises(ParameterError, match="BatchNorm1d"):
        TorchModel(lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), loss, score)


def test_blocks_hold_whole_patients_and_no_more_records_than_asked() -> None:
    group = group_of("one by one")
    for most in (1, 3, 8, 100):
        blocks = list(group.blocks(most))
        assert sum(block.patients for block in blocks) == PATIENTS
        assert all(block.y.size <= most or block.patients == 1 for block in blocks)
        assert np.concatenate([block.y for block in blocks]).tolist() == group.y.tolist()
