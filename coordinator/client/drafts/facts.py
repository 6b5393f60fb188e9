"""What drafts are made of: documents that the coordinator holds, read once, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from coordinator.client.connection import Connection, CoordinatorRefused
from coordinator.client.spec_file import load_spec
from coordinator.governance import Governance
from protocol.canonical import digest
from protocol.evidence import EvidenceRecord, Kind
from protocol.proposal import Proposal
from protocol.study_kind import AnyPlan, plan_from
from protocol.witness_policy import WitnessPolicy


@dataclass(frozen=True)
class StudyKnown:
    """A study. plan: None before it is proposed. state: as the coordinator says, "not proposed" before.

    candidate: what is known of the model that was trained, None before.
    """

    spec: Proposal
    plan: AnyPlan | None = None
    plan_digest: str = ""
    state: str = "not proposed"
    candidate: Mapping[str, Any] | None = None

    @property
    def spec_digest(self) -> str:
        """What an assessment is about."""
        return digest(self.spec.model_dump(mode="json"))

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> StudyKnown:
        """From what `GET /v1/studies/{study}` answers."""
        plan = plan_from(status["plan"])
        return cls(plan.spec, plan, str(status["plan_digest"]), str(status["state"]), status.get("candidate"))


@dataclass(frozen=True)
class Known:
    """Everything on record that drafts speak of. organisation: who runs the coordinator, None where nobody has said.

    records: evidence that was not revoked. sites: enrolled ones. witnesses: the log's policy, None before a site.
    """

    organisation: Governance | None
    records: tuple[EvidenceRecord, ...]
    sites: tuple[str, ...]
    witnesses: WitnessPolicy | None
    studies: tuple[StudyKnown, ...]
    today: date

    def about(self, subject: str, *kinds: Kind) -> tuple[EvidenceRecord, ...]:
        """Records about a subject that count today, of these kinds; all kinds where none is given."""
        return tuple(
            record
            for record in self.records
            if record.subject == subject
            and (not kinds or record.kind in kinds)
            and record.issued <= self.today
            and (record.expires is None or self.today <= record.expires)
        )


def read_study(connection: Connection, name: str) -> StudyKnown:
    """A proposed study. Raises CoordinatorRefused."""
    return StudyKnown.of(connection.get(f"/v1/studies/{name}"))


def read_spec(path: Any) -> StudyKnown:
    """A study that is not proposed yet, from its file. Raises SpecInvalid."""
    return StudyKnown(load_spec(path).spec)


def read_known(connection: Connection, studies: Iterable[StudyKnown], *, today: date) -> Known:
    """What is on record at the coordinator."""
    said = connection.get("/v1/evidence/organisation")
    rows = [row for row in connection.get("/v1/evidence") if row.get("revoked_at") is None]
    fields = set(EvidenceRecord.model_fields)
    return Known(
        organisation=None if said is None else Governance.model_validate(said),
        records=tuple(
            EvidenceRecord.model_validate({name: value for name, value in row.items() if name in fields}, strict=False)
            for row in rows
        ),
        sites=tuple(row["name"] for row in connection.get("/v1/sites") if row["status"] == "active"),
        witnesses=_policy(connection),
        studies=tuple(studies),
        today=today,
    )


def on_record(records: Iterable[EvidenceRecord]) -> str:
    """Records in a line: what, by whom, from when to when, under which digest."""
    return "; ".join(
        f"{record.kind} by {record.issuer} of {record.issued.isoformat()}"
        + (f", until {record.expires.isoformat()}" if record.expires is not None else "")
        + f" (file {record.file})"
        for record in records
    )


def _policy(connection: Connection) -> WitnessPolicy | None:
    try:
        document = connection.get("/v1/log/policy")
    except CoordinatorRefused as error:
        if error.code == "not-found":
            return None
        raise
    return WitnessPolicy.from_document(document)
