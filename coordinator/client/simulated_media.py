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
_EDGE = 1.5
"""A mask's spot ends so many radii from its middle."""
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
    for record, amount in zip(records, strength, strict=True):
        spot = _STRENGTH * amount * np.exp(-_distance(media.shape[1:], random) / 2)
        record[:] = np.clip(_NOISE * random.normal(size=media.shape) + spot, low, high)
    return records, strength


def made_up_masks(
    image: ImageInput, count: int, random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """((count, *shape) float32 encoded records, (count, height, width) masks of 0 and 1): a spot that is 1.5 encoded
    units brighter than the noise, at a random place."""
    low, high = _bounds(image)
    records = np.empty((count, *image.shape), dtype=np.float32)
    masks = np.empty((count, image.height, image.width), dtype=np.uint8)
    for record, mask in zip(records, masks, strict=True):
        mask[:] = _distance(image.shape[1:], random) < _EDGE**2
        record[:] = np.clip(_NOISE * random.normal(size=image.shape) + _STRENGTH * mask, low, high)
    return records, masks


def _distance(sizes: tuple[int, ...], random: np.random.Generator) -> Float64:
    """(*sizes) squared distance from a random place, in radii of a spot."""
    radius = max(1.0, min(sizes) / _SHARE)
    far = [((np.arange(size) - random.uniform(0, size)) / radius) ** 2 for size in sizes]
    total: Float64 = np.zeros(sizes)
    for squares in np.ix_(*far):
        total = total + squares
    return total


def _bounds(media: ImageInput | SequenceInput) -> tuple[float, float]:
    if isinstance(media, ImageInput):
        return -media.center / media.scale, (1.0 - media.center) / media.scale
    return -CLIP_DEVIATIONS, CLIP_DEVIATIONS
