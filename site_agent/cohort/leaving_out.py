"""Makes the snapshots that leave out who withdrew, in place of those that hold them. The old file is deleted: what was
encoded of a patient who withdrew is on this site's disk no longer. The ledger keeps what each patient was charged.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from protocol.canonical import parse
from protocol.dataset import DatasetSchema
from protocol.proposal import MINIMUM_CELL
from site_agent.cohort.declaration import carry_over
from site_agent.cohort.snapshot import Draft, SnapshotArrays, draft_of, load_with_patients, path_of, store
from site_agent.cohort.tables import Snapshot
from site_agent.cohort.withdrawal import adopt, unapplied, withdrawn
from site_agent.database import transaction
from site_agent.settings import SiteHome

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def apply_withdrawals(engine: Engine, home: SiteHome, *, secret: bytes, now: datetime) -> int:
    """Replace every snapshot in use that holds somebody who withdrew, and delete its file; how many. It may be run
    again at any time, and ends what an earlier run was killed in. Raises SnapshotUnusable, WithdrawalsUnreadable."""
    with transaction(engine) as session:
        adopt(session)
        waiting = unapplied(session)
    for digest in waiting:
        with transaction(engine) as session:
            gone = withdrawn(session)
        made = _without(home, digest, engine, gone, secret)
        with transaction(engine) as session:
            _replace(session, home, digest, made, now)
    with transaction(engine) as session:
        replaced = session.exec(select(Snapshot.digest).where(col(Snapshot.replaced_by).is_not(None))).all()
    for digest in replaced:
        path_of(home, digest).unlink(missing_ok=True)
    return len(waiting)


def _without(home: SiteHome, digest: str, engine: Engine, gone: frozenset[bytes], secret: bytes) -> Draft | None:
    """None where too few are left to take part: 10 or fewer of those who train."""
    import numpy as np

    arrays, patients = load_with_patients(home, digest)
    stays = np.array([patient not in gone for patient in patients], dtype=bool)
    if int((stays & ~arrays.held_out).sum()) <= MINIMUM_CELL:
        return None
    kept = stays[arrays.patient]
    left = SnapshotArrays(
        x=arrays.x[kept],
        y=arrays.y[kept],
        patient=_numbered(stays, arrays.patient[kept]),
        held_out=arrays.held_out[stays],
        schema_digest=arrays.schema_digest,
    )
    with transaction(engine) as session:
        row = session.get_one(Snapshot, digest)
    hashes = tuple(patient for patient, stay in zip(patients, stays, strict=True) if stay)
    schema = DatasetSchema.model_validate(parse(row.schema_text.encode(), limit=len(row.schema_text) + 1))
    dropped = row.dropped + int((~kept).sum())
    return draft_of(row.name, schema, left, hashes, secret, dropped=dropped)


def _numbered(stays: NDArray[np.bool_], patient: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each record's patient, counted among those who stay."""
    import numpy as np

    return np.asarray((np.cumsum(stays) - 1)[patient], dtype=np.int64)


def _replace(session: Session, home: SiteHome, digest: str, made: Draft | None, now: datetime) -> None:
    old = session.get_one(Snapshot, digest)
    if old.replaced_by is not None:
        return  # another process was first
    if made is None:
        old.replaced_by = ""
        session.add(old)
        return
    old.replaced_by = store(session, home, made, now=now).digest
    carry_over(session, digest, old.replaced_by, now=now)
    session.add(old)
