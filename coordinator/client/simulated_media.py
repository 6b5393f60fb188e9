"""Made-up images and sequences: noise, and one spot (or swell) at a random place whose strength decides the outcome."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privacy.entropy import Float64
from protocol.dataset import CLIP_DEVIATIONS
from protocol.media import ImageInput, SequenceInput

_NOISE = 0.5
_STRENGTH = 1.5
_SHARE = 6
"""The spot's radius: this part of the shorter side, or of the length."""


def made_up_media(
    media: ImageInput | SequenceInput, count: int, random: np.random.Generator
) -> tuple[NDArray[np.float32], Float64]:
    """((count, *shape) float32 encoded records, (count,) the strength of each: normal, of variance 1).

    A spot is brighter or darker than the noise by 1.5 encoded units for a strength of 1, and nothing else tells the
    strength, wherever the spot lies.
    """
    strength = random.normal(size=count)
    low, high = _bounds(media)
    records = np.empty((count, *media.shape), dtype=np.float32)
    axes = [np.arange(size) for size in media.shape[1:]]
    radius = max(1.0, min(media.shape[1:]) / _SHARE)
    for record, amount in zip(records, strength, strict=True):
        far = [(axis - random.uniform(0, axis.size)) / radius for axis in axes]
        distance = far[0] ** 2 if len(far) == 1 else far[0][:, np.newaxis] ** 2 + far[1][np.newaxis, :] ** 2
        spot = _STRENGTH * amount * np.exp(-distance / 2)
        record[:] = np.clip(_NOISE * random.normal(size=media.shape) + spot, low, high)
    return records, strength


def _bounds(media: ImageInput | SequenceInput) -> tuple[float, float]:
    if isinstance(media, ImageInput):
        return -media.center / media.scale, (1.0 - media.center) / media.scale
    return -CLIP_DEVIATIONS, CLIP_DEVIATIONS
