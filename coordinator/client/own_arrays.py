"""A researcher's own images or sequences for a simulation: one .npz file of arrays, encoded as sites encode files.

x: (records, *shape), values as in the files; a sequence complete. y: (records,) 0 or 1; of masks (records, height,
width) of 0 and 1; of a label of kind number the number. patient: (records,) whole numbers or words.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.client.simulation import SimulationRefused
from privacy.local.patients import Group
from protocol.dataset import CLIP_DEVIATIONS, DatasetSchema, MaskLabel, NumberLabel, SurvivalLabel
from protocol.media import ImageInput, SequenceInput

_NAMES = ("x", "y", "patient")


def read_arrays(path: Path, schema: DatasetSchema) -> Group:
    """The patients of a .npz file. Raises SimulationRefused naming the array that is wrong, OSError."""
    media, label = schema.media, schema.label
    assert media is not None
    if isinstance(label, SurvivalLabel):
        raise SimulationRefused("Survival from images or sequences can't be simulated.", "Use a yes-or-no outcome.")
    arrays = _load(path)
    x, y, patient = (arrays[name] for name in _NAMES)
    if x.dtype.kind not in "uif" or x.shape[1:] != media.shape or not bool(np.isfinite(x).all()):
        raise _wrong(path, "x", f"finite numbers of shape (records, {', '.join(map(str, media.shape))})")
    if patient.dtype.kind not in "uiU" or patient.shape != x.shape[:1]:
        raise _wrong(path, "patient", "a whole number or a word for each record")
    shape = (len(x), *media.shape[1:]) if isinstance(label, MaskLabel) else (len(x),)
    if y.dtype.kind not in "uifb" or y.shape != shape:
        raise _wrong(path, "y", f"numbers of shape {shape}")
    if isinstance(label, NumberLabel):
        if not bool(((y >= label.minimum) & (y <= label.maximum)).all()):
            raise _wrong(path, "y", f"numbers from {label.minimum:g} to {label.maximum:g}")
        y = (y.astype(np.float64) - label.center) / label.scale
    elif not bool(np.isin(y, (0, 1)).all()):
        raise _wrong(path, "y", "0 and 1")
    _, number = np.unique(patient, return_inverse=True)
    group = Group(_encoded(path, x, media), y.astype(np.float64), number.astype(np.int64), int(number.max()) + 1)
    return group.select(np.ones(group.patients, dtype=np.bool_))


def _load(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise SimulationRefused(f"{path} is not a regular file.", "Name an .npz file with the arrays x, y and patient.")
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: np.asarray(file[name]) for name in _NAMES}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError, TypeError):
        raise SimulationRefused(
            f"{path} is no .npz file with the arrays x, y and patient.",
            "Write it with numpy.savez(path, x=..., y=..., patient=...); pickled arrays are not read.",
        ) from None
    if not all(array.ndim for array in found.values()) or not len(found["x"]):
        raise SimulationRefused(f"{path} holds no records.", "Check how it was written.")
    return found


def _encoded(path: Path, x: NDArray[Any], media: ImageInput | SequenceInput) -> NDArray[np.float32]:
    values = x.astype(np.float64)
    if isinstance(media, ImageInput):
        part = (np.clip(values, media.low, media.high) - media.low) / (media.high - media.low)
        return ((part - media.center) / media.scale).astype(np.float32)
    low, high, center, scale = (
        np.array([getattr(channel, name) for channel in media.channels])[:, np.newaxis]
        for name in ("minimum", "maximum", "center", "scale")
    )
    if not bool(((values >= low) & (values <= high)).all()):
        raise _wrong(path, "x", "values within each channel's range")
    scaled = np.clip((values - center) / scale, -CLIP_DEVIATIONS, CLIP_DEVIATIONS)
    return np.asarray(scaled, dtype=np.float32)


def _wrong(path: Path, name: str, wanted: str) -> SimulationRefused:
    return SimulationRefused(f"{path}: the array {name} is not as the study's data set has it.", f"Give {wanted}.")
