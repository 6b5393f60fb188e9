"""A manifest's records: each file read, checked, encoded and let go again, into one array that is allocated once.

A bad file is told by row and column. Its path is never told: hospitals name files after patients.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.dataset import MaskLabel
from protocol.delimited import DatasetRefused
from protocol.dictionary import Column, Dictionary
from protocol.media import ImageInput
from protocol.table import SHOWN, Table, refusal
from site_agent.cohort.record_files import BadFile, RecordFolder, record_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_ENCODED_BYTES = 16 << 30
Told = Callable[[int, int], None]
"""Told how many files of how many were read."""


@dataclass(frozen=True)
class Encoded:
    """x: (records, *shape) float32. masks: (records, height, width) of 0 and 1, or None where the outcome is none."""

    x: NDArray[np.float32]
    masks: NDArray[np.uint8] | None


def read_media(name: str, folder: Path, dictionary: Dictionary, table: Table, told: Told) -> Encoded:
    """The records of the manifest `table`, from which the rows with a bad file are left out where the dictionary says
    on_bad: drop.

    name: the manifest's, for messages. Raises DatasetRefused for bad files, more than 16 GiB, and none that is left.
    """
    import numpy as np

    schema = dictionary.schema
    records = len(table.files)
    if records * math.prod(schema.shape) * 4 > MAX_ENCODED_BYTES:
        raise DatasetRefused(
            f"{name} names {records} files: encoded they take more than {MAX_ENCODED_BYTES >> 30} GiB.",
            "Make several data sets of it, or let the study use smaller records.",
        )
    x = np.empty((records, *schema.shape), dtype=np.float32)
    masks = np.empty((records, *schema.shape[1:]), dtype=np.uint8) if dictionary.mask_column else None
    kept: list[int] = []
    shown: list[str] = []
    counts: Counter[str] = Counter()
    with record_folder(folder) as files:
        for place in range(records):
            bad = _read(files, place, dictionary, table, x[len(kept)], None if masks is None else masks[len(kept)])
            if bad is None:
                kept.append(place)
            elif bad[0].on_bad == "drop":
                table.dropped[(bad[0].name, bad[1])] += 1
            else:
                what = f"column {bad[0].name}: {bad[1]}"
                counts[what] += 1
                if len(shown) < SHOWN:
                    shown.append(f"row {table.rows[place]}, {what}")
            told(place + 1, records)
    if counts:
        raise refusal(name, shown, counts)
    if not kept:
        raise DatasetRefused(f"{name} leaves no usable record of {records}.", "Check the files and the dictionary.")
    table.keep(kept)
    return Encoded(x[: len(kept)], None if masks is None else masks[: len(kept)])


def _read(
    files: RecordFolder,
    place: int,
    dictionary: Dictionary,
    table: Table,
    record: NDArray[np.float32],
    mask: NDArray[np.uint8] | None,
) -> tuple[Column, str] | None:
    """Fill `record`, and `mask`, from the files of the manifest's record at `place`; or the column and why not."""
    column, media, label = dictionary.file_column, dictionary.schema.media, dictionary.schema.label
    assert column is not None
    assert media is not None
    absent: list[str] = []
    try:
        data = files.read(table.files[place])
        if isinstance(media, ImageInput):
            from site_agent.cohort.images import encode_image, read_mask

            record[...] = encode_image(data, media)
            if mask is not None and isinstance(label, MaskLabel) and (named := dictionary.mask_column) is not None:
                column = named
                mask[...] = read_mask(files.read(table.masks[place]), media, label)
        else:
            from site_agent.cohort.sequences import encode_sequence

            record[...], absent = encode_sequence(data, media)
    except BadFile as bad:
        return column, bad.reason
    table.imputed.update(absent)
    return None
