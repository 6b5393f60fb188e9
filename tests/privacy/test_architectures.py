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

from privacy.architectures.catalogue import MODULES, build, cross_entropy, network
from privacy.architectures.convolutional import groups_of
from privacy.dpsgd.clipping import clip_gradients
from privacy.dpsgd.per_patient import average_by_patient
from privacy.dpsgd.private_gradients import PrivateGradients
from privacy.local.model import Hardware
from privacy.local.patients import Group
from protocol.architectures import NetworkModel, group_count, misfit
from protocol.model import parameter_count, parameter_shapes

torch.set_num_threads(1)
CASES: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"architecture": "cnn", "widths": (4, 8)}, (1, 9, 8)),
    ({"architecture": "cnn", "widths": (8,)}, (3, 8, 8)),
    ({"architecture": "resnet", "widths": (4, 8), "blocks": 2}, (2, 8, 8)),
    ({"architecture": "resnet", "widths": (8, 16), "blocks": 1, "stem": "large"}, (1, 24, 16)),
    ({"architecture": "cnn_1d", "widths": (4, 8), "kernel": 5}, (3, 12)),
    ({"architecture": "gru", "hidden": 5, "layers": 2}, (3, 7)),
    ({"architecture": "gru", "hidden": 4}, (1, 5)),
    ({"architecture": "transformer", "patch": 2, "width": 8, "heads": 2, "layers": 2, "feedforward": 12}, (3, 8)),
    ({"architecture": "transformer", "patch": 4, "width": 8, "heads": 4, "layers": 1, "feedforward": 8}, (2, 8, 12)),
]
NAMES = [f"{fields['architecture']}-{'x'.join(map(str, shape))}" for fields, shape in CASES]
every_network = pytest.mark.parametrize(("fields", "shape"), CASES, ids=NAMES)


def spec(fields: dict[str, Any]) -> NetworkModel:
    return TypeAdapter(NetworkModel).validate_python(fields)


def sizes(fields: dict[str, Any]) -> dict[str, Any]:
    return spec(fields).model_dump(exclude={"architecture"})


def cohort(shape: tuple[int, ...], patients: int = 5, seed: int = 4) -> Group:
    """Patients with one or two records each."""
    random = np.random.default_rng(seed)
    index = np.sort(np.concatenate([np.arange(patients), np.arange(0, patients, 2)]))
    x = random.normal(size=(index.size, *shape)).astype(np.float32)
    return Group(x, (index % 2).astype(np.float64), index, patients)


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


def opacus_sum(module: nn.Module, group: Group, clip: float) -> np.ndarray:
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
        losses = cross_entropy(wrapped(torch.from_numpy(group.x)), torch.from_numpy(group.y).float())
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
    model, group = network(fields["architecture"], shape, sizes(fields)), cohort(shape)
    parameters = vector(spec(fields), shape)
    mine = model.gradient_sum(parameters, group, clip)
    module = build(fields["architecture"], shape, sizes(fields))
    torch.nn.utils.vector_to_parameters(torch.from_numpy(parameters).float(), module.parameters())
    wanted = opacus_sum(module, group, clip)
    assert np.linalg.norm(wanted) > 0
    assert np.linalg.norm(mine - wanted) <= 1e-4 * np.linalg.norm(wanted)


@every_network
def test_the_sum_is_book_keepings_and_no_micro_batch_changes_it(fields, shape):
    group, parameters = cohort(shape, 8), vector(spec(fields), shape)
    model = network(fields["architecture"], shape, sizes(fields))
    whole = model.gradient_sum(parameters, group, 0.1)
    pieces = model.gradient_sum(parameters, group, 0.1, Hardware(memory=1))
    np.testing.assert_allclose(pieces, whole, atol=1e-5 * np.linalg.norm(whole))
    module = build(fields["architecture"], shape, sizes(fields))
    engine = PrivateGradients(module, cross_entropy, clip=0.1)
    engine.clipped_sum(torch.from_numpy(group.x), torch.from_numpy(group.y).float(), group.patient, group.patients)
    assert engine.engine == "bookkeeping"


@every_network
def test_no_record_touches_another_ones_score(fields, shape):
    group, parameters = cohort(shape, 6), vector(spec(fields), shape)
    model = network(fields["architecture"], shape, sizes(fields))
    scores = model.scores(parameters, group).scores
    assert ((scores > 0) & (scores < 1)).all()
    changed = np.array(group.x)
    changed[group.patient == 2] += 1.0
    again = model.scores(parameters, Group(changed, group.y, group.patient, group.patients)).scores
    others = np.arange(group.patients) != 2
    np.testing.assert_allclose(again[others], scores[others], atol=1e-6)
    assert abs(again[2] - scores[2]) > 1e-6


def test_a_network_that_no_table_names_is_refused():
    with pytest.raises(KeyError):
        build("batch_norm_net", (1, 8, 8), {})
