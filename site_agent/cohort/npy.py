"""Arrays of numbers in .npy files: the header is judged before anything is allocated, and nothing is unpickled."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from numpy.typing import NDArray

from site_agent.cohort.record_files import BadFile

MAGIC = b"\x93NUMPY"
MAX_VALUES = 1 << 26
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy(data: bytes, ranks: tuple[int, ...]) -> NDArray[np.float64]:
    """The numbers, as float64. ranks: how many axes are taken. Raises BadFile: no numbers, another form, too many."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read(io.BytesIO(data), len(data), ranks)
    except BadFile:
        raise
    except Exception:  # noqa: BLE001 - numpy's header parser raises whatever a damaged file provokes, TokenError included
        raise BadFile("not a readable .npy file") from None


def _read(file: io.BytesIO, size: int, ranks: tuple[int, ...]) -> NDArray[np.float64]:
    shape, _, kind = _HEADERS[np.lib.format.read_magic(file)](file)
    if kind.kind not in "uifb" or len(shape) not in ranks or min(shape) < 0:
        raise BadFile("an .npy file of another kind or number of axes")
    if math.prod(shape) > MAX_VALUES or math.prod(shape) * kind.itemsize != size - file.tell():
        raise BadFile("an .npy file of another length than its header says, or too large")
    file.seek(0)
    return np.asarray(np.lib.format.read_array(file, allow_pickle=False), dtype=np.float64)
