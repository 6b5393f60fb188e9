"""The released parameters as the flat vector that crossed in the rounds. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from protocol.canonical import sha256_hex
from protocol.errors import VerificationFailed
from protocol.model import parameter_shapes
from protocol.release import ReleaseSubject

REMEDY = "The release was built wrongly: tell the coordinator's operator; it must be built and approved again."


def read_weights(subject: ReleaseSubject, safetensors: bytes) -> dict[str, NDArray[np.float64]]:
    """The tensors by name, in wire order. Raises VerificationFailed unless they are finite float64 and exactly those of
    the approved model."""
    try:
        found = load(safetensors)
    except SafetensorError as error:
        raise VerificationFailed("model.safetensors can't be read.", REMEDY) from error
    shapes = parameter_shapes(subject.model, subject.dataset.shape)
    if {name: tensor.shape for name, tensor in found.items()} != dict(shapes):
        raise VerificationFailed("model.safetensors holds other tensors than the approved model has.", REMEDY)
    if not all(tensor.dtype == np.float64 and np.isfinite(tensor).all() for tensor in found.values()):
        raise VerificationFailed("model.safetensors holds values that are not finite numbers.", REMEDY)
    return {name: found[name] for name, _ in shapes}


def model_digest(subject: ReleaseSubject, safetensors: bytes) -> str:
    """SHA-256 of the tensors joined as float64, little-endian: what a round request names.

    Raises VerificationFailed.
    """
    tensors = read_weights(subject, safetensors).values()
    return sha256_hex(b"".join(tensor.astype("<f8", copy=False).tobytes() for tensor in tensors))
