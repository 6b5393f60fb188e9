"""What a graph must compute: the interpreter in float64, each record by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privacy.local.graph_layers import layered_module
from privacy.local.graph_network import GraphNetwork, graph_model
from privacy.local.outcome import TorchOutcome
from privacy.local.patients import Group
from protocol.graph import ExportedGraph
from tests.graph_cases import node

LOSS = TorchOutcome("logistic", 1).loss
Given = tuple[str, Any]


def t(name: str) -> Given:
    return "tensor", name


def graph_of(
    shape: tuple[int, ...], parameters: tuple[tuple[int, ...], ...], *nodes: tuple[str, dict[str, Given]]
) -> ExportedGraph:
    made = tuple(node(operator, arguments) for operator, arguments in nodes)
    return ExportedGraph(input=shape, parameters=parameters, nodes=made, output=f"n{len(made) - 1}")


def fill(module: nn.Module, vector: np.ndarray) -> nn.Module:
    """The flat vector laid into the parameters in their order, as a site does it."""
    start = 0
    with torch.no_grad():
        for parameter in module.parameters():
            part = vector[start : start + parameter.numel()]
            parameter.copy_(torch.from_numpy(part).reshape(parameter.shape))
            start += parameter.numel()
    assert start == vector.size
    return module


def one_by_one(graph: ExportedGraph, vector: np.ndarray, x: np.ndarray) -> Tensor:
    """The interpreter's outputs, each record by itself, in float64."""
    module = fill(GraphNetwork(graph).double(), vector)
    return torch.cat([module(record.unsqueeze(0)).unsqueeze(0) for record in torch.from_numpy(x)])


def nothing(module: nn.Module) -> Tensor:
    """0, which depends on every parameter, so that one which the outputs don't depend on has the gradient 0."""
    return torch.stack([0 * parameter.sum() for parameter in module.parameters()]).sum()


def same_outputs(graph: ExportedGraph, records: int = 4) -> nn.Module | None:
    """The layered module, its outputs and its gradients compared with the interpreter's, or None where it has none."""
    layered = layered_module(graph)
    if layered is None:
        return None
    random = np.random.default_rng(3)
    vector, x = random.normal(size=graph.parameter_count), random.normal(size=(records, *graph.input))
    expected = one_by_one(graph, vector, x)
    fill(layered.double(), vector)
    found = layered(torch.from_numpy(x))
    torch.testing.assert_close(found.reshape(-1), expected.reshape(-1), rtol=1e-9, atol=1e-9)
    ways = torch.from_numpy(random.normal(size=expected.numel()))
    wanted = fill(GraphNetwork(graph).double(), vector)
    one = torch.cat([wanted(record.unsqueeze(0)).flatten() for record in torch.from_numpy(x)])
    gradients = torch.autograd.grad(one @ ways + nothing(wanted), list(wanted.parameters()))
    own = torch.autograd.grad(found.reshape(-1) @ ways + nothing(layered), list(layered.parameters()))
    for mine, theirs in zip(own, gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
    return layered


def exact(graph: ExportedGraph, random: np.random.Generator, clip: float, spread: float = 1.0) -> None:
    """The site's clipped sum against each patient's own by autograd in float64, twice: the engine's proof stands by
    the second batch, which has records of another kind."""
    local, reference = graph_model(graph, "logistic", 1), GraphNetwork(graph).double()
    vector = random.normal(size=graph.parameter_count) * spread
    for sign in (1.0, -1.0):
        patients = np.array([0, 0, 1, 2, 2, 2, 3, 4]) if sign > 0 else np.arange(8)
        x, y = sign * np.abs(random.normal(size=(8, *graph.input))), random.integers(0, 2, 8).astype(float)
        found = local.gradient_sum(vector, Group(x, y, patients, int(patients[-1]) + 1), clip)
        fill(reference, vector)
        expected = np.zeros(vector.size)
        for patient in range(int(patients[-1]) + 1):
            rows = np.flatnonzero(patients == patient)
            losses = torch.stack(
                [LOSS(reference(torch.from_numpy(x[[row]])), torch.from_numpy(y[[row]])).sum() for row in rows]
            )
            parts = torch.autograd.grad(losses.mean() + nothing(reference), list(reference.parameters()))
            own = torch.cat([part.flatten() for part in parts]).numpy()
            expected += own * min(1.0, clip / max(float(np.linalg.norm(own)), 1e-300))
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * scale)
