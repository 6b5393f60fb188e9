"""A manifest's records: each file read, checked, encoded and let go again, into one array that is allocated once.

A bad file is told by row and column. Its path is never told: hospitals name files after patients.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.delimited import DatasetRefused
from protocol.dictionary import Dictionary
from protocol.media import ImageInput
from protocol.table import SHOWN, Table, refusal
from site_agent.cohort.record_files import BadFile, RecordFolder, record_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_ENCODED_BYTES = 16 << 30
Told = Callable[[int, int], None]
"""Told how many files of how many were read."""


def read_media(name: str, folder: Path, dictionary: Dictionary, table: Table, told: Told) -> NDArray[np.float32]:
    """(records, *shape) float32 of the manifest `table`, from which the rows with a bad file are left out where the
    dictionary says on_bad: drop.

    name: the manifest's, for messages. Raises DatasetRefused for bad files, more than 16 GiB, and none that is left.
    """
    import numpy as np

    schema, column = dictionary.schema, dictionary.file_column
    assert schema.media is not None
    assert column is not None
    records = len(table.files)
    if records * math.prod(schema.shape) * 4 > MAX_ENCODED_BYTES:
        raise DatasetRefused(
            f"{name} names {records} files: encoded they take more than {MAX_ENCODED_BYTES >> 30} GiB.",
            "Make several data sets of it, or let the study use smaller records.",
        )
    x = np.empty((records, *schema.shape), dtype=np.float32)
    kept: list[int] = []
    shown: list[str] = []
    counts: Counter[str] = Counter()
    with record_folder(folder) as files:
        for place, named in enumerate(table.files):
            try:
                x[len(kept)] = _encoded(files, named, dictionary, table)
                kept.append(place)
            except BadFile as bad:
                if column.on_bad == "drop":
                    table.dropped[(column.name, bad.reason)] += 1
                else:
                    counts[f"column {column.name}: {bad.reason}"] += 1
                    if len(shown) < SHOWN:
                        shown.append(f"row {table.rows[place]}, column {column.name}: {bad.reason}")
            told(place + 1, records)
    if counts:
        raise refusal(name, shown, counts)
    if not kept:
        raise DatasetRefused(f"{name} leaves no usable record of {records}.", "Check the files and the dictionary.")
    table.keep(kept)
    return x[: len(kept)]


def _encoded(files: RecordFolder, named: str, dictionary: Dictionary, table: Table) -> NDArray[np.float32]:
    media = dictionary.schema.media
    if isinstance(media, ImageInput):
        from site_agent.cohort.images import encode_image

        return encode_image(files.read(named), media)
    from site_agent.cohort.sequences import encode_sequence

    assert media is not None
    record, absent = encode_sequence(files.read(named), media)
    table.imputed.update(absent)
    return record
