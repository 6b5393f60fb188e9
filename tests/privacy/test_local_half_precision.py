"""Forward passes in bfloat16 under float32 norms: close to the exact sum, within the clip, for every kind of layer. On
a CPU with its own autocast; on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from privacy.local.model import Hardware
from privacy.local.patients import Group
from privacy.local.torch_model import TorchModel

torch.set_num_threads(1)
PATIENTS, RECORDS, CLIP = 9, 20, 0.05


class Attending(nn.Module):
    """Codes, attention and normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.codes(x))
        return self.head((h + self.attention(h, h, h, need_weights=False)[0]).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.memory, self.head = nn.Conv1d(1, 4, 3), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.memory(torch.relu(self.convolution(x.unsqueeze(1))).transpose(1, 2))
        return self.head(states[:, -1])


def image() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 1)
    )


def stack() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (Attending, (8,)),
    "recurrent": (Recurrent, (9,)),
    "image": (image, (1, 6, 6)),
    "stack": (stack, (6,)),
}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


def model_of(family: str) -> TorchModel:
    def loss(output: Tensor, label: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(output[:, 0].float(), label, reduction="none")

    def codes(x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).long()

    def score(output: Tensor) -> Tensor:
        return torch.sigmoid(output[:, 0])

    return TorchModel(FAMILIES[family][0], loss, score, inputs=codes if family == "attention" else None)


def group_of(family: str) -> Group:
    random, shape = np.random.default_rng(1), FAMILIES[family][1]
    owners = np.sort(np.concatenate([np.arange(PATIENTS), random.integers(0, 3, RECORDS - PATIENTS)]))
    x = random.normal(size=(RECORDS, *shape))
    if family == "attention":
        x = random.integers(0, 9, (RECORDS, *shape)).astype(float)
    return Group(x, random.integers(0, 2, RECORDS).astype(float), owners, PATIENTS)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_close_and_within_the_clip(family: str, device: str) -> None:
    model, group = model_of(family), group_of(family)
    parameters = np.random.default_rng(3).normal(size=model.parameters) / 2
    exact = model.gradient_sum(parameters, group, CLIP, Hardware())
    half = Hardware(device, half=True)
    found = model.gradient_sum(parameters, group, CLIP, half)
    assert found.dtype == np.float64
    assert 0 < np.linalg.norm(found - exact) <= 0.05 * np.linalg.norm(exact)  # bfloat16 carries eight bits
    for number in range(PATIENTS):
        # What one patient gives, all others being away: the sensitivity that the noise is scaled to.
        one = model.gradient_sum(parameters, group.block(number, 1), CLIP, half)
        assert np.linalg.norm(one) <= CLIP * (1 + 1e-6)


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_gives_the_cpu_s_sum(family: str, device: str) -> None:
    model, group = model_of(family), group_of(family)
    parameters = np.random.default_rng(3).normal(size=model.parameters) / 2
    exact = model.gradient_sum(parameters, group, CLIP, Hardware())
    found = model.gradient_sum(parameters, group, CLIP, Hardware(device))
    np.testing.assert_allclose(found, exact, rtol=1e-2, atol=1e-3 * np.abs(exact).max())  # TF32 may be allowed
    there, here = model.scores(parameters, group, Hardware(device)), model.scores(parameters, group)
    np.testing.assert_allclose(there.scores, here.scores, atol=1e-3)
