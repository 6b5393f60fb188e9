"""What a gate asks of the audit log: does it take entries, and do the hospitals still cosign it?"""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.repository import LogRepository
from coordinator.audit.witnessing import quorum_note
from protocol.checkpoint import TreeHead
from protocol.note import Note
from protocol.timestamp import moment


@dataclass(frozen=True)
class LogHealth:
    """quorum: a checkpoint is cosigned by a quorum. age_seconds: since that checkpoint was signed (0 without one).

    unwitnessed: entries after that checkpoint.
    """

    quorum: bool
    age_seconds: int
    unwitnessed: int


def log_health(session: Session, appliance: Appliance) -> LogHealth:
    """The log's health as of the appliance's clock."""
    repository = LogRepository(session, appliance.settings.origin)
    entries = repository.head().assigned + repository.pending()
    note = quorum_note(session, appliance, 1)
    if note is None:
        return LogHealth(quorum=False, age_seconds=0, unwitnessed=entries)
    size = TreeHead.parse(Note.parse(note).text).size
    checkpoint = repository.checkpoint(size)
    if checkpoint is None:
        return LogHealth(quorum=False, age_seconds=0, unwitnessed=entries)
    age = appliance.clock() - moment(checkpoint.signed_at)
    return LogHealth(quorum=True, age_seconds=max(0, int(age.total_seconds())), unwitnessed=entries - size)
