"""Which torch modules can be trained privately: layers that mix records, keep statistics or draw at random cannot."""

from __future__ import annotations

import warnings

from torch import nn

from privacy.errors import ParameterError

_BATCH_NORM = (nn.modules.batchnorm._BatchNorm,)
_INSTANCE_NORM = (nn.modules.instancenorm._InstanceNorm,)
_RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
# Opacus wants its own copies of these; the book-keeping engine serves torch's.
_SERVED = (nn.MultiheadAttention, nn.RNN, nn.GRU, nn.LSTM)


def require_private(module: nn.Module) -> None:
    """Raises ParameterError naming the first layer that couples patients, keeps statistics of them, or is random."""
    for name, layer in module.named_modules():
        told = f"The layer {name or 'itself'} ({type(layer).__name__})"
        if isinstance(layer, _BATCH_NORM):
            raise ParameterError(
                f"{told} normalises over the batch, which couples patients.",
                "Use group or layer normalisation (GroupNorm, LayerNorm).",
            )
        if isinstance(layer, _INSTANCE_NORM) and layer.track_running_stats:
            raise ParameterError(f"{told} keeps statistics of patients.", "Set track_running_stats=False.")
        if layer.training and _random(layer):
            raise ParameterError(f"{told} draws random numbers while training.", "Leave dropout out.")
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and (layer.max_norm or layer.scale_grad_by_freq):
            raise ParameterError(
                f"{told} rescales rows by what a batch looks up.", "Leave max_norm and scale_grad_by_freq unset."
            )


def validate(module: nn.Module) -> None:
    """`require_private`, then Opacus' ModuleValidator, which must be installed. For use before a study is proposed.

    Raises ParameterError naming the layer and the remedy.
    """
    require_private(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.validators import ModuleValidator

        for name, layer in module.named_modules():
            trained = any(p.requires_grad for p in layer.parameters(recurse=False))
            if not trained or isinstance(layer, _SERVED) or type(layer) not in ModuleValidator.VALIDATORS:
                continue
            errors = ModuleValidator.VALIDATORS[type(layer)](layer)
            if errors:
                raise ParameterError(
                    f"The layer {name or 'itself'} ({type(layer).__name__}) cannot be trained privately: {errors[0]}",
                    "Replace the layer.",
                )


def _random(layer: nn.Module) -> bool:
    if isinstance(layer, _RANDOM):
        return not isinstance(layer, nn.modules.dropout._DropoutNd) or layer.p > 0
    return isinstance(layer, _SERVED) and layer.dropout > 0
