"""Every network for images and sequences: its flat vector as planned, its clipped sum as Opacus computes it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from privacy.architectures.catalogue import MODULES, build, network
from privacy.architectures.convolutional import groups_of
from privacy.architectures.segmentation import dice, mask_loss
from privacy.dpsgd.clipping import clip_gradients
from privacy.dpsgd.per_patient import average_by_patient
from privacy.dpsgd.private_gradients import Losses, PrivateGradients
from privacy.local.model import Hardware
from privacy.local.outcome import TorchOutcome
from privacy.local.patients import Group
from protocol.architectures import NetworkModel, group_count, misfit
from protocol.model import parameter_count, parameter_shapes

torch.set_num_threads(1)
CASES: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"architecture": "cnn", "widths": (4, 8)}, (1, 9, 8)),
    ({"architecture": "cnn", "widths": (8,)}, (3, 8, 8)),
    ({"architecture": "resnet", "widths": (4, 8), "blocks": 2}, (2, 8, 8)),
    ({"architecture": "resnet", "widths": (8, 16), "blocks": 1, "stem": "large"}, (1, 24, 16)),
    ({"architecture": "cnn", "widths": (8,), "loss": "squared"}, (1, 8, 8)),
    ({"architecture": "resnet", "widths": (4, 8), "blocks": 1, "loss": "hazard", "intervals": 3}, (1, 8, 8)),
    ({"architecture": "gru", "hidden": 4, "loss": "hazard", "intervals": 2}, (2, 5)),
    ({"architecture": "cnn_1d", "widths": (8,), "kernel": 3, "loss": "squared"}, (2, 8)),
    ({"architecture": "unet", "widths": (4, 8)}, (2, 8, 6)),
    ({"architecture": "unet", "widths": (4, 4, 8)}, (1, 8, 12)),
    ({"architecture": "cnn_1d", "widths": (4, 8), "kernel": 5}, (3, 12)),
    ({"architecture": "gru", "hidden": 5, "layers": 2}, (3, 7)),
    ({"architecture": "gru", "hidden": 4}, (1, 5)),
    ({"architecture": "transformer", "patch": 2, "width": 8, "heads": 2, "layers": 2, "feedforward": 12}, (3, 8)),
    ({"architecture": "transformer", "patch": 4, "width": 8, "heads": 4, "layers": 1, "feedforward": 8}, (2, 8, 12)),
]
NAMES = [
    f"{fields['architecture']}-{fields.get('loss', 'logistic')}-{'x'.join(map(str, shape))}" for fields, shape in CASES
]
every_network = pytest.mark.parametrize(("fields", "shape"), CASES, ids=NAMES)


def spec(fields: dict[str, Any]) -> NetworkModel:
    return TypeAdapter(NetworkModel).validate_python(fields)


def sizes(fields: dict[str, Any]) -> dict[str, Any]:
    return spec(fields).model_dump(exclude={"architecture"})


def cohort(fields: dict[str, Any], shape: tuple[int, ...], patients: int = 5, seed: int = 4) -> Group:
    """Patients with one or two records each; masks as outcomes of a unet."""
    masks, loss = fields["architecture"] == "unet", fields.get("loss", "logistic")
    random = np.random.default_rng(seed)
    index = np.sort(np.concatenate([np.arange(patients), np.arange(0, patients, 2)]))
    x = random.normal(size=(index.size, *shape)).astype(np.float32)
    if masks:
        y = (random.random((index.size, *shape[1:])) < 0.4).astype(np.uint8)
    elif loss == "hazard":
        y = (index % (2 * fields["intervals"] + 1)).astype(np.float64)
    else:
        y = (index % 2).astype(np.float64) if loss == "logistic" else random.normal(size=index.size)
    return Group(x, y, index, patients)


def loss_for(fields: dict[str, Any]) -> Losses:
    return mask_loss if fields["architecture"] == "unet" else outcome(fields).loss


def outcome(fields: dict[str, Any]) -> TorchOutcome:
    return TorchOutcome(fields.get("loss", "logistic"), fields.get("intervals", 1))


def targets(fields: dict[str, Any], group: Group) -> torch.Tensor:
    return torch.from_numpy(group.y).float() if group.y.ndim > 1 else outcome(fields).targets(group.y)


def vector(model: NetworkModel, shape: tuple[int, ...]) -> np.ndarray:
    """Parameters away from the initial point, norms near 1."""
    random = np.random.default_rng(9)
    parts = [
        random.normal(scale=0.3, size=tensor) + (1.0 if len(tensor) == 1 and name.endswith("weight") else 0.0)
        for name, tensor in parameter_shapes(model, shape)
    ]
    return np.concatenate([part.ravel() for part in parts])


def test_every_module_is_tried_here_and_planned():
    assert {fields["architecture"] for fields, _ in CASES} == set(MODULES)
    assert all(misfit(spec(fields), shape) is None for fields, shape in CASES)


def test_both_floors_group_channels_alike():
    assert [groups_of(width) for width in range(4, 1025, 4)] == [group_count(width) for width in range(4, 1025, 4)]


@every_network
def test_the_plan_names_the_modules_own_tensors_in_their_order(fields, shape):
    module = build(fields["architecture"], shape, sizes(fields))
    wanted = [(name, tuple(tensor.shape)) for name, tensor in module.named_parameters()]
    assert parameter_shapes(spec(fields), shape) == wanted
    assert parameter_count(spec(fields), shape) == sum(tensor.numel() for tensor in module.parameters())


def opacus_sum(module: nn.Module, fields: dict[str, Any], group: Group, clip: float) -> np.ndarray:
    """Per-record gradients by Opacus' hooks, then averaged, clipped and summed here. It has its own GRU."""
    module = copy.deepcopy(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import GradSampleModule
        from opacus.layers import DPGRU

        order = [name for name, _ in module.named_parameters()]
        layer = getattr(module, "recurrent", None)
        if isinstance(layer, nn.GRU):
            twin = DPGRU(layer.input_size, layer.hidden_size, layer.num_layers, batch_first=True)
            twin.load_state_dict(layer.state_dict())
            module.recurrent = twin
        wrapped = GradSampleModule(module, loss_reduction="sum")
        losses = loss_for(fields)(wrapped(torch.from_numpy(group.x)), targets(fields, group))
        losses.sum().backward()
    found: dict[str, torch.Tensor] = {}
    for name, parameter in wrapped.named_parameters():
        plain = name.removeprefix("_module.")
        if "recurrent.l" in plain:  # recurrent.l0.ih.weight -> recurrent.weight_ih_l0
            _, number, side, kind = plain.split(".")
            plain = f"recurrent.{kind}_{side}_{number}"
        found[plain] = parameter.grad_sample.flatten(1)
    rows = torch.cat([found[name] for name in order], dim=1).double().numpy()
    return clip_gradients(average_by_patient(rows, group.patient, group.patients), clip).gradients.sum(axis=0)


@every_network
@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_the_clipped_sum_is_opacus_own(fields, shape, clip):
    model, group = network(fields["architecture"], shape, sizes(fields)), cohort(fields, shape)
    parameters = vector(spec(fields), shape)
    mine = model.gradient_sum(parameters, group, clip)
    module = build(fields["architecture"], shape, sizes(fields))
    torch.nn.utils.vector_to_parameters(torch.from_numpy(parameters).float(), module.parameters())
    wanted = opacus_sum(module, fields, group, clip)
    assert np.linalg.norm(wanted) > 0
    assert np.linalg.norm(mine - wanted) <= 1e-4 * np.linalg.norm(wanted)


@every_network
def test_the_sum_is_book_keepings_and_no_micro_batch_changes_it(fields, shape):
    group, parameters = cohort(fields, shape, 8), vector(spec(fields), shape)
    model = network(fields["architecture"], shape, sizes(fields))
    whole = model.gradient_sum(parameters, group, 0.1)
    pieces = model.gradient_sum(parameters, group, 0.1, Hardware(memory=1))
    np.testing.assert_allclose(pieces, whole, atol=1e-5 * np.linalg.norm(whole))
    module = build(fields["architecture"], shape, sizes(fields))
    engine = PrivateGradients(module, loss_for(fields), clip=0.1)
    engine.clipped_sum(torch.from_numpy(group.x), targets(fields, group), group.patient, group.patients)
    assert engine.engine == "bookkeeping"


@every_network
def test_the_plan_knows_how_large_a_records_values_get(fields, shape):
    """No layer gives, and no layer of a unet takes, a larger value than the plan's bound; one comes near it."""
    module, seen = build(fields["architecture"], shape, sizes(fields)), [0]

    def look(_layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        seen.extend(value.numel() for value in (*inputs, *outputs) if isinstance(value, torch.Tensor))

    for layer in module.modules():
        if not any(True for _ in layer.children()):
            layer.register_forward_hook(look)
    with torch.no_grad():
        module(torch.zeros(1, *shape))
    assert max(seen) <= max(spec(fields).largest(shape), np.prod(shape))
    assert max(seen) >= spec(fields).largest(shape) // 4


@every_network
def test_no_record_touches_another_ones_score(fields, shape):
    group, parameters = cohort(fields, shape, 6), vector(spec(fields), shape)
    model = network(fields["architecture"], shape, sizes(fields))
    scores = model.scores(parameters, group).scores
    assert ((scores >= 0) & (scores <= 1)).all()
    changed = np.array(group.x)
    changed[group.patient == 2] *= -1.5
    again = model.scores(parameters, Group(changed, group.y, group.patient, group.patients)).scores
    others = np.arange(group.patients) != 2
    np.testing.assert_allclose(again[others], scores[others], atol=1e-6)
    assert abs(again[2] - scores[2]) > 1e-6


def test_a_network_that_no_table_names_is_refused():
    with pytest.raises(KeyError):
        build("batch_norm_net", (1, 8, 8), {})


def test_dice_is_that_of_the_sets_of_pixels():
    random = np.random.default_rng(2)
    logits, masks = random.normal(size=(20, 5, 6)), random.random((20, 5, 6)) < 0.5
    masks[0], logits[0] = False, -1.0
    masks[1], logits[1] = False, 1.0
    found = dice(torch.from_numpy(logits).float(), torch.from_numpy(masks).float()).numpy()
    assert (found[0], found[1]) == (1.0, 0.0)
    for logit, mask, score in zip(logits[2:], masks[2:], found[2:], strict=True):
        inside = logit >= 0
        assert score == pytest.approx(2 * (inside & mask).sum() / (inside.sum() + mask.sum()), abs=1e-6)


def test_a_unets_score_is_the_mean_dice_of_a_patients_images():
    fields, shape = next((fields, shape) for fields, shape in CASES if fields["architecture"] == "unet")
    group, parameters = cohort(fields, shape), vector(spec(fields), shape)
    found = network("unet", shape, sizes(fields)).scores(parameters, group)
    assert found.groups == 1
    module = build("unet", shape, sizes(fields))
    torch.nn.utils.vector_to_parameters(torch.from_numpy(parameters).float(), module.parameters())
    with torch.no_grad():
        records = dice(module(torch.from_numpy(group.x)), torch.from_numpy(group.y).float()).numpy()
    wanted = [records[group.patient == patient].mean() for patient in range(group.patients)]
    np.testing.assert_allclose(found.scores, wanted, atol=1e-6)
