"""The pixels of one DICOM image (PS3.3, PS3.5): modality values by the rescale slope and intercept, nothing else kept.

Burned-in annotations are not looked for: who exports the images must see to that.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from site_agent.cohort.npy import MAX_VALUES
from site_agent.cohort.record_files import BadFile

_MARK = b"DICM"
_SYNTAXES = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"})
"""Implicit and explicit VR little endian, RLE lossless: what is read without another codec. A deflated file is not
inflated, since nothing bounds what it inflates to."""
_COLOURS = {"MONOCHROME1": 1, "MONOCHROME2": 1, "RGB": 3}


def is_dicom(data: bytes) -> bool:
    """Whether the file has a DICOM preamble."""
    return data[128:132] == _MARK


def read_dicom(data: bytes, modality: str | None) -> tuple[NDArray[np.float64], bool]:
    """((channels, height, width) modality values, whether low values are bright). Raises BadFile."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # it would tell values of the header
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(data, modality)
    except BadFile:
        raise
    except Exception:  # noqa: BLE001 - pydicom raises whatever a damaged file provokes; none of it may be shown
        raise BadFile("not a readable DICOM image") from None


def _read(data: bytes, modality: str | None) -> tuple[NDArray[np.float64], bool]:
    from pydicom import dcmread
    from pydicom.filereader import _read_file_meta_info, read_preamble

    file = io.BytesIO(data)
    read_preamble(file, force=False)
    if str(_read_file_meta_info(file).get("TransferSyntaxUID", "")) not in _SYNTAXES:
        raise BadFile("a DICOM file in a compressed form that is not taken: export it uncompressed")
    file.seek(0)
    dataset: Any = dcmread(file)
    if modality is not None and dataset.get("Modality") != modality:
        raise BadFile("a DICOM file of another modality than the dictionary says")
    colour = str(dataset.get("PhotometricInterpretation", ""))
    samples = int(dataset.get("SamplesPerPixel", 1))
    if _COLOURS.get(colour) != samples or int(dataset.get("NumberOfFrames") or 1) != 1:
        raise BadFile("a DICOM file of several frames, or of colours other than grey and RGB")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if not 0 < rows * columns * samples <= MAX_VALUES:
        raise BadFile(f"a DICOM file of no or more than {MAX_VALUES} pixels")
    slope, intercept = float(dataset.get("RescaleSlope", 1.0)), float(dataset.get("RescaleIntercept", 0.0))
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope != 0):
        raise BadFile("a DICOM file without a usable rescale slope")
    pixels = np.asarray(dataset.pixel_array, dtype=np.float64) * slope + intercept
    arranged = pixels[np.newaxis] if samples == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    if arranged.shape != (samples, rows, columns):
        raise BadFile("a DICOM file whose pixels do not fit its size")
    return arranged, colour == "MONOCHROME1"
