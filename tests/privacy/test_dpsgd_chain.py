"""The chain of linear layers against plain autograd, one record after the other, and what it leaves to other books."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from privacy.dpsgd.bookkeeping import NotDispatchable
from privacy.dpsgd.chain import Chain
from privacy.dpsgd.clipping import NOT_FINITE
from privacy.dpsgd.layer_rules import PatientBatch
from privacy.dpsgd.private_gradients import PrivateGradients

torch.set_num_threads(1)
RECORDS = 11
ACTIVATIONS = [nn.Tanh(), nn.ReLU(), nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Identity()]


def stack(activation: nn.Module, *, bias: bool = True) -> nn.Module:
    torch.manual_seed(3)
    inner = nn.Sequential(nn.Linear(7, 5, bias=bias), activation)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 7), nn.Tanh(), inner, nn.Linear(5, 3, bias=bias))


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(RECORDS, 2, 3, generator=generator), torch.randint(3, (RECORDS,), generator=generator)


def losses(output: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(output, target, reduction="none")


def by_hand(module: nn.Module, x: Tensor, y: Tensor, clip: float) -> Tensor:
    total = torch.zeros(sum(p.numel() for p in module.parameters()))
    for row in range(x.shape[0]):
        module.zero_grad()
        losses(module(x[row : row + 1]), y[row : row + 1]).sum().backward()
        flat = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        total += flat * min(1.0, clip / float(flat.norm()))
    return total


def chain_of(gradients: PrivateGradients) -> Chain:
    """That the chain, and no other book, computed the last batch."""
    (chain,) = gradients._proved
    assert isinstance(chain, Chain)
    return chain


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda layer: str(layer))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_the_sum_is_that_of_clipped_records(activation: nn.Module, bias: bool, clip: float) -> None:
    module, (x, y) = stack(activation, bias=bias), batch()
    for micro_batch in (None, 4):
        gradients = PrivateGradients(module, losses, clip=clip, micro_batch=micro_batch)
        found = gradients.clipped_sum(x, y).total
        chain_of(gradients)
        torch.testing.assert_close(found, by_hand(module, x, y, clip), rtol=1e-4, atol=1e-5)


def test_padding_and_records_without_a_number_count_nothing() -> None:
    module, (x, y) = stack(nn.ReLU()), batch()
    gradients = PrivateGradients(module, losses, clip=0.5)
    spoiled = x.clone()
    spoiled[2] = torch.nan
    spoiled[5] = torch.inf
    mask = torch.ones(RECORDS, dtype=torch.bool)
    mask[5] = False  # padding refuses nobody, whatever stands in it
    found = gradients.clipped_sum(spoiled, y, mask=mask)
    chain_of(gradients)
    kept = torch.tensor([row not in (2, 5) for row in range(RECORDS)])
    torch.testing.assert_close(found.total, by_hand(module, x[kept], y[kept], 0.5), rtol=1e-4, atol=1e-5)
    assert (found.refused, found.reason) == (1, NOT_FINITE)


def test_the_clip_bounds_every_record() -> None:
    module, (x, y) = stack(nn.Tanh()), batch()
    gradients = PrivateGradients(module, losses, clip=0.01)
    whole = gradients.clipped_sum(x, y).total
    for row in range(RECORDS):
        others = torch.arange(RECORDS) != row
        without = gradients.clipped_sum(x[others], y[others]).total
        assert 0.0099 < float((whole - without).norm()) <= 0.01 * (1 + 1e-5)


def test_a_parameter_that_moves_is_followed() -> None:
    """The sites put each round's model into the same tensors."""
    module, (x, y) = stack(nn.Tanh()), batch()
    gradients = PrivateGradients(module, losses, clip=1.0)
    gradients.clipped_sum(x, y)
    for parameter in module.parameters():
        parameter.data = parameter.detach() * 1.5
    torch.testing.assert_close(gradients.clipped_sum(x, y).total, by_hand(module, x, y, 1.0), rtol=1e-4, atol=1e-5)


def test_patients_with_several_records_go_to_the_other_books() -> None:
    module, (x, y) = stack(nn.Tanh()), batch()
    gradients = PrivateGradients(module, losses, clip=0.1)
    patients = torch.arange(RECORDS) // 2
    found = gradients.clipped_sum(x, y, patients, 6).total
    assert not any(isinstance(books, Chain) for books in gradients._proved)
    assert float(found.norm()) <= 0.6
    with pytest.raises(NotDispatchable, match="several"):
        Chain(module).record(lambda run: losses(run(x), y), torch.ones(RECORDS), PatientBatch(RECORDS, 6, patients))


class Twice(nn.Tanh):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def frozen() -> nn.Module:
    module = stack(nn.Tanh())
    module[1].weight.requires_grad_(False)
    return module


def tied() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


def hooked() -> nn.Module:
    module = stack(nn.Tanh())
    module[2].register_forward_hook(lambda layer, inputs, output: 2 * output)
    return module


@pytest.mark.parametrize(
    "module",
    [stack(Twice()), stack(nn.Softmax(dim=1)), stack(nn.LayerNorm(5)), frozen(), tied(), hooked(),
     stack(nn.Tanh()).double(), nn.Sequential(nn.Tanh()), nn.Conv1d(1, 1, 1)],
)  # fmt: skip
def test_other_modules_are_left_to_other_books(module: nn.Module) -> None:
    with pytest.raises(NotDispatchable):
        Chain(module)


def test_a_linear_layer_along_a_series_is_left_to_the_other_books() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    gradients = PrivateGradients(module, losses, clip=0.1)
    x, y = batch()
    torch.testing.assert_close(gradients.clipped_sum(x, y).total, by_hand(module, x, y, 0.1), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(books, Chain) for books in gradients._proved)
    assert gradients.engine == "bookkeeping"


def test_a_loss_that_couples_records_is_not_trusted() -> None:
    """Each record's loss uses all outputs: no gradient of a single record exists, and every engine must say so."""
    module, (x, y) = stack(nn.Tanh()), batch()
    gradients = PrivateGradients(module, lambda output, target: losses(output - output.mean(0), target), clip=0.1)
    gradients.clipped_sum(x, y)
    assert not gradients._proved
