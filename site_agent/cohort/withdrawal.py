"""Patients who withdrew: kept as keyed hashes, here alone, and left out of every snapshot from then on.

What must not be forgotten is written twice: to the database, and before its commit to a file beside it, so that a
database put back from a backup takes the withdrawals made since from the file. A hash is keyed with the site's secret
and never leaves; no count of those who withdrew does either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, text
from sqlmodel import Session, col, select

from protocol.delimited import DatasetRefused
from protocol.envelope import seal
from protocol.errors import CloisterError, Malformed
from protocol.signing import SigningKey
from protocol.timestamp import moment, timestamp
from protocol.withdrawal import GROUNDS, WITHDRAWAL_NOTICE_TYPE, Ground, WithdrawalNotice
from site_agent.cohort.assignment import hash_patient
from site_agent.cohort.delimited import open_table
from site_agent.cohort.tables import SentNotice, WithdrawalsAttested, WithdrawnPatient
from site_agent.coordinator_client import CoordinatorClient
from site_agent.database import DatabaseUnusable, transaction
from site_agent.durable_files import write_durably
from site_agent.training.generation import advance, standing

LIST = "withdrawn-patients"
MAX_LINES = 1_000_000
MAX_IDENTIFIER = 1024

# The studies that charged a step of a patient of this batch, with the grounds.
_TOOK_PART = text(
    """
    SELECT DISTINCT c.study, c.plan_digest, w.ground
    FROM withdrawn_patient AS w
    JOIN snapshot_patient AS p ON p.patient_hash = w.patient_hash
    JOIN cohort_charge AS c ON c.snapshot = p.snapshot AND c.held_out = p.held_out
    WHERE w.batch = :batch AND c.steps_charged > 0
    ORDER BY c.study, c.plan_digest, w.ground
    """
)
_HOLDS = text(
    """
    SELECT 1 FROM withdrawn_patient AS w
    JOIN snapshot_patient AS p ON p.patient_hash = w.patient_hash
    WHERE p.snapshot = :snapshot LIMIT 1
    """
)
_IN_USE = text(
    """
    SELECT DISTINCT s.digest FROM snapshot AS s
    JOIN snapshot_patient AS p ON p.snapshot = s.digest
    JOIN withdrawn_patient AS w ON w.patient_hash = p.patient_hash
    WHERE s.replaced_by IS NULL
    ORDER BY s.digest
    """
)


class WithdrawalsUnreadable(CloisterError):
    """The list of those who withdrew is damaged: nobody can say who must be left out."""

    code = "withdrawals-unreadable"


@dataclass(frozen=True)
class Recorded:
    """What a list came to, for the hospital's own eyes. studies: in which some of them had taken part."""

    listed: int
    new: int
    studies: tuple[str, ...]


def read_identifiers(path: Path) -> list[str]:
    """The identifiers in a text file, one a line, as the data sets' identifier column has them; blank lines are passed
    over. Raises DatasetRefused, naming the line and no content."""
    with open_table(path) as file:
        lines = file.read((MAX_IDENTIFIER + 2) * MAX_LINES + 1).split(b"\n")
    found: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        try:
            identity = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise DatasetRefused(f"{path.name}, line {number}: not UTF-8 text.", "Export the list as UTF-8.") from None
        if len(identity) > MAX_IDENTIFIER or "\0" in identity:
            raise DatasetRefused(
                f"{path.name}, line {number}: too long for an identifier.", "Give one identifier a line."
            )
        if identity:
            found[identity] = None
    if not found:
        raise DatasetRefused(f"{path.name} names nobody.", "Give one identifier a line.")
    if len(found) > MAX_LINES:
        raise DatasetRefused(f"{path.name} names more than {MAX_LINES} patients.", "Make several lists of it.")
    return list(found)


def hashes_of(secret: bytes, identifiers: Iterable[str]) -> list[bytes]:
    """The keyed hash of each, as data sets know their patients by."""
    return [hash_patient(secret, f"id\0{identity}") for identity in identifiers]


def record(
    engine: Engine,
    patients: Iterable[bytes],
    *,
    ground: str,
    site: str,
    key: SigningKey,
    now: datetime,
    entropy: Callable[[int], bytes],
) -> Recorded:
    """Leave these patients (keyed hashes) out from now on, whether or not a data set has them yet, and sign a notice
    for every study in which one of them took part. Nothing goes out here. Raises Malformed for a ground that does not
    exist."""
    known_ground = _ground(ground)
    listed = list(dict.fromkeys(patients))
    at, batch = timestamp(now), entropy(8).hex()
    with transaction(engine) as session:
        adopt(session)
        known = {bytes(patient) for patient in session.exec(select(WithdrawnPatient.patient_hash))}
        new = [patient for patient in listed if patient not in known]
        session.add_all(
            WithdrawnPatient(patient_hash=patient, ground=known_ground, batch=batch, recorded_at=at) for patient in new
        )
        session.flush()
        notices = _notices(session, batch, site=site, key=key, at=at, entropy=entropy)
        session.add_all(notices)
        session.flush()
        _write_list(session)
        if new and not standing(session).behind:  # a backup must not forget a withdrawal either
            advance(session)
    return Recorded(len(listed), len(new), tuple(dict.fromkeys(notice.study for notice in notices)))


def attest(session: Session, through: str, *, now: datetime) -> None:
    """Note that everything that patients asked for up to `through` is entered here. It only moves forward.

    Raises Malformed for a time in the future or before the one attested already.
    """
    row = session.get(WithdrawalsAttested, 1)
    if moment(through) > now:
        raise Malformed("Nobody can say so of the future.", "Give --through as a time that has passed, in UTC.")
    if row is not None and moment(through) < moment(row.through):
        raise Malformed(f"It was said up to {row.through} already.", "Give a later time.")
    session.merge(WithdrawalsAttested(through=through, attested_at=timestamp(now)))


def attested_through(session: Session) -> str | None:
    """Up to when, or None: nobody has said."""
    row = session.get(WithdrawalsAttested, 1)
    return None if row is None else row.through


def unapplied(session: Session) -> list[str]:
    """The snapshots in use that still hold somebody who withdrew."""
    return [str(row[0]) for row in session.connection().execute(_IN_USE)]


def holds_withdrawn(session: Session, snapshot: str) -> bool:
    """Whether this snapshot holds somebody who withdrew."""
    return session.connection().execute(_HOLDS, {"snapshot": snapshot}).first() is not None


def withdrawn(session: Session) -> frozenset[bytes]:
    """The keyed hashes of all who withdrew. Raises WithdrawalsUnreadable."""
    adopt(session)
    return frozenset(bytes(patient) for patient in session.exec(select(WithdrawnPatient.patient_hash)))


def adopt(session: Session) -> int:
    """Take from the file what the database does not know: it was put back. How many. Raises WithdrawalsUnreadable."""
    known = {bytes(patient) for patient in session.exec(select(WithdrawnPatient.patient_hash))}
    missing = [row for row in _read_list(_path(session)) if row.patient_hash not in known]
    session.add_all(missing)
    session.flush()
    return len(missing)


def waiting_notices(session: Session, study: str | None = None) -> list[SentNotice]:
    """The notices, of one study or all."""
    query = select(SentNotice).order_by(col(SentNotice.made_at), col(SentNotice.review))
    return list(session.exec(query if study is None else query.where(SentNotice.study == study)))


def deliver_notices(engine: Engine, client: CoordinatorClient) -> list[str]:
    """Send the notices that the coordinator has not acknowledged; the reviews told. Raises what the client raises."""
    with transaction(engine) as session:
        waiting = [row for row in waiting_notices(session) if not row.delivered]
    for row in waiting:
        client.post_withdrawal(row.notice)
        with transaction(engine) as session:
            sent = session.get_one(SentNotice, row.review)
            sent.delivered = True
            session.add(sent)
    return [row.review for row in waiting]


def _ground(ground: str) -> Ground:
    for known in GROUNDS:
        if known == ground:
            return known
    raise Malformed(f"There is no ground {ground[:40]!r}.", f"One of {', '.join(GROUNDS)}.")


def _notices(
    session: Session, batch: str, *, site: str, key: SigningKey, at: str, entropy: Callable[[int], bytes]
) -> list[SentNotice]:
    grounds: dict[tuple[str, str], list[Ground]] = {}
    for study, plan_digest, ground in session.connection().execute(_TOOK_PART, {"batch": batch}):
        grounds.setdefault((str(study), str(plan_digest)), []).append(_ground(str(ground)))
    notices = []
    for (study, plan_digest), found in grounds.items():
        notice = WithdrawalNotice(
            review=f"review-{entropy(8).hex()}",
            site=site,
            study=study,
            plan_digest=plan_digest,
            grounds=tuple(found),
            made_at=at,
        )
        signed = seal(WITHDRAWAL_NOTICE_TYPE, notice.model_dump(mode="json"), key).to_bytes()
        notices.append(SentNotice(review=notice.review, study=study, notice=signed, made_at=at))
    return notices


def _path(session: Session) -> Path:
    engine = session.get_bind()
    assert isinstance(engine, Engine)
    return Path(str(engine.url.database)).with_name(LIST)


def _write_list(session: Session) -> None:
    """All of them, before the transaction commits: the file is never behind the database."""
    rows = session.exec(select(WithdrawnPatient).order_by(col(WithdrawnPatient.patient_hash)))
    lines = (
        json.dumps(
            {"patient": bytes(row.patient_hash).hex(), "ground": row.ground, "batch": row.batch, "at": row.recorded_at}
        )
        for row in rows
    )
    path = _path(session)
    try:
        write_durably(path, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise DatabaseUnusable(
            f"{path} can't be written ({error.strerror}); nothing was recorded.", "Free space on the disk, and retry."
        ) from None


def _read_list(path: Path) -> list[WithdrawnPatient]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DatabaseUnusable(f"{path} can't be read ({error.strerror}).", "Check who owns the file.") from None
    try:
        return [_row(json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError):
        raise WithdrawalsUnreadable(
            f"{path} is damaged: nobody can say who must be left out.", "Put back its newest copy from a backup."
        ) from None


def _row(said: dict[str, str]) -> WithdrawnPatient:
    patient = bytes.fromhex(said["patient"])
    if len(patient) != 32:
        raise ValueError("a keyed hash has 32 bytes")
    return WithdrawnPatient(
        patient_hash=patient, ground=_ground(said["ground"]), batch=str(said["batch"]), recorded_at=str(said["at"])
    )


def facts(session: Session) -> dict[str, str]:
    """`dataset.withdrawals_applied_through` and its HIPAA twin: one list serves both laws. Absent while somebody who
    withdrew is in a snapshot in use, or where nobody has said up to when the list is complete."""
    through = attested_through(session)
    if through is None or unapplied(session):
        return {}
    return {"withdrawals_applied_through": through, "revocations_applied_through": through}
