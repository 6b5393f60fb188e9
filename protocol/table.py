"""Reads a delimited file as its data dictionary describes it, record by record, into encoded inputs.

Whatever is wrong is told by row number and column name: no cell's content ever stands in a message, since messages are
copied into tickets and mails. Rows are counted from 1, the header not included.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from protocol.dataset import Feature, NumberLabel, Value
from protocol.delimited import DatasetRefused, column_order, read_records
from protocol.dictionary import Column, Dictionary, parse_value

MAX_ROWS = 5_000_000
SHOWN = 20
HashPatient = Callable[[str], bytes]

_CONFLICT = "one patient has both outcomes"


@dataclass
class Table:
    """Encoded records: `x` holds rows * width floats row by row, `y` the label's code (`LabelRule.code`,
    `NumberLabel.code`) and `patients` a keyed hash per row. Of a manifest `x` is empty (width 0); `files` and
    `masks` hold what its columns of these roles say, `rows` the number of each row.

    dropped: rows left out, by (column, reason). imputed: cells filled with the dictionary's constant, by column.
    """

    width: int
    x: array[float] = field(default_factory=lambda: array("d"))
    y: array[float] = field(default_factory=lambda: array("d"))
    patients: list[bytes] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    rows_read: int = 0
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    imputed: Counter[str] = field(default_factory=Counter)

    def keep(self, kept: Sequence[int]) -> None:
        """Leave out every record but those at these places, in this order."""
        width = self.width
        self.x = array("d", (v for index in kept for v in self.x[index * width : (index + 1) * width]))
        self.y = array("d", (self.y[index] for index in kept))
        self.patients = [self.patients[index] for index in kept]
        self.rows = [self.rows[index] for index in kept]
        self.files = [self.files[index] for index in kept] if self.files else []
        self.masks = [self.masks[index] for index in kept] if self.masks else []


def read_table(name: str, file: BinaryIO, dictionary: Dictionary, hash_patient: HashPatient) -> Table:
    """The records of an open file, encoded; `hash_patient` turns an identifier into the hash that stands for it.

    name: the file's, for messages.
    Raises DatasetRefused for a file that `delimited` refuses, a wrong number of values in a row, a bad cell in a column
    whose on_bad is refuse, more than 5 million rows, and a file that leaves no row.
    """
    width = 0 if dictionary.schema.media else dictionary.schema.width
    reading = _Reading(dictionary, hash_patient, Table(width))
    records = read_records(name, file, dictionary.file)
    order = [_Cell.of(column) for column in column_order(name, records, dictionary)]
    for record in records:
        reading.take(order, record)
        if reading.table.rows_read > MAX_ROWS:
            raise DatasetRefused(f"{name} has more than {MAX_ROWS} rows.", "Make several data sets of it.")
    table = reading.finish()
    if reading.counts:
        raise refusal(name, reading.shown, reading.counts)
    if not table.patients:
        raise DatasetRefused(
            f"{name} leaves no usable row of {table.rows_read}.",
            "Check that it is the right file and that the dictionary's ranges and missing marks fit it.",
        )
    return table


@dataclass(frozen=True)
class _Cell:
    """A column and, unless it is an identifier or ignored, the values it may have."""

    column: Column
    feature: Feature | None

    @classmethod
    def of(cls, column: Column) -> _Cell:
        return cls(column, column.feature() if column.type else None)

    def read(self, dictionary: Dictionary, text: str) -> tuple[Value, str | None]:
        """(value, None), with a value of None where the constant takes its place, or (None, what is wrong)."""
        missing = dictionary.is_missing(self.column, text)
        if self.feature is None:
            return (None, "missing") if missing or not text else (text, None)
        if missing:
            usable = self.feature.impute is not None
            return None, None if usable else "missing, and the dictionary has no imputation constant"
        value = parse_value(self.feature, text)
        if value is None:
            return None, f"not {'an integer' if self.feature.kind == 'integer' else 'a finite number'}"
        if not self.feature.admits(value):
            category = self.feature.kind == "category"
            return None, "not one of the levels" if category else "outside the allowed range"
        return value, None


@dataclass
class _Reading:
    """What has been read so far. `counts`: what refuses the file, `shown`: the first of it by row."""

    dictionary: Dictionary
    hash_patient: HashPatient
    table: Table
    shown: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    rows: Counter[bytes] = field(default_factory=Counter)
    outcome: dict[bytes, float] = field(default_factory=dict)
    in_conflict: set[bytes] = field(default_factory=set)

    def take(self, order: list[_Cell], record: list[str]) -> None:
        """Read one record into the table, or note why not."""
        self.table.rows_read += 1
        if len(record) != len(order):
            self._refuse(f"number of values {len(record)}, number of columns {len(order)}")
            return
        values: dict[str, Value] = {}
        bad: list[tuple[Column, str]] = []
        for cell, text in zip(order, record, strict=True):
            if cell.column.role == "ignore":
                continue
            values[cell.column.name], wrong = cell.read(self.dictionary, text.strip())
            if wrong is not None:
                bad.append((cell.column, wrong))
        if not self._spoilt(bad):
            self._keep(values)

    def finish(self) -> Table:
        """The table, without the rows of patients whose rows contradict each other where those may be dropped."""
        table = self.table
        if not self.in_conflict:
            return table
        kept = [index for index, patient in enumerate(table.patients) if patient not in self.in_conflict]
        table.dropped[(self.dictionary.schema.label.column, _CONFLICT)] += len(table.patients) - len(kept)
        table.keep(kept)
        return table

    def _keep(self, values: dict[str, Value]) -> None:
        file, rule = self.dictionary.file, self.dictionary.schema.label
        generated = file.patient_id == "generated"
        # Two name spaces, so that row 7 is never the patient whose identifier is 7.
        patient = self.hash_patient(f"row\0{self.table.rows_read}" if generated else f"id\0{values[file.patient_id]}")
        label = rule.code(values)
        by_name = {column.name: column for column in self.dictionary.columns}
        # A number may differ from record to record of a patient; an outcome may not.
        if not isinstance(rule, NumberLabel) and self.outcome.setdefault(patient, label) != label:
            if by_name[rule.column].on_bad == "refuse":
                self._refuse(f"column {rule.column}: {_CONFLICT}")
                return
            self.in_conflict.add(patient)
        if self.rows[patient] == file.max_rows_per_patient:
            self._spoilt([(by_name[file.patient_id], f"one patient has more than {file.max_rows_per_patient} rows")])
            return
        self.rows[patient] += 1
        if (column := self.dictionary.file_column) is None:
            self.table.x.extend(self.dictionary.schema.encode(values))
        else:
            self.table.files.append(str(values[column.name]))
        if (mask := self.dictionary.mask_column) is not None:
            self.table.masks.append(str(values[mask.name]))
        self.table.rows.append(self.table.rows_read)
        self.table.y.append(label)
        self.table.patients.append(patient)
        self.table.imputed.update(f.name for f in self.dictionary.schema.features if values[f.name] is None)

    def _spoilt(self, bad: list[tuple[Column, str]]) -> bool:
        """Whether the row is out: it refuses the file or, where every bad column says so, is dropped and counted."""
        refusing = [(column, what) for column, what in bad if column.on_bad == "refuse"]
        for column, what in refusing:
            self._refuse(f"column {column.name}: {what}")
        if bad and not refusing:
            self.table.dropped[(bad[0][0].name, bad[0][1])] += 1
        return bool(bad)

    def _refuse(self, what: str) -> None:
        self.counts[what] += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"row {self.table.rows_read}, {what}")


def refusal(name: str, shown: Sequence[str], counts: Counter[str]) -> DatasetRefused:
    """What refuses a file: the first problems by row (`shown`, at most SHOWN) and all of them by kind."""
    total = sum(counts.values())
    lines = [f"{name} has {total} {'problem' if total == 1 else 'problems'}:", *shown]
    if total > len(shown):
        counted = (f"{count} x {what}" for what, count in counts.most_common(SHOWN))
        lines.append(f"only the first {len(shown)} are shown; in all: {'; '.join(counted)}")
    return DatasetRefused(
        "\n  ".join(lines),
        "Correct the named cells or the dictionary, or say on_bad: drop for a column whose bad rows may be left out.",
    )
