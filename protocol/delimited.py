"""Records of a delimited text file, one at a time, none of them larger than 1 MiB.

A file that is not text, a line without an end or an unclosed quote is refused before it fills the memory.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO

from protocol.dictionary import Column, Dictionary, FileDescription
from protocol.errors import CloisterError

MAX_RECORD_BYTES = 1 << 20


class DatasetRefused(CloisterError):
    """The file can't become a data set as it is."""

    code = "dataset-refused"


def read_records(name: str, file: BinaryIO, description: FileDescription) -> Iterator[list[str]]:
    """The records, the header's among them; blank lines are passed over. Raises DatasetRefused, naming the line."""
    lines = _Lines(name, file, description.encoding)
    reader = csv.reader(lines, delimiter=description.delimiter, strict=True)
    while True:
        lines.bytes_left = MAX_RECORD_BYTES
        try:
            record = next(reader, None)
        except csv.Error:
            raise DatasetRefused(
                f"{name}, line {lines.number}: the quotes are wrong, or a value is longer than 131072 characters.",
                "Export the file again; check the dictionary's delimiter.",
            ) from None
        if record is None:
            return
        if record:
            yield record


def column_order(file_name: str, records: Iterator[list[str]], dictionary: Dictionary) -> tuple[Column, ...]:
    """The dictionary's columns in the file's order; takes the header from `records` where there is one.

    Raises DatasetRefused for a column that is missing, twice or not in the dictionary. A header's words are not
    repeated: in a file without one they would be a patient's values.
    """
    if not dictionary.file.header:
        return dictionary.columns
    header = next(records, None)
    if header is None:
        raise DatasetRefused(f"{file_name} is empty.", "Check that it is the right file.")
    known = {column.header: column for column in dictionary.columns}
    names = [name.strip() for name in header]
    missing = [column.name for column in dictionary.columns if column.header not in names]
    if missing:
        raise DatasetRefused(
            f"{file_name}: the header lacks {'column' if len(missing) == 1 else 'columns'} {', '.join(missing[:20])}.",
            "Export the file with these columns, or correct the dictionary (source: the header's own text; "
            "file: {header: false} for a file without a header).",
        )
    for position, name in enumerate(names, 1):
        if name not in known:
            raise DatasetRefused(
                f"{file_name}: column number {position} of the header is not in the dictionary.",
                "Add it to the dictionary with role: ignore, or leave it out of the export.",
            )
        if names.count(name) > 1:
            raise DatasetRefused(
                f"{file_name}: the header names column {known[name].name} twice.",
                "Export the file with each column once.",
            )
    return tuple(known[name] for name in names)


class _Lines:
    """The file's lines as text, for csv.reader; `bytes_left` bounds the record that is being read."""

    def __init__(self, name: str, file: BinaryIO, encoding: str) -> None:
        self._name = name
        self._file = file
        self._encoding = encoding
        self.number = 0
        self.bytes_left = MAX_RECORD_BYTES

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(self.bytes_left + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.bytes_left -= len(line)
        if self.number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in line:
            raise self._refuse("holds a NUL byte: this is not a text file", "Name a CSV file, saved as text.")
        if self.bytes_left < 0:
            raise self._refuse(
                f"is part of a record over {MAX_RECORD_BYTES} bytes",
                "Check that this is a CSV file with one record a line, and that every quote is closed.",
            )
        try:
            return line.decode(self._encoding)
        except UnicodeDecodeError:
            raise self._refuse(f"is not {self._encoding}", "Save the file so, or set file: encoding.") from None

    def _refuse(self, what: str, remedy: str) -> DatasetRefused:
        return DatasetRefused(f"{self._name}, line {self.number}: {what}.", remedy)
