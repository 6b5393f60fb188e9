"""What this site's own, verified copy of the log says of a release.

A quorum vouches for a bundle's proof; the coordinator enrols the witnesses. Its own copy is what no other party can
write for a site: a sealing that is not in it was shown to others in another log, and a suspension in it is known here
even when the coordinator would rather not tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlmodel import col, select

from protocol.audit_event import EventType
from protocol.canonical import parse
from protocol.consent import Consent
from protocol.envelope import Envelope
from protocol.errors import CloisterError, Malformed, VerificationFailed
from site_agent.consent.states import Answer
from site_agent.consent.tables import StudyGrant
from site_agent.database import transaction
from site_agent.releases.veto import vetoed_here
from site_agent.settings import SiteSettings
from site_agent.witness import repository
from site_agent.witness.mirror import Mirror


class ReleaseSuspended(CloisterError):
    """This release was suspended or revoked."""

    code = "release-suspended"


class ReleaseVetoed(CloisterError):
    """A site that took part, perhaps this one, has vetoed this release."""

    code = "release-vetoed"


_ENDS = {EventType.RELEASE_SUSPENDED: "suspended", EventType.RELEASE_REVOKED: "revoked"}


@dataclass(frozen=True)
class Answered:
    """A grant of this site that the coordinator acknowledged: what the log must then tell of it."""

    site: str
    study: str
    plan_digest: str
    decision_digest: str

    def told_by(self, entry: bytes) -> bool:
        """Whether this entry is the one."""
        if self.decision_digest.encode() not in entry:
            return False
        match parse(entry):
            case {"event": EventType.STUDY_CONSENTED, "actor": actor, "subject": self.study, "digests": dict(digests)}:
                return actor == f"site:{self.site}" and (digests.get("plan"), digests.get("decision")) == (
                    self.plan_digest, self.decision_digest,
                )  # fmt: skip
        return False


def check_entries(
    entries: Iterable[bytes], release: str, sealing: tuple[int, bytes] | None, answered: Sequence[Answered] = ()
) -> None:
    """Raises VerificationFailed unless the leaf of `sealing` is the entry at its index (None: not asked) and all that
    this site answered is told before it, ReleaseSuspended where any entry suspends or revokes the release, and
    ReleaseVetoed where one tells of a site's veto of it."""
    found = sealing is None
    untold = list(answered) if sealing is not None else []
    for index, entry in enumerate(entries):
        if untold and sealing is not None and index < sealing[0]:
            untold = [answer for answer in untold if not answer.told_by(entry)]
        if sealing is not None and index == sealing[0]:
            if entry != sealing[1]:
                raise VerificationFailed(
                    f"This site's own copy of the log holds something else where release {release} is said to be "
                    "sealed: it was shown another log.",
                    "Install nothing. Keep the bundle as evidence and show it to the federation's auditor.",
                )
            found = True
        told = _told(entry, release)
        if told in _ENDS:
            raise ReleaseSuspended(
                f"Release {release} is {_ENDS[told]}: entry {index} of the log says so.",
                "Serve an earlier release with cloister-site releases rollback, or none.",
            )
        if told is EventType.RELEASE_VETOED:
            raise ReleaseVetoed(
                f"A site vetoed release {release}: entry {index} of the log says so.",
                "Install nothing: a vetoed release is not to be sealed. Ask the coordinator's administrator.",
            )
    if not found:
        raise VerificationFailed(
            f"This site's own copy of the log does not reach to the sealing of release {release} yet.",
            "Run cloister-site log check, or let the agent follow the log, then install again.",
        )
    if untold:
        raise VerificationFailed(
            f"The log leaves out this site's grant for the study {untold[0].study}, which the coordinator took.",
            "Install nothing: the log is not the whole story. Show this to the federation's auditor.",
        )


def answered_by(engine: Engine, site: str, study: str) -> tuple[Answered, ...]:
    """This site's standing grants for a study that the coordinator acknowledged."""
    with transaction(engine) as session:
        rows = session.exec(
            select(StudyGrant).where(
                StudyGrant.study == study, StudyGrant.state == Answer.GRANTED.value, col(StudyGrant.delivered).is_(True)
            )
        ).all()
    consents = (Consent.model_validate_json(Envelope.from_bytes(row.consent).payload) for row in rows)
    return tuple(Answered(site, study, consent.plan_digest, consent.decision_digest) for consent in consents)


def check_own_log(
    settings: SiteSettings, engine: Engine, release: str, sealing: tuple[int, bytes] | None,
    *, study: str | None = None,
) -> None:  # fmt: skip
    """`check_entries` over the site's copy, once it is found to be what the site verified; with a sealing to look up,
    only while no alarm about the log stands. `study`: the released one, whose grant by this site the log must tell.

    Raises VerificationFailed, ReleaseSuspended, ReleaseVetoed, MirrorDamaged.
    """
    from protocol.note import VerifierKey

    if vetoed_here(engine, release):
        raise ReleaseVetoed(
            f"This site has vetoed release {release}.", "Serve an earlier release, or none; await another release."
        )

    with transaction(engine) as session:
        held = repository.held(session, VerifierKey.parse(settings.log).name)
        alarmed = bool(repository.standing_alarms(session))
    if alarmed and sealing is not None:  # what was installed before may be served, and gone back to, all the same
        raise VerificationFailed(
            "The log has contradicted itself before this site: no release in it is trusted.",
            "See cloister-site log check, ask the federation's auditor, and acknowledge the alarm only then.",
        )
    mirror, size = Mirror(settings.home.mirror), 0 if held is None else held.head.size
    if held is not None:
        mirror.verify(size, held.head.root)
    answered = answered_by(engine, settings.site, study) if study is not None else ()
    check_entries(mirror.entries(size), release, sealing, answered)


def _told(entry: bytes, release: str) -> EventType | None:
    """What the entry tells of this very release; None where it tells nothing."""
    if release.encode() not in entry:
        return None
    try:
        event = parse(entry)
    except Malformed:
        return None
    if not isinstance(event, dict) or event.get("subject") != f"release:{release}":
        return None
    try:
        return EventType(str(event.get("event")))
    except ValueError:
        return None
