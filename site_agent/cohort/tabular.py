"""A hospital's delimited file, read as its data dictionary describes it."""

from __future__ import annotations

from pathlib import Path

from protocol.dictionary import Dictionary
from protocol.table import HashPatient, Table
from protocol.table import read_table as read_open_table
from site_agent.cohort.delimited import open_table


def read_table(path: Path, dictionary: Dictionary, hash_patient: HashPatient) -> Table:
    """The file's records, encoded. Raises DatasetRefused: see `protocol.table`, and for what is no regular file."""
    with open_table(path) as file:
        return read_open_table(path.name, file, dictionary, hash_patient)
