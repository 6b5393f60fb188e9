"""PrivateGradients: what is refused, what padding, micro-batches and other engines give, and what it falls back to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.dpsgd.bookkeeping import NotDispatchable
from privacy.dpsgd.clipping import NOT_FINITE
from privacy.dpsgd.compiled import CompiledStep
from privacy.dpsgd.private_gradients import GradientSum, PrivateGradients
from privacy.dpsgd.record_parts import pad_batch
from privacy.dpsgd.validation import require_private, validate
from privacy.errors import ParameterError

torch.set_num_threads(1)


def losses(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, reduction="none")


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5), nn.Tanh(),
        nn.Linear(5, 3),
    )  # fmt: skip


def batch(records: int = 9) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(records, 2, 6), torch.randint(3, (records,))


def close(one: GradientSum, other: GradientSum, clip: float) -> bool:
    return float((one.total.double() - other.total.double()).norm()) <= 1e-4 * clip


PATIENTS = np.array([4, 0, 0, 2, 4, 4, 1, 0, 4])


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "opacus"])
@pytest.mark.parametrize("micro_batch", [None, 1, 4, 100])
def test_engines_and_micro_batches_give_one_result(engine: str, micro_batch: int | None) -> None:
    inputs, targets = batch()
    for patients, count in ((None, None), (PATIENTS, 5)):
        reference = PrivateGradients(network(), losses, clip=0.7, engine="vmap")
        wanted = reference.clipped_sum(inputs, targets, patients, count)
        ours = PrivateGradients(network(), losses, clip=0.7, engine=engine, micro_batch=micro_batch)
        assert close(ours.clipped_sum(inputs, targets, patients, count), wanted, 0.7)
        assert ours.engine == engine
        assert float(wanted.total.norm()) > 0.7


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "opacus"])
def test_padding_contributes_exactly_nothing(engine: str) -> None:
    inputs, targets = batch()
    gradients = PrivateGradients(network(), losses, clip=0.7, engine=engine)
    plain = gradients.clipped_sum(inputs, targets)
    padded_inputs, padded_targets, mask = pad_batch(inputs, targets, 12)
    assert mask.tolist() == [True] * 9 + [False] * 3
    padded = gradients.clipped_sum(padded_inputs, padded_targets, mask=mask)
    assert close(padded, plain, 1e-2)
    for filling in (0.0, 1e6, math.nan, math.inf):
        padded_inputs[9:] = filling
        again = gradients.clipped_sum(padded_inputs, padded_targets, mask=mask)
        assert torch.equal(again.total, padded.total)
        assert again.refused == 0
    patients = np.concatenate([PATIENTS, [0, 1, 3]])
    grouped = gradients.clipped_sum(padded_inputs, padded_targets, patients, 5, mask)
    assert close(grouped, gradients.clipped_sum(inputs, targets, PATIENTS, 5), 1e-2)
    assert grouped.refused == 0
    small = PrivateGradients(network(), losses, clip=0.7, engine=engine, micro_batch=2)
    pieces = small.clipped_sum(padded_inputs, padded_targets, patients, 5, mask)
    assert close(pieces, grouped, 0.7)
    assert pieces.refused == 0


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "opacus"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_patient_whose_gradient_is_not_finite_counts_as_zero(engine: str, bad: float) -> None:
    inputs, targets = batch()
    gradients = PrivateGradients(network(), losses, clip=0.7, engine=engine)
    keep = np.flatnonzero(PATIENTS != 4)
    wanted = gradients.clipped_sum(inputs[keep], targets[keep], PATIENTS[keep], 5)
    inputs[5, 1, 2] = bad
    ours = gradients.clipped_sum(inputs, targets, PATIENTS, 5)
    assert close(ours, wanted, 1e-2)
    assert (ours.refused, ours.reason) == (1, NOT_FINITE)
    one_each = gradients.clipped_sum(inputs, targets)
    rest = np.arange(9) != 5
    assert close(one_each, gradients.clipped_sum(inputs[rest], targets[rest]), 1e-2)
    assert one_each.refused == 1


def test_the_first_batch_may_hold_nothing_finite() -> None:
    inputs, targets = batch()
    gradients = PrivateGradients(network(), losses, clip=0.7)
    first = gradients.clipped_sum(inputs * math.nan, targets)
    assert first.refused == 9
    assert not first.total.any()
    assert gradients.engine == "bookkeeping"
    assert close(gradients.clipped_sum(inputs, targets), reference(inputs, targets), 0.7)


def reference(inputs: Tensor, targets: Tensor) -> GradientSum:
    return PrivateGradients(network(), losses, clip=0.7, engine="vmap").clipped_sum(inputs, targets)


@pytest.mark.parametrize("engine", ["auto", "bookkeeping", "vmap", "opacus"])
def test_an_empty_batch_is_zeros(engine: str) -> None:
    inputs, targets = batch()
    gradients = PrivateGradients(network(), losses, clip=0.7, engine=engine)
    none = gradients.clipped_sum(inputs[:0], targets[:0])
    masked = gradients.clipped_sum(inputs, targets, mask=torch.zeros(9, dtype=torch.bool))
    nobody = gradients.clipped_sum(inputs[:0], targets[:0], PATIENTS[:0], 0)
    for result in (none, masked, nobody):
        assert result.total.shape == (sum(p.numel() for p in network().parameters()),)
        assert not result.total.any()
        assert (result.refused, result.reason, result.sensitivity) == (0, None, 0.7)
    total = masked.private_sum().total
    assert (total.dtype, total.any()) == (np.float64, np.False_)


def test_no_patient_moves_the_sum_by_more_than_the_clip() -> None:
    inputs, targets = batch()
    inputs = inputs * torch.logspace(-3, 6, 9)[:, None, None]
    gradients = PrivateGradients(network(), losses, clip=0.25)
    whole = gradients.clipped_sum(inputs, targets).total.double()
    for row in range(9):
        rest = torch.arange(9) != row
        moved = whole - gradients.clipped_sum(inputs, targets, mask=rest).total.double()
        assert float(moved.norm()) <= 0.25 * (1 + 1e-6)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embedding(x).mean(1))


class Outside(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.mean(1))
        return self.second(torch.tanh(x) @ self.first.weight)


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift, self.layer = nn.Parameter(torch.randn(6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mean(1) * self.shift)


class PositionsFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.layer = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.inner(x.transpose(0, 1)).tanh().mean(0))


class Mixing(nn.Module):
    """Each record sees the mean of the batch: nothing bounds one patient's share."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        return self.layer(x - 0.5 * x.mean(0))


@pytest.mark.parametrize("make", [Tied, Outside, Root, PositionsFirst, Mixing], ids=lambda make: make.__name__)
@pytest.mark.parametrize("records", [2, 7])
def test_what_books_cannot_hold_goes_to_torch_func(make: type[nn.Module], records: int) -> None:
    torch.manual_seed(3)
    module = make()
    inputs = torch.randint(6, (records, 2)) if make is Tied else torch.randn(records, 2, 6)
    targets = torch.randint(3, (records,))
    gradients = PrivateGradients(module, losses, clip=0.5)
    total = gradients.clipped_sum(inputs, targets)
    assert gradients.engine == "vmap"
    assert close(total, PrivateGradients(module, losses, clip=0.5, engine="vmap").clipped_sum(inputs, targets), 0.5)
    assert all(p.requires_grad for p in module.parameters())
    with pytest.raises(NotDispatchable, match=r"vmap.*opacus"):
        PrivateGradients(module, losses, clip=0.5, engine="bookkeeping").clipped_sum(inputs, targets)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.BatchNorm1d(4), r"layer 1 \(BatchNorm1d\).*GroupNorm"),
        (nn.SyncBatchNorm(4), r"layer 1 .*GroupNorm"),
        (nn.InstanceNorm1d(4, track_running_stats=True), "track_running_stats"),
        (nn.Dropout(0.1), "random"),
        (nn.LSTM(4, 4, num_layers=2, dropout=0.1), "random"),
        (nn.MultiheadAttention(4, 2, dropout=0.1), "random"),
        (nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_that_cannot_be_private_are_named_with_the_remedy(layer: nn.Module, says: str) -> None:
    module = nn.Sequential(nn.Conv1d(2, 4, 3), layer)
    for check in (require_private, validate, lambda m: PrivateGradients(m, losses, clip=1.0)):
        with pytest.raises(ParameterError, match=says):
            check(module)


def test_what_opacus_refuses_is_refused_or_served() -> None:
    validate(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.0), nn.GroupNorm(2, 4)))
    validate(nn.ModuleList([nn.GRU(3, 4), nn.LSTM(3, 4), nn.MultiheadAttention(4, 2)]))


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf, 1e-13, 1e13])
def test_a_clip_out_of_range_is_refused(clip: float) -> None:
    with pytest.raises(ParameterError):
        PrivateGradients(network(), losses, clip=clip)


def test_numbers_and_arrays_that_do_not_fit_are_refused() -> None:
    inputs, targets = batch()
    gradients = PrivateGradients(network(), losses, clip=1.0)
    with pytest.raises(ParameterError, match="no engine"):
        PrivateGradients(network(), losses, clip=1.0, engine="fast")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="micro-batch"):
        PrivateGradients(network(), losses, clip=1.0, micro_batch=0)
    for bad in (
        lambda: gradients.clipped_sum(inputs, targets[:-1]),
        lambda: gradients.clipped_sum(inputs, targets, PATIENTS, 4),
        lambda: gradients.clipped_sum(inputs, targets, PATIENTS - 1, 5),
        lambda: gradients.clipped_sum(inputs, targets, PATIENTS.astype(float), 5),
        lambda: gradients.clipped_sum(inputs, targets, PATIENTS[:-1], 5),
        lambda: gradients.clipped_sum(inputs, targets, PATIENTS),
        lambda: gradients.clipped_sum(inputs, targets, None, 5),
        lambda: gradients.clipped_sum(inputs, targets, mask=torch.ones(9)),
        lambda: gradients.clipped_sum(inputs, targets, out=torch.zeros(3)),
        lambda: pad_batch(inputs, targets, 8),
    ):
        with pytest.raises(ParameterError):
            bad()


def test_a_loss_that_is_one_number_is_refused() -> None:
    for engine in ("auto", "bookkeeping"):
        gradients = PrivateGradients(network(), functional.cross_entropy, clip=1.0, engine=engine)
        with pytest.raises(ParameterError, match="reduction='none'"):
            gradients.clipped_sum(*batch())


def test_a_loss_that_couples_records_is_not_trusted() -> None:
    def ranked(output: Tensor, target: Tensor) -> Tensor:
        return losses(output - 0.5 * output.mean(0), target)

    gradients = PrivateGradients(network(), ranked, clip=1.0)
    gradients.clipped_sum(*batch())
    assert gradients.engine == "vmap"


def test_out_is_overwritten_and_given_back() -> None:
    inputs, targets = batch()
    gradients = PrivateGradients(network(), losses, clip=0.7)
    out = torch.full((sum(p.numel() for p in network().parameters()),), 9.0)
    result = gradients.clipped_sum(inputs, targets, out=out)
    assert result.total is out
    assert close(result, reference(inputs, targets), 0.7)


def test_half_precision_forward_keeps_float32_norms() -> None:
    inputs, targets = batch()
    gradients = PrivateGradients(network(), losses, clip=0.05, autocast=torch.bfloat16)
    total = gradients.clipped_sum(inputs, targets).total
    assert (gradients.engine, total.dtype) == ("bookkeeping", torch.float32)
    exact = PrivateGradients(network(), losses, clip=0.05, engine="vmap").clipped_sum(inputs, targets).total
    assert float((total - exact).norm()) <= 0.05 * float(exact.norm())
    for row in range(9):
        one = gradients.clipped_sum(inputs[row : row + 1], targets[row : row + 1]).total
        assert float(one.double().norm()) <= 0.05 * (1 + 1e-6)


def test_a_measured_choice_gives_the_same_sum() -> None:
    ticks = iter(range(10**6))
    inputs, targets = batch()
    gradients = PrivateGradients(network(), losses, clip=0.7, clock=lambda: float(next(ticks)))
    assert close(gradients.clipped_sum(inputs, targets), reference(inputs, targets), 0.7)
    assert next(ticks) > 0


def test_the_compiled_step_agrees_before_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler needs a minute: what it compiles is run as it is here; the bench runs it compiled."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    inputs, targets = batch()
    for micro_batch in (None, 4):
        gradients = PrivateGradients(network(), losses, clip=0.7, engine="compiled", micro_batch=micro_batch)
        assert close(gradients.clipped_sum(inputs, targets), reference(inputs, targets), 0.7)
        padded_inputs, padded_targets, mask = pad_batch(inputs, targets, 12)
        padded = gradients.clipped_sum(padded_inputs, padded_targets, mask=mask)
        assert close(padded, reference(inputs, targets), 0.7)
        inputs_bad = inputs.clone()
        inputs_bad[3] = math.nan
        assert gradients.clipped_sum(inputs_bad, targets).refused == 1


def test_the_compiled_step_s_sum_stays_within_the_clip_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of the sum in bfloat16 would be off by thousandths, upwards too."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    inputs, targets = batch(40)
    clip = 0.01
    gradients = PrivateGradients(network(), losses, clip=clip, engine="compiled", autocast=torch.bfloat16)
    lengths = []
    for record in range(40):
        one = gradients.clipped_sum(inputs[record : record + 1], targets[record : record + 1])
        lengths.append(float(one.total.double().norm()) / clip)
    assert 0.9999 < min(lengths) <= max(lengths) <= 1.0


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fails)
    step = CompiledStep(network(), losses, 1.0)
    with pytest.raises(ParameterError, match="C\\+\\+ compiler"):
        step(*batch(), torch.ones(9))


@pytest.mark.parametrize("layer", [nn.GRU(3, 4, num_layers=2, batch_first=True), nn.LSTM(3, 4, batch_first=True)])
def test_a_recurrent_layer_is_served_whatever_the_records_hold(layer: nn.Module) -> None:
    """A lone record, and records whose gradients are all 0, prove nothing: they are computed without the books, for
    which vmap has no rule. Failing there would tell how many patients were drawn."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x)[0][:, -1])

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return target * output[:, 0] ** 2

    module, x = Last(), torch.randn(6, 5, 3)
    y = torch.tensor([0.0, 0.0, 1.0, 0.5, 2.0, 1.0])
    wanted = PrivateGradients(module, loss, clip=0.1, engine="bookkeeping").clipped_sum(x, y).total.double()
    alone = sum(
        PrivateGradients(module, loss, clip=0.1).clipped_sum(x[at : at + 1], y[at : at + 1]).total.double()
        for at in range(6)
    )
    assert torch.allclose(alone, wanted, atol=1e-6)
    plain = PrivateGradients(module, loss, clip=0.1, engine="vmap").clipped_sum(x, y).total.double()
    assert torch.allclose(plain, wanted, atol=1e-6)
    nothing = PrivateGradients(module, loss, clip=0.1).clipped_sum(x[:2], y[:2]).total
    assert not nothing.any()
