"""One image file -> the encoded record that the schema describes: .npy, PNG, JPEG or DICOM, told by their first bytes.

Pixels alone are kept. Text, tags and headers of a file are read where they say how to read its pixels, and dropped.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from protocol.dataset import MaskLabel
from protocol.media import ImageInput
from site_agent.cohort.dicom import is_dicom, read_dicom
from site_agent.cohort.npy import MAGIC, MAX_VALUES, read_npy
from site_agent.cohort.record_files import BadFile

Pixels = NDArray[np.float64]
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_COMPARED = {
    ">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal, "==": np.equal, "!=": np.not_equal,
}  # fmt: skip
_MODES = {"L": 1, "I;16": 1, "I": 1, "RGB": 3}


def encode_image(data: bytes, image: ImageInput) -> NDArray[np.float32]:
    """(channels, height, width) float32, encoded. Raises BadFile."""
    return ((read_image(data, image) - image.center) / image.scale).astype(np.float32)


def read_image(data: bytes, image: ImageInput) -> Pixels:
    """(channels, height, width): (clip(v, low, high) - low) / (high - low), in 0..1, at the schema's size. Raises
    BadFile."""
    pixels, inverted = _pixels(data, image.channels, image.modality)
    part: Pixels = (np.clip(pixels, image.low, image.high) - image.low) / (image.high - image.low)
    return _fitted(1.0 - part if inverted else part, image)


def read_mask(data: bytes, image: ImageInput, label: MaskLabel) -> NDArray[np.uint8]:
    """(height, width) of 0 and 1, of a file of one channel; scaled to the nearest pixel where the image is scaled.
    Raises BadFile."""
    (pixels,), _ = _pixels(data, 1, None)
    size = (image.height, image.width)
    inside = np.asarray(_COMPARED[label.operator](pixels, label.value), dtype=np.uint8)
    if inside.shape == size:
        return inside
    if image.fit == "exact" or min(inside.shape) < 1:
        raise BadFile("another size than the dictionary says")
    return np.asarray(Image.fromarray(inside).resize((image.width, image.height), Image.Resampling.NEAREST))


def _pixels(data: bytes, channels: int, modality: str | None) -> tuple[Pixels, bool]:
    """((channels, height, width) finite values as in the file, whether low values are bright)."""
    inverted = False
    if data.startswith(MAGIC):
        pixels = read_npy(data, (2, 3) if channels == 1 else (3,))
        pixels = pixels[np.newaxis] if pixels.ndim == 2 else pixels
    elif data.startswith(_SIGNATURES):
        pixels = _picture(data)
    elif is_dicom(data):
        pixels, inverted = read_dicom(data, modality)
    else:
        raise BadFile("not an .npy, PNG, JPEG or DICOM file")
    if pixels.shape[0] != channels:
        raise BadFile("another number of channels than the dictionary says")
    if not bool(np.isfinite(pixels).all()):
        raise BadFile("a pixel is no finite number")
    return pixels, inverted


def _fitted(part: Pixels, image: ImageInput) -> Pixels:
    if part.shape == image.shape:
        return part
    if image.fit == "exact":
        raise BadFile("another size than the dictionary says")
    if min(part.shape[1:]) < 1:
        raise BadFile("an image without pixels")
    size = (image.width, image.height)
    resized = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        for channel in part
    ]
    return np.clip(np.stack(resized).astype(np.float64), 0.0, 1.0)


def _picture(data: bytes) -> Pixels:
    """(channels, height, width) of a PNG or JPEG, turned upright as the camera says. Size is judged before pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
                if picture.width * picture.height * 3 > MAX_VALUES:
                    raise BadFile(f"more than {MAX_VALUES // 3} pixels")
                if getattr(picture, "n_frames", 1) != 1 or picture.mode not in _MODES:
                    raise BadFile("several pictures, or a colour mode other than grey and RGB")
                pixels = np.asarray(ImageOps.exif_transpose(picture), dtype=np.float64)
    except BadFile:
        raise
    except Exception:  # noqa: BLE001 - Pillow's decoders raise whatever a damaged file provokes; none of it may be shown
        raise BadFile("not a readable PNG or JPEG file") from None
    return pixels[np.newaxis] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
