"""What a hospital declares of one snapshot: what no scan can see. Gates that ask stay shut until somebody has said it.

A declaration is about one snapshot: patients who join later were not meant by it. It never leaves the hospital.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError
from sqlalchemy import literal_column
from sqlmodel import Session, col, select

from protocol.errors import CloisterError, Malformed
from protocol.identifiers import Frozen, Label
from protocol.strict_yaml import DEFAULT_LIMIT, load_yaml
from protocol.timestamp import timestamp
from site_agent.cohort.assignment import hash_patient
from site_agent.cohort.delimited import open_table
from site_agent.cohort.tables import DatasetDeclaration, Snapshot, SnapshotPatient

MAX_CONSENTS = 1 << 28
"""Bytes of a list of patients who consented."""
Element = Literal[
    "core-1", "core-2", "core-3", "core-4", "core-5", "core-6", "statement-1", "statement-2", "statement-3",
    "copy-given",
]  # fmt: skip
"""What 45 CFR 164.508(c)(1)(i)-(vi), (c)(2)(i)-(iii) and (c)(4) ask of an authorization."""


class NoSuchDataset(CloisterError):
    """There is no snapshot of this name."""

    code = "no-such-dataset"


class Recode(Frozen):
    """How patients' codes came about (45 CFR 164.514(c)): derived from what is known of them? where is the mapping?"""

    derived: bool
    mapping: Literal["none", "site", "elsewhere"]


class Consents(Frozen):
    """form: the version that the patients signed. patients: a text file beside the declaration, with the identifier of
    one consenting patient a line, as in the data set's own patient column."""

    form: Label
    patients: Annotated[str, StringConstraints(min_length=1, max_length=400)]


class Declaration(Frozen):
    """actual_knowledge: whether the hospital knows that what is left could identify somebody. faces: whether its images
    show faces. part2: whether records of substance-use treatment under 42 CFR Part 2 are among them."""

    deid_claim: Literal["none", "safe-harbor", "expert-determination"]
    recode: Recode
    part2: bool
    actual_knowledge: bool | None = None
    faces: bool | None = None
    authorization: Annotated[tuple[Element, ...], Field(max_length=10)] | None = None
    consent: Consents | None = None

    def facts(self, without_consent: int | None) -> dict[str, Any]:
        """The parts of `dataset.*` that rest on it; what is not declared is absent. without_consent: patients of the
        snapshot who are not on the list."""
        return {
            "deid_claim": self.deid_claim,
            "recode": {"derived": self.recode.derived, "mapping_location": self.recode.mapping},
            "part2": self.part2,
            "actual_knowledge": self.actual_knowledge,
            "authorization": None if self.authorization is None else {"elements": list(self.authorization)},
            "consent": None
            if self.consent is None
            else {"form_version": self.consent.form, "rows_without": without_consent},
        }


def read_declaration(path: Path) -> Declaration:
    """The declaration in a YAML file of at most 256 KiB. Raises DatasetRefused for what is no regular file, Malformed
    naming line and field."""
    with open_table(path) as file:
        document = load_yaml(file.read(DEFAULT_LIMIT + 1))
    try:
        return Declaration.model_validate(document.value)
    except ValidationError as error:
        raise document.refuse_validation(error) from None


def consenting(path: Path, secret: bytes) -> frozenset[bytes]:
    """The keyed hashes of the patients on a list. Raises DatasetRefused, and Malformed for no text or over 256 MiB."""
    with open_table(path) as file:
        content = file.read(MAX_CONSENTS + 1)
    if len(content) > MAX_CONSENTS:
        raise Malformed(f"{path.name} is over 256 MiB.", "Give one patient's identifier a line.")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise Malformed(f"{path.name} is not UTF-8 text.", "Give one patient's identifier a line.") from None
    return frozenset(hash_patient(secret, line.strip()) for line in lines if line.strip())


def newest(session: Session, name: str) -> Snapshot:
    """The newest snapshot in use of the data set of this name. Raises NoSuchDataset."""
    named = select(Snapshot).where(Snapshot.name == name, col(Snapshot.replaced_by).is_(None))
    # SQLite's rowid tells the order of two that were made within one second.
    row = session.exec(named.order_by(col(Snapshot.created_at).desc(), literal_column("rowid").desc())).first()
    if row is None:
        raise NoSuchDataset(f"There is no data set {name[:60]!r} here.", "See cloister-site datasets list.")
    return row


def declare(
    session: Session,
    snapshot: str,
    declaration: Declaration,
    consents: Iterable[bytes] | None,
    *,
    now: datetime,
) -> DatasetDeclaration:
    """Put a declaration in place of the ones before it, which are kept. consents: hashes of the patients on its
    list."""
    without = None
    if consents is not None:
        known = frozenset(consents)
        patients = session.exec(select(SnapshotPatient.patient_hash).where(SnapshotPatient.snapshot == snapshot))
        without = sum(bytes(patient) not in known for patient in patients)
    row = DatasetDeclaration(
        snapshot=snapshot,
        declaration=declaration.model_dump_json(),
        without_consent=without,
        declared_at=timestamp(now),
    )
    session.add(row)
    session.flush()
    return row


def declared(session: Session, snapshot: str) -> tuple[Declaration, dict[str, Any]] | None:
    """What counts for a snapshot, and as facts; None where nothing was declared."""
    about = select(DatasetDeclaration).where(DatasetDeclaration.snapshot == snapshot)
    row = session.exec(about.order_by(col(DatasetDeclaration.id).desc())).first()
    if row is None:
        return None
    declaration = Declaration.model_validate_json(row.declaration)
    return declaration, declaration.facts(row.without_consent)


def carry_over(session: Session, before: str, after: str, *, now: datetime) -> None:
    """Declare of a snapshot what was declared of the one that all its records were taken from, if anything was. How
    many have not consented stands as it was counted, though one of them may have left: a new list counts anew."""
    about = select(DatasetDeclaration).where(DatasetDeclaration.snapshot == before)
    row = session.exec(about.order_by(col(DatasetDeclaration.id).desc())).first()
    if row is not None:
        carried = row.model_dump(exclude={"id", "snapshot", "declared_at"})
        session.add(DatasetDeclaration(snapshot=after, declared_at=timestamp(now), **carried))
