"""One file of measurements over time -> the encoded record: an .npy on the grid, or a CSV in long form.

CSV: the header `time,channel,value` and one measurement a line; time in seconds from the record's beginning. An .npy
holds (channels, length), NaN where nothing was measured.
"""

from __future__ import annotations

import csv

import numpy as np
from numpy.typing import NDArray

from protocol.dataset import CLIP_DEVIATIONS
from protocol.dictionary import parse_number
from protocol.media import SequenceInput
from site_agent.cohort.npy import MAGIC, read_npy
from site_agent.cohort.record_files import BadFile

HEADER = ["time", "channel", "value"]
MAX_LINES = 5_000_000
Steps = NDArray[np.float64]


def encode_sequence(data: bytes, sequence: SequenceInput) -> tuple[NDArray[np.float32], list[str]]:
    """((channels, length) float32, the channels in which nothing was measured). Raises BadFile."""
    steps = read_sequence(data, sequence)
    absent = [channel.name for channel, row in zip(sequence.channels, steps, strict=True) if np.isnan(row).all()]
    return normalise(filled(steps, sequence), sequence), absent


def read_sequence(data: bytes, sequence: SequenceInput) -> Steps:
    """(channels, length) in the channels' units, NaN where nothing was measured. Raises BadFile."""
    if data.startswith(MAGIC):
        steps = read_npy(data, (2,))
        if steps.shape != sequence.shape:
            raise BadFile("another number of channels or steps than the dictionary says")
    else:
        steps = _gridded(data, sequence)
    check_ranges(steps, sequence)
    return steps


def check_ranges(steps: Steps, sequence: SequenceInput) -> None:
    """Values out of range become missing, in place, where the schema says so. Infinity is out of every range. Raises
    BadFile naming the channel otherwise."""
    for row, channel in zip(steps, sequence.channels, strict=True):
        with np.errstate(invalid="ignore"):
            outside = ~np.isnan(row) & ~((row >= channel.minimum) & (row <= channel.maximum))
        if bool(outside.any()) and channel.outside == "refuse":
            raise BadFile(f"channel {channel.name} has a value outside its range")
        row[outside] = np.nan


def filled(steps: Steps, sequence: SequenceInput) -> Steps:
    """(channels, length) with NaN -> without: the last value, before the first the channel's constant. Raises BadFile
    naming a channel that has none."""
    result = steps.copy()
    for row, channel in zip(result, sequence.channels, strict=True):
        if np.isnan(row[0]):
            if channel.impute is None:
                raise BadFile(f"channel {channel.name} begins without a value, and has no imputation constant")
            row[0] = channel.impute
        known = np.where(np.isnan(row), 0, np.arange(row.size))
        row[:] = row[np.maximum.accumulate(known)]
    return result


def normalise(steps: Steps, sequence: SequenceInput) -> NDArray[np.float32]:
    """clip((v - center) / scale, +-3) by channel."""
    center = np.array([channel.center for channel in sequence.channels])[:, np.newaxis]
    scale = np.array([channel.scale for channel in sequence.channels])[:, np.newaxis]
    scaled: Steps = np.clip((steps - center) / scale, -CLIP_DEVIATIONS, CLIP_DEVIATIONS)
    return scaled.astype(np.float32)


def _gridded(data: bytes, sequence: SequenceInput) -> Steps:
    """The mean of each step's measurements, NaN without any. Single values are judged before they are averaged."""
    place = {channel.name: number for number, channel in enumerate(sequence.channels)}
    sums, counts = np.zeros(sequence.shape), np.zeros(sequence.shape)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise BadFile("neither an .npy file nor UTF-8 text") from None
    if len(lines) > MAX_LINES:
        raise BadFile(f"more than {MAX_LINES} lines")
    reader = csv.reader(lines, strict=True)
    try:
        if [name.strip() for name in next(reader, [])] != HEADER:
            raise BadFile("the first line is not time,channel,value")
        for row in reader:
            _measure(row, sequence, place, sums, counts)
    except csv.Error:
        raise BadFile("not a readable CSV file") from None
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _measure(row: list[str], sequence: SequenceInput, place: dict[str, int], sums: Steps, counts: Steps) -> None:
    if not row:
        return
    if len(row) != len(HEADER):
        raise BadFile("a line does not hold time, channel and value")
    number = place.get(row[1].strip())
    if number is None:
        raise BadFile("a line names a channel that the dictionary does not have")
    text = row[2].strip()
    time, value = parse_number(row[0].strip()), parse_number(text)
    if time is None or time < 0 or (text and value is None):
        raise BadFile("a time or value is no finite number, or a time is negative")
    step = time / sequence.interval
    if value is None or step >= sequence.length:
        return
    channel = sequence.channels[number]
    if not channel.minimum <= value <= channel.maximum:
        if channel.outside == "refuse":
            raise BadFile(f"channel {channel.name} has a value outside its range")
        return
    sums[number, int(step)] += value
    counts[number, int(step)] += 1
