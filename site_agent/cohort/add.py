"""Adding a data set: read, check, freeze, store. A failure before the end leaves nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from protocol.delimited import DatasetRefused
from protocol.dictionary import Dictionary, parse_dictionary
from protocol.errors import Malformed
from protocol.identifiers import require_name
from protocol.strict_yaml import DEFAULT_LIMIT
from protocol.table import Table
from site_agent.clock import Clock
from site_agent.cohort.assignment import hash_patient
from site_agent.cohort.delimited import open_table
from site_agent.cohort.media import Told, read_media
from site_agent.cohort.quality import Quality, summarise
from site_agent.cohort.snapshot import Draft, draft, known_roles, path_of, store
from site_agent.cohort.tables import Snapshot
from site_agent.cohort.tabular import read_table
from site_agent.cohort.withdrawal import withdrawn
from site_agent.database import transaction
from site_agent.settings import SiteHome


@dataclass(frozen=True)
class Prepared:
    """A data set that passed every check and is stored nowhere yet."""

    snapshot: Draft
    quality: Quality


def read_dictionary(path: Path) -> Dictionary:
    """The data dictionary in a file of at most 256 KiB. Raises DatasetRefused, naming the file, line and column."""
    with open_table(path) as file:
        data = file.read(DEFAULT_LIMIT + 1)
    try:
        return parse_dictionary(data)
    except Malformed as error:
        raise DatasetRefused(f"{path.name}, {error.message}", error.remedy) from None


def prepare(
    engine: Engine,
    secret: bytes,
    table_path: Path,
    dictionary: Dictionary,
    name: str | None,
    *,
    files: Path | None = None,
    told: Told = lambda _done, _all: None,
) -> Prepared:
    """Read and check; nothing is written. files: the folder that a manifest's files lie in, else the manifest's own.
    told: how many of them are read. Raises DatasetRefused, or Malformed for a bad `name`."""
    chosen = require_name(name or dictionary.schema.name, "The data set's name")
    table = read_table(table_path, dictionary, lambda identity: hash_patient(secret, identity))
    with transaction(engine) as session:
        leave_out(table, withdrawn(session), dictionary)
    media = None
    if dictionary.schema.media is not None:
        media = read_media(table_path.name, files or table_path.absolute().parent, dictionary, table, told)
    with transaction(engine) as session:
        known = known_roles(session)
    snapshot = draft(chosen, dictionary.schema, table, secret, known, media)
    return Prepared(snapshot, summarise(table, snapshot))


def keep(engine: Engine, home: SiteHome, prepared: Prepared, clock: Clock) -> Snapshot:
    """Store a prepared data set: file and rows, or neither."""
    with _no_orphan(home, prepared.snapshot.digest), transaction(engine) as session:
        return store(session, home, prepared.snapshot, now=clock())


def leave_out(table: Table, gone: Collection[bytes], dictionary: Dictionary) -> None:
    """Drop the rows of patients who withdrew, before anything of them is encoded into a snapshot. Raises DatasetRefused
    where nobody is left."""
    kept = [index for index, patient in enumerate(table.patients) if patient not in gone]
    if len(kept) == len(table.patients):
        return
    table.dropped[(dictionary.file.patient_id, "the patient withdrew")] += len(table.patients) - len(kept)
    if not kept:
        raise DatasetRefused("Every patient of this data set withdrew.", "There is nothing to add.")
    table.keep(kept)


@contextlib.contextmanager
def _no_orphan(home: SiteHome, digest: str) -> Iterator[None]:
    """Remove the arrays' file again if its rows did not come in: patients' data must not lie about unaccounted for."""
    existed = path_of(home, digest).exists()
    try:
        yield
    except BaseException:
        if not existed:
            path_of(home, digest).unlink(missing_ok=True)
        raise
