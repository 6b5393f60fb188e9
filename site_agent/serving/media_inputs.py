"""Images and sequences that a practitioner asks about, made into what the ONNX file takes. Nothing is kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from protocol.errors import Malformed
from protocol.media import ImageInput, SequenceInput
from site_agent.cohort.record_files import BadFile

Media = ImageInput | SequenceInput
Values = NDArray[np.float64]


def tensor_name(media: Media) -> str:
    """The ONNX file's input."""
    return "image" if isinstance(media, ImageInput) else "sequence"


def model_input(media: Media, records: Values) -> NDArray[np.float32]:
    """(N, *shape), NaN for a missing step -> the same, checked and complete. Raises Malformed, naming the record."""
    if records.ndim != len(media.shape) + 1 or records.shape[1:] != media.shape or not len(records):
        raise Malformed(
            f"The input is not of the shape [records, {', '.join(str(size) for size in media.shape)}].",
            "Ask GET /v2/models/NAME for it.",
        )
    if isinstance(media, ImageInput):
        if not bool(np.isfinite(records).all()):
            raise Malformed("The image has a pixel that is no finite number.", "Give every pixel's value.")
        return records.astype(np.float32)
    return np.stack([_complete(number, media, record) for number, record in enumerate(records, start=1)])


def named_record(number: int, media: Media, record: Mapping[str, object]) -> Values:
    """One record of named values: an image's by its name, a sequence's channels by theirs (null: nothing measured).

    Raises Malformed naming the record's number and the input, never a value.
    """
    names = [media.name] if isinstance(media, ImageInput) else [channel.name for channel in media.channels]
    if set(record) != set(names):
        raise Malformed(f"Record {number} does not hold exactly the model's inputs.", f"Give {', '.join(names)}.")
    given: object = record[media.name] if isinstance(media, ImageInput) else [record[name] for name in names]
    try:
        values = np.array(given, dtype=np.float64)
    except (ValueError, TypeError):
        raise Malformed(f"Record {number}: not nested lists of numbers.", "Give numbers alone.") from None
    if values.shape != media.shape:
        raise Malformed(f"Record {number} has another shape than {list(media.shape)}.", "Give one of that shape.")
    return values


def file_record(media: Media, data: bytes) -> Values:
    """One record as a file holds it (see `site_agent.cohort`), in the units of the model's input. Raises Malformed."""
    try:
        if isinstance(media, ImageInput):
            from site_agent.cohort.images import read_image

            part: Values = read_image(data, media)
            return media.low + part * (media.high - media.low)
        from site_agent.cohort.sequences import read_sequence

        return read_sequence(data, media)
    except BadFile as bad:
        raise Malformed(f"The file can't be used: {bad.reason}.", "Send a file as the model's card says.") from None


def _complete(number: int, sequence: SequenceInput, record: Values) -> NDArray[np.float32]:
    from site_agent.cohort.sequences import check_ranges, filled

    steps = record.copy()
    try:
        check_ranges(steps, sequence)
        return filled(steps, sequence).astype(np.float32)
    except BadFile as bad:
        raise Malformed(f"Record {number}: {bad.reason}.", "Give the missing or allowed value.") from None
