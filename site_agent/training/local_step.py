"""What one attempt takes of this site's patients, for a model that the plan names: never code from the wire."""

from __future__ import annotations

from privacy.entropy import Entropy, Float64
from privacy.local import contribution
from privacy.local.network import Network
from privacy.local.patients import Group
from protocol.model import Model, layer_widths, loss_of


def network_of(model: Model, inputs: int) -> Network:
    """The plan's model over `inputs` encoded inputs."""
    return Network(layer_widths(model, inputs), loss_of(model))


def private_gradient_sum(
    group: Group,
    model: Model,
    parameters: Float64,
    *,
    clip: float,
    sampling_rate: float,
    noise_std: float,
    entropy: Entropy,
    device: str = "cpu",
) -> Float64:
    """(P,) float64: see `privacy.local.contribution`. Raises ParameterError for parameters that do not fit."""
    return contribution.private_gradient_sum(
        group,
        network_of(model, group.x.shape[1]),
        parameters,
        clip=clip,
        sampling_rate=sampling_rate,
        noise_std=noise_std,
        entropy=entropy,
        device=device,
    )


def score_histogram(
    group: Group, model: Model, parameters: Float64, *, bins: int, noise_std: float | None, entropy: Entropy
) -> Float64:
    """(2 bins,) float64: see `privacy.local.contribution`."""
    network = network_of(model, group.x.shape[1])
    return contribution.score_histogram(group, network, parameters, bins=bins, noise_std=noise_std, entropy=entropy)
