"""What this site's own, verified copy of the log says of a release.

A quorum vouches for a bundle's proof; the coordinator enrols the witnesses. Its own copy is what no other party can
write for a site: a sealing that is not in it was shown to others in another log, and a suspension in it is known here
even when the coordinator would rather not tell.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Engine

from protocol.audit_event import EventType
from protocol.canonical import parse
from protocol.errors import CloisterError, Malformed, VerificationFailed
from site_agent.database import transaction
from site_agent.settings import SiteSettings
from site_agent.witness import repository
from site_agent.witness.mirror import Mirror


class ReleaseSuspended(CloisterError):
    """Approvers have stopped this release."""

    code = "release-suspended"


def check_entries(entries: Iterable[bytes], release: str, sealing: tuple[int, bytes] | None) -> None:
    """Raises VerificationFailed unless the leaf of `sealing` is the entry at its index (None: not asked), and
    ReleaseSuspended where any entry suspends the release."""
    found = sealing is None
    for index, entry in enumerate(entries):
        if sealing is not None and index == sealing[0]:
            if entry != sealing[1]:
                raise VerificationFailed(
                    f"This site's own copy of the log holds something else where release {release} is said to be "
                    "sealed: it was shown another log.",
                    "Install nothing. Keep the bundle as evidence and show it to the federation's auditor.",
                )
            found = True
        if _suspends(entry, release):
            raise ReleaseSuspended(
                f"Release {release} is suspended: entry {index} of the log says so.",
                "Serve an earlier release with cloister-site releases rollback, or none.",
            )
    if not found:
        raise VerificationFailed(
            f"This site's own copy of the log does not reach to the sealing of release {release} yet.",
            "Run cloister-site log check, or let the agent follow the log, then install again.",
        )


def check_own_log(settings: SiteSettings, engine: Engine, release: str, sealing: tuple[int, bytes] | None) -> None:
    """`check_entries` over the site's copy, once it is found to be what the site verified; with a sealing to look up,
    only while no alarm about the log stands.

    Raises VerificationFailed, ReleaseSuspended, MirrorDamaged.
    """
    from protocol.note import VerifierKey

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
    check_entries(mirror.entries(size), release, sealing)


def _suspends(entry: bytes, release: str) -> bool:
    try:
        event = parse(entry)
    except Malformed:
        return False
    return (
        isinstance(event, dict)
        and event.get("event") == EventType.RELEASE_SUSPENDED
        and event.get("subject") == f"release:{release}"
    )
