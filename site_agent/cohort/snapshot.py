"""Snapshots: a data set frozen under a schema, stored for the worker and known by a keyed content hash.

The hash is an HMAC: a bare hash of patients' data could be confirmed by guessing the data.
"""

from __future__ import annotations

import hashlib
import hmac
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import literal_column
from sqlmodel import Session, col, select

from protocol.canonical import canonical
from protocol.dataset import DatasetSchema
from protocol.delimited import DatasetRefused
from protocol.errors import CloisterError
from protocol.proposal import MINIMUM_CELL
from protocol.timestamp import timestamp
from site_agent.cohort.assignment import hold_out
from site_agent.cohort.tables import Snapshot, SnapshotPatient, WithdrawnPatient
from site_agent.durable_files import make_private_folder, write_stream
from site_agent.keystore import read_secret
from site_agent.settings import SiteHome

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from protocol.table import Table
    from site_agent.cohort.media import Encoded


_MEMBERS = ("x", "y", "patient", "held_out", "schema_digest", "patient_hashes")


class SnapshotUnusable(CloisterError):
    """A snapshot's file is missing, damaged or not the one its digest names."""

    code = "snapshot-unusable"


@dataclass(frozen=True)
class SnapshotArrays:
    """x: (records, D) float64, or (records, *shape) float32 for images and sequences, encoded. y: (records,) float64,
    the label's code, or (records, height, width) uint8, masks. patient: (records,) int64, index of the record's
    patient. held_out: (patients,) bool. schema_digest: of the schema that x is encoded with.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    patient: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    schema_digest: str


@dataclass(frozen=True)
class Draft:
    """A snapshot that is nowhere yet: the arrays, each patient's keyed hash in index order, and the digest."""

    name: str
    schema: DatasetSchema
    arrays: SnapshotArrays
    patient_hashes: tuple[bytes, ...]
    digest: str
    dropped: int

    @property
    def patients(self) -> int:
        """All patients, held out or not."""
        return len(self.patient_hashes)

    @property
    def held_out(self) -> int:
        """Patients who never train."""
        return int(self.arrays.held_out.sum())


def draft(
    name: str,
    schema: DatasetSchema,
    table: Table,
    secret: bytes,
    known: Mapping[bytes, bool],
    media: Encoded | None = None,
) -> Draft:
    """Freeze a table. `known`: the roles of patients that earlier snapshots hold.

    media: the images or sequences of a manifest. Its arrays become the snapshot's own, put in the order of roles and
    patients in place, so that whoever parts the snapshot need not copy them.
    Raises DatasetRefused for 10 patients or fewer: their number may not leave the site.
    """
    import numpy as np

    hashes = tuple(dict.fromkeys(table.patients))
    if len(hashes) <= MINIMUM_CELL:
        raise DatasetRefused(
            f"The data set has at most {MINIMUM_CELL} patients: too few for their number to leave the site.",
            "Add patients, or take part through a hospital that has more.",
        )
    place = {patient: index for index, patient in enumerate(hashes)}
    roles = hold_out(secret, hashes, known)
    held_out = np.array([roles[patient] for patient in hashes], dtype=bool)
    y: NDArray[Any] = np.array(table.y, dtype=np.float64)
    patient = np.array([place[patient] for patient in table.patients], dtype=np.int64)
    x: NDArray[Any]
    if media is None:
        x = np.frombuffer(table.x, dtype=np.float64).reshape(-1, table.width)
    else:
        order = np.lexsort((patient, held_out[patient]))
        x, y, patient = media.x, y[order], patient[order]
        arrange(x, order)
        if media.masks is not None:
            y = media.masks
            arrange(y, order)
    arrays = SnapshotArrays(x, y, patient, held_out, schema.digest)
    return draft_of(name, schema, arrays, hashes, secret, dropped=sum(table.dropped.values()))


def draft_of(
    name: str,
    schema: DatasetSchema,
    arrays: SnapshotArrays,
    patient_hashes: tuple[bytes, ...],
    secret: bytes,
    *,
    dropped: int,
) -> Draft:
    """A draft of arrays that are in order already. dropped: rows of the file that are not in them."""
    return Draft(name, schema, arrays, patient_hashes, _digest(secret, arrays, patient_hashes), dropped)


def arrange(rows: NDArray[Any], order: NDArray[np.int64]) -> None:
    """rows[:] = rows[order] along the first axis, with one row's memory. order: a permutation."""
    done = [False] * len(order)
    for start in range(len(order)):
        if done[start] or order[start] == start:
            continue
        first, here = rows[start].copy(), start
        while (source := int(order[here])) != start:
            rows[here] = rows[source]
            done[here], here = True, source
        rows[here], done[here] = first, True


def known_roles(session: Session) -> dict[bytes, bool]:
    """{patient hash: held out} over every snapshot of the site."""
    rows = session.exec(select(SnapshotPatient.patient_hash, SnapshotPatient.held_out)).all()
    return {bytes(patient): held_out for patient, held_out in rows}


def store(session: Session, home: SiteHome, snapshot: Draft, *, now: datetime) -> Snapshot:
    """Write the arrays' file, then the rows in the caller's transaction. The same content again changes nothing.

    Raises DatasetRefused if another data set has this content or was added since the roles were drawn, and OSError when
    the disk refuses the file.
    """
    present = session.get(Snapshot, snapshot.digest)
    if present is not None:
        if present.name != snapshot.name:
            raise DatasetRefused(
                f"The same content is registered as {present.name}.", "Use that data set; one content has one name."
            )
        _refuse_withdrawn(session, snapshot)
        if not path_of(home, snapshot.digest).exists():
            _write(home, snapshot)
        return present
    _refuse_changed_roles(session, snapshot)
    _refuse_withdrawn(session, snapshot)
    _write(home, snapshot)
    told_patients, told_held_out = _counts_to_tell(session, snapshot)
    row = Snapshot(
        digest=snapshot.digest,
        name=snapshot.name,
        schema_text=canonical(snapshot.schema.model_dump(mode="json")).decode(),
        schema_digest=snapshot.arrays.schema_digest,
        records=len(snapshot.arrays.y),
        dropped=snapshot.dropped,
        patients=snapshot.patients,
        held_out=snapshot.held_out,
        created_at=timestamp(now),
        told_patients=told_patients,
        told_held_out=told_held_out,
    )
    session.add(row)
    session.flush()
    session.add_all(
        SnapshotPatient(snapshot=snapshot.digest, patient_hash=patient, held_out=bool(held_out))
        for patient, held_out in zip(snapshot.patient_hashes, snapshot.arrays.held_out, strict=True)
    )
    return row


def latest(session: Session, schema_digest: str) -> Snapshot | None:
    """The newest snapshot in use under this schema, or None."""
    found = select(Snapshot).where(Snapshot.schema_digest == schema_digest, col(Snapshot.replaced_by).is_(None))
    # SQLite's rowid tells the order of two that were made within one second.
    return session.exec(found.order_by(col(Snapshot.created_at).desc(), literal_column("rowid").desc())).first()


def current(session: Session, digest: str) -> Snapshot | None:
    """The snapshot in use in this one's place, itself if nobody of it withdrew. None where too few are left, or it is
    not known."""
    row = session.get(Snapshot, digest)
    while row is not None and row.replaced_by is not None:
        row = session.get(Snapshot, row.replaced_by)
    return row


def registration(snapshot: Snapshot) -> dict[str, Any]:
    """All that leaves the site about a snapshot. A count of 1 to 10 held-out patients leaves as 0; until more than 10
    patients of a group have left a data set, its counts stay as they were told."""
    patients, held_out = counts_told(snapshot)
    return {
        "schema_digest": snapshot.schema_digest,
        "snapshot": snapshot.digest,
        "patients": patients,
        "held_out": held_out if held_out > MINIMUM_CELL else 0,
    }


def path_of(home: SiteHome, digest: str) -> Path:
    """Where a snapshot's arrays lie."""
    return home.snapshots / f"{digest.removeprefix('sha256:')}.npz"


def load(home: SiteHome, digest: str) -> SnapshotArrays:
    """The arrays of the snapshot with this digest, as `load_with_patients` has them."""
    return load_with_patients(home, digest)[0]


def load_with_patients(home: SiteHome, digest: str) -> tuple[SnapshotArrays, tuple[bytes, ...]]:
    """The arrays of the snapshot with this digest, checked against it, and its patients' keyed hashes in index order.

    Raises SnapshotUnusable for a file that is missing, damaged or holds other content, KeysUnusable without the secret.
    """
    remedy = "Add the data set again with cloister-site datasets add."
    try:
        # Opened here: numpy leaves the file open when it is no archive.
        with path_of(home, digest).open("rb") as file, zipfile.ZipFile(file) as archive:
            stored = {name: _member(archive, name) for name in _MEMBERS}
        arrays = SnapshotArrays(
            x=stored["x"],
            y=stored["y"],
            patient=stored["patient"],
            held_out=stored["held_out"],
            schema_digest=str(stored["schema_digest"]),
        )
        hashes = tuple(row.tobytes() for row in stored["patient_hashes"])
    except FileNotFoundError:
        raise SnapshotUnusable(f"The snapshot {digest} is not on this site's disk.", remedy) from None
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zlib.error, zipfile.BadZipFile):
        raise SnapshotUnusable(f"The file of snapshot {digest} is damaged.", remedy) from None
    if not hmac.compare_digest(_digest(read_secret(home), arrays, hashes), digest):
        raise SnapshotUnusable(f"The file of snapshot {digest} holds other content.", remedy)
    return arrays, hashes


def _refuse_changed_roles(session: Session, snapshot: Draft) -> None:
    """No patient may train in one snapshot and be held out in another, whatever else ran meanwhile."""
    known = known_roles(session)
    roles = zip(snapshot.patient_hashes, snapshot.arrays.held_out, strict=True)
    if any(known.get(patient, held_out) != held_out for patient, held_out in roles):
        raise DatasetRefused(
            "Another data set with some of these patients was added meanwhile.", "Run the command again."
        )


def counts_told(row: Snapshot) -> tuple[int, int]:
    """(all patients, those held out) as a snapshot's registration counts them, small groups included."""
    patients = row.patients if row.told_patients is None else row.told_patients
    return patients, row.held_out if row.told_held_out is None else row.told_held_out


def count_to_tell(before: int, left: int) -> int:
    """The count to tell of a group that was told as `before` and has `left`: as it was, until more than the minimum
    cell have gone, or so few are left that their number itself must not be told."""
    return before if left > MINIMUM_CELL and 0 <= before - left <= MINIMUM_CELL else left


def _counts_to_tell(session: Session, snapshot: Draft) -> tuple[int | None, int | None]:
    """What to tell instead of the counts of a data set's new snapshot: a difference to what was told of the one before
    would count those who withdrew."""
    earlier = select(Snapshot).where(
        Snapshot.name == snapshot.name, Snapshot.schema_digest == snapshot.arrays.schema_digest
    )
    before = session.exec(earlier.order_by(literal_column("rowid").desc())).first()
    if before is None:
        return None, None
    patients, held_out = counts_told(before)
    tell_held_out = count_to_tell(held_out, snapshot.held_out)
    tell = count_to_tell(patients - held_out, snapshot.patients - snapshot.held_out) + tell_held_out
    return (tell, tell_held_out) if (tell, tell_held_out) != (snapshot.patients, snapshot.held_out) else (None, None)


def _refuse_withdrawn(session: Session, snapshot: Draft) -> None:
    """Whoever withdrew while the file was read is in no snapshot either."""
    gone = {bytes(patient) for patient in session.exec(select(WithdrawnPatient.patient_hash))}
    if not gone.isdisjoint(snapshot.patient_hashes):
        raise DatasetRefused("Patients of this data set withdrew meanwhile.", "Run the command again.")


def _write(home: SiteHome, snapshot: Draft) -> None:
    import numpy as np

    arrays = snapshot.arrays
    make_private_folder(home.snapshots)
    write_stream(
        path_of(home, snapshot.digest),
        lambda file: np.savez(
            file,
            x=arrays.x,
            y=arrays.y,
            patient=arrays.patient,
            held_out=arrays.held_out,
            schema_digest=np.array(arrays.schema_digest),
            patient_hashes=np.frombuffer(b"".join(snapshot.patient_hashes), dtype=np.uint8).reshape(-1, 32),
        ),
    )


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array of an .npz. ValueError for one that holds pickled objects."""
    import numpy as np

    with archive.open(f"{name}.npy") as member:
        return np.asarray(np.lib.format.read_array(member, allow_pickle=False))


def _digest(secret: bytes, arrays: SnapshotArrays, patient_hashes: tuple[bytes, ...]) -> str:
    """ "sha256:" + HMAC over the schema's digest, the shapes and every array's bytes (little-endian)."""
    code = hmac.new(secret, b"cloister snapshot\0" + arrays.schema_digest.encode(), hashlib.sha256)
    kinds = [{1: "u1", 4: "<f4", 8: "<f8"}[array.dtype.itemsize] for array in (arrays.x, arrays.y)]
    shapes = [list(arrays.x.shape), list(arrays.y.shape), len(arrays.patient), len(patient_hashes)]
    code.update(canonical([*kinds, *shapes]))
    for array, kind in ((arrays.x, kinds[0]), (arrays.y, kinds[1]), (arrays.patient, "<i8"), (arrays.held_out, "u1")):
        # As a view of the array: a copy of its bytes would take as much memory again.
        code.update(array.astype(kind, order="C", copy=False).reshape(-1).view("u1").data)
    code.update(b"".join(patient_hashes))
    return "sha256:" + code.hexdigest()
