"""The book-keeping engine against Opacus, and against one record at a time through plain autograd."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.dpsgd.private_gradients import PrivateGradients

torch.set_num_threads(1)
RECORDS = 6
Case = tuple[nn.Module, Tensor, Tensor]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, reduction="none")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape)


def labels(classes: int = 3) -> Tensor:
    return torch.randint(classes, (RECORDS,))


class Pooled(nn.Module):
    """Mean over all but records and channels, then a linear head."""

    def __init__(self, body: nn.Module, width: int, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.body, self.head, self.axes = body, nn.Linear(width, 3), axes

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(self.axes))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.GroupNorm(4, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(4, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second_norm(self.second(functional.relu(self.first_norm(self.first(x)))))
        return functional.relu(inner + self.skip(x))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed, self.back, self.heads = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        records, steps, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(records, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2)
        x = x + self.out(mixed.reshape(records, steps, width))
        return x + self.back(functional.gelu(self.feed(x)))


class Last(nn.Module):
    """The last output of a recurrent layer, then a linear head."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class SelfAttention(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x, x, x)[0].mean(1))


def mlp() -> Case:
    return (
        nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)),
        noise(RECORDS, 7),
        labels(),
    )


def cnn28() -> Case:
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 3),
    )  # fmt: skip
    return body, noise(RECORDS, 1, 28, 28), labels()


def conv1d() -> Case:
    body = nn.Sequential(
        nn.Conv1d(3, 8, 5, stride=2, padding=3, dilation=2), nn.InstanceNorm1d(8, affine=True), nn.ReLU(),
        nn.Conv1d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv1d(8, 24, 3, padding=1),
    )  # fmt: skip
    return Pooled(body, 24, (2,)), noise(RECORDS, 3, 30), labels()


def conv3d() -> Case:
    body = nn.Sequential(
        nn.Conv3d(2, 4, 3, stride=(1, 2, 2), padding=1), nn.GroupNorm(2, 4), nn.ReLU(),
        nn.Conv3d(4, 32, (2, 3, 3), padding=(0, 1, 1)),
    )  # fmt: skip
    return Pooled(body, 32, (2, 3, 4)), noise(RECORDS, 2, 5, 6, 6), labels()


def resnet() -> Case:
    body = nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.GroupNorm(4, 8), nn.ReLU(), Block(8, 16, 1), Block(16, 64, 2)
    )
    return Pooled(body, 64, (2, 3)), noise(RECORDS, 3, 20, 20), labels()


def odd_convolutions() -> Case:
    body = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4, padding="same", dilation=2), nn.ReLU(),
        nn.Conv2d(4, 12, (1, 4), padding="same"), nn.ReLU(), nn.Conv2d(12, 40, 3, padding="valid"),
    )  # fmt: skip
    return Pooled(body, 40, (2, 3)), noise(RECORDS, 4, 9, 7), labels()


def transformer() -> Case:
    body = nn.Sequential(nn.Embedding(20, 16), Attention(16, 2), nn.LayerNorm(16))
    return Pooled(body, 16, (1,)), torch.randint(20, (RECORDS, 5)), labels()


def wide_sequence() -> Case:
    """Few positions and wide layers: ghost norms."""
    body = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64, bias=False))
    return Pooled(body, 64, (1, 2)), noise(RECORDS, 2, 2, 64), labels()


def norms_over_images() -> Case:
    body = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.LayerNorm([6, 4, 4]), nn.GroupNorm(3, 6)
    )
    return Pooled(body, 6, (2, 3)), noise(RECORDS, 2, 6, 6), labels()


def in_place() -> Case:
    """Activations that overwrite a layer's output, also the first one's: Opacus' hooks cannot serve these."""
    body = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(inplace=True), nn.Conv1d(4, 5, 3), nn.ELU(inplace=True))
    return Pooled(body, 5, (2,)), noise(RECORDS, 2, 9), labels()


def padded_embedding() -> Case:
    """Autograd leaves the padding row alone; Opacus does not."""
    return Pooled(nn.Embedding(7, 5, padding_idx=0), 5, (1,)), torch.randint(7, (RECORDS, 9)), labels()


OPACUS_TOO = [
    mlp, cnn28, conv1d, conv3d, resnet, odd_convolutions, transformer, wide_sequence, norms_over_images,
]  # fmt: skip


def gru() -> Case:
    return Last(nn.GRU(4, 6, num_layers=2, batch_first=True), 6), noise(RECORDS, 5, 4), labels()


def lstm() -> Case:
    layer = nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True)
    return Last(layer, 12), noise(RECORDS, 5, 4), labels()


def plain_rnn() -> Case:
    return Last(nn.RNN(4, 6, nonlinearity="relu", bias=False, batch_first=True), 6), noise(RECORDS, 5, 4), labels()


def multihead() -> Case:
    return SelfAttention(nn.MultiheadAttention(8, 2, batch_first=True)), noise(RECORDS, 5, 8), labels()


def encoder_layer() -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return Pooled(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 8, (1,)), noise(RECORDS, 5, 8), labels()


def layer_used_twice() -> Case:
    shared, convolution = nn.Linear(8, 8), nn.Conv1d(2, 2, 3, padding=1)
    body = nn.Sequential(convolution, nn.Tanh(), convolution, shared, nn.Tanh(), shared)
    return Pooled(body, 8, (1,)), noise(RECORDS, 2, 8), labels()


def unknown_layers() -> Case:
    body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.PReLU(4), nn.ConvTranspose2d(4, 5, 2, stride=2), nn.RMSNorm(8))
    return Pooled(body, 5, (2, 3)), noise(RECORDS, 2, 6, 6), labels()


def frozen_parts() -> Case:
    module, inputs, targets = mlp()
    module[0].requires_grad_(False)
    module[2].bias.requires_grad_(False)
    module[4].weight.requires_grad_(False)
    return module, inputs, targets


OURS_ALONE = [
    gru, lstm, plain_rnn, multihead, encoder_layer, layer_used_twice, unknown_layers, frozen_parts, in_place,
    padded_embedding,
]  # fmt: skip


def one_by_one(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """(R, D) float64: one forward and backward per record."""
    module = copy.deepcopy(module).double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    trained = [p for p in module.parameters() if p.requires_grad]
    rows = []
    for row in range(inputs.shape[0]):
        loss = cross_entropy(module(inputs[row : row + 1]), targets[row : row + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), trained)]))
    return torch.stack(rows)


def clipped(rows: Tensor, clip: float) -> Tensor:
    return (rows * (clip / rows.norm(dim=1).clamp(min=1e-30)).clamp(max=1.0)[:, None]).sum(0)


def middle(rows: Tensor) -> float:
    """A clip that some patients are above and some below."""
    return float(rows.norm(dim=1).median()) * 1.0001


def opacus_rows(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import GradSampleModule

        twin = copy.deepcopy(module)
        cross_entropy(GradSampleModule(twin, loss_reduction="sum")(inputs), targets).sum().backward()
        return torch.cat([p.grad_sample.flatten(1) for p in twin.parameters()], dim=1).double()


@pytest.mark.parametrize("case", OPACUS_TOO, ids=lambda case: case.__name__)
def test_agrees_with_opacus(case: Callable[[], Case]) -> None:
    torch.manual_seed(3)
    module, inputs, targets = case()
    rows = opacus_rows(module, inputs, targets)
    clip = middle(rows)
    ours = PrivateGradients(module, cross_entropy, clip=clip, engine="bookkeeping").clipped_sum(inputs, targets)
    assert (ours.refused, ours.reason) == (0, None)
    assert float((ours.total - clipped(rows, clip)).norm()) <= 1e-4 * clip
    unclipped = PrivateGradients(module, cross_entropy, clip=1e6, engine="bookkeeping").clipped_sum(inputs, targets)
    assert float((unclipped.total - rows.sum(0)).norm()) <= 1e-4 * float(rows.sum(0).norm())


@pytest.mark.parametrize("case", [*OPACUS_TOO, *OURS_ALONE], ids=lambda case: case.__name__)
def test_agrees_with_autograd_record_by_record_and_patient_by_patient(case: Callable[[], Case]) -> None:
    torch.manual_seed(4)
    module, inputs, targets = case()
    rows = one_by_one(module, inputs, targets)
    gradients = PrivateGradients(module, cross_entropy, clip=middle(rows), engine="bookkeeping")
    ours = gradients.clipped_sum(inputs, targets).total
    assert float((ours - clipped(rows, middle(rows))).norm()) <= 1e-4 * middle(rows)
    for patients in ([0, 0, 1, 1, 2, 2], [3, 0, 3, 3, 1, 3]):
        index = np.array(patients)
        means = torch.zeros(4, rows.shape[1], dtype=torch.float64).index_add_(0, torch.tensor(patients), rows)
        means /= torch.tensor(np.maximum(np.bincount(index, minlength=4), 1))[:, None]
        clip = middle(means[means.norm(dim=1) > 0])
        for micro_batch in (None, 3):
            grouped = PrivateGradients(module, cross_entropy, clip=clip, engine="bookkeeping", micro_batch=micro_batch)
            total = grouped.clipped_sum(inputs, targets, index, 4).total
            assert float((total - clipped(means, clip)).norm()) <= 1e-4 * clip
    assert all(p.requires_grad for p in module.parameters()) or case is frozen_parts
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("case", [gru, lstm], ids=lambda case: case.__name__)
def test_recurrent_layers_agree_with_opacus_own_cells(case: Callable[[], Case]) -> None:
    torch.manual_seed(5)
    module, inputs, targets = case()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.validators import ModuleValidator

        twin = ModuleValidator.fix(module)
    rows = opacus_rows(twin, inputs, targets)
    clip = middle(rows)
    ours = PrivateGradients(module, cross_entropy, clip=clip, engine="bookkeeping").clipped_sum(inputs, targets).total
    order = opacus_order(module, twin)
    assert float((ours - clipped(rows, clip)[order]).norm()) <= 1e-4 * clip


def opacus_order(module: nn.Module, twin: nn.Module) -> Tensor:
    """Where each of our entries lies in the vector of a copy that names and orders its parameters differently."""
    start, places = 0, []
    for parameter in twin.parameters():
        places.append((parameter, torch.arange(start, start + parameter.numel())))
        start += parameter.numel()
    order = []
    for parameter in module.parameters():
        match = [place for other, place in places if other.shape == parameter.shape and torch.equal(other, parameter)]
        assert len(match) == 1
        order.append(match[0])
    return torch.cat(order)


@pytest.mark.parametrize("way", ["unfolded", "grouped", "looped", "gram", "diagonal"])
def test_every_way_through_a_convolution_is_the_same(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from privacy.dpsgd.layers_conv import ConvRule

    torch.manual_seed(6)
    module = Pooled(nn.Sequential(nn.Conv2d(3, 5, (3, 2), padding=(1, 2), dilation=(2, 1)), nn.Tanh()), 5, (2, 3))
    inputs, targets = noise(RECORDS, 3, 7, 6), labels()
    rows = one_by_one(module, inputs, targets)
    monkeypatch.setattr(ConvRule, "_way", lambda *_: way)
    ours = PrivateGradients(module, cross_entropy, clip=middle(rows), engine="bookkeeping").clipped_sum(inputs, targets)
    assert float((ours.total - clipped(rows, middle(rows))).norm()) <= 1e-4 * middle(rows)
