"""The only SQL about releases."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, update
from sqlmodel import Session, col, select

from coordinator.database import one_row
from coordinator.errors import Conflict, NotFound
from coordinator.releases.states import ReleaseState, Vote
from coordinator.releases.tables import (
    BrokenGlass,
    Release,
    ReleaseChallenge,
    ReleaseFile,
    ReleaseInstallation,
    ReleaseVetoRecord,
    ReleaseVote,
    ReleaseWaiverRecord,
    ServingChange,
)
from coordinator.retention.tables import DossierRemoval
from protocol.errors import Refused
from protocol.identifiers import Role
from protocol.plan import PlannedApprover
from protocol.release import MODEL_FILES


class ModelPurged(Conflict):
    """The model's last day has passed and it was erased; its documents are kept."""

    code = "model-purged"


class ReleaseRepository:
    """Releases within the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, release: str) -> Release:
        """The release, or NotFound."""
        row = self._session.get(Release, release)
        if row is None:
            raise NotFound(f"There is no release {release}.", "See `cloister release list`.")
        return row

    def all(self) -> list[Release]:
        """Every release, oldest first."""
        return list(self._session.exec(select(Release).order_by(col(Release.created_at), col(Release.id))))

    def of_study(self, study: str) -> list[Release]:
        """The study's releases, oldest first."""
        return [row for row in self.all() if row.study == study]

    def removed_of(self, study: str) -> int:
        """How many of the study's releases were removed with their dossiers."""
        gone = select(func.count()).where(DossierRemoval.study == study, col(DossierRemoval.removed_at).is_not(None))
        return int(self._session.exec(gone).one())

    def add(self, row: Release, files: dict[str, bytes]) -> None:
        """Store a draft and its files."""
        self._session.add(row)
        self._session.flush()
        self._session.add_all(ReleaseFile(release=row.id, name=name, content=data) for name, data in files.items())

    def files(self, release: str) -> dict[str, bytes]:
        """The model files by name."""
        rows = self._session.exec(select(ReleaseFile).where(col(ReleaseFile.release) == release))
        return {row.name: row.content for row in rows}

    def whole(self, release: str) -> dict[str, bytes]:
        """The model files, all of them. Raises ModelPurged where the model was erased."""
        files = self.files(release)
        if missing := [name for name in MODEL_FILES if name not in files]:
            raise ModelPurged(
                f"{missing[0]} of release {release} was erased: the study's last day for its model has passed.",
                "Release the model of a study that still runs.",
            )
        return files

    def set_state(self, row: Release, state: ReleaseState) -> None:
        """Compare-and-swap the state; Conflict when somebody else moved it first."""
        statement = (
            update(Release).where(col(Release.id) == row.id, col(Release.state) == row.state).values(state=state.value)
        )
        if not one_row(self._session.connection().execute(statement)):
            raise Conflict("The release changed meanwhile.", "Read it again with `cloister release show`.")
        self._session.refresh(row)

    def votes(self, release: str) -> list[ReleaseVote]:
        """The decisions, in the order in which they were made."""
        query = select(ReleaseVote).where(col(ReleaseVote.release) == release).order_by(col(ReleaseVote.id))
        return list(self._session.exec(query))

    def add_vote(self, vote: ReleaseVote) -> None:
        """Store a decision; the table's own constraint refuses a second one by the person."""
        self._session.add(vote)
        self._session.flush()

    def add_challenge(self, challenge: ReleaseChallenge) -> None:
        """Store a nonce."""
        self._session.add(challenge)

    def use_challenge(self, nonce: str, *, release: str, person: str, subject_digest: str, now: str) -> None:
        """Consume the nonce: exactly once, by its person, in time, for its digest. Raises Refused."""
        statement = (
            update(ReleaseChallenge)
            .where(
                col(ReleaseChallenge.nonce) == nonce,
                col(ReleaseChallenge.release) == release,
                col(ReleaseChallenge.person) == person,
                col(ReleaseChallenge.subject_digest) == subject_digest,
                col(ReleaseChallenge.used_at).is_(None),
                col(ReleaseChallenge.expires_at) > now,
            )
            .values(used_at=now)
        )
        if not one_row(self._session.connection().execute(statement)):
            raise Refused(
                "The signed challenge is unknown, used, expired or another person's.",
                "Run the command again: it fetches a new challenge.",
            )

    def waivers(self, release: str) -> list[ReleaseWaiverRecord]:
        """The rules that approvers answer for, by pack and rule."""
        query = select(ReleaseWaiverRecord).where(col(ReleaseWaiverRecord.release) == release)
        return list(self._session.exec(query.order_by(col(ReleaseWaiverRecord.pack), col(ReleaseWaiverRecord.rule))))

    def add_waiver(self, row: ReleaseWaiverRecord) -> None:
        """Store a waiver. Raises Conflict where the rule is waived already."""
        if self._session.get(ReleaseWaiverRecord, (row.release, row.pack, row.rule)) is not None:
            raise Conflict(f"Rule {row.rule} is waived for {row.release} already.", "See `cloister release show`.")
        self._session.add(row)
        self._session.flush()

    def vetoes(self, release: str) -> list[ReleaseVetoRecord]:
        """The sites' vetoes, by site."""
        query = select(ReleaseVetoRecord).where(col(ReleaseVetoRecord.release) == release)
        return list(self._session.exec(query.order_by(col(ReleaseVetoRecord.site))))

    def veto_of(self, release: str, site: str) -> ReleaseVetoRecord | None:
        """The site's veto, if it has given one."""
        return self._session.get(ReleaseVetoRecord, (release, site))

    def add_veto(self, row: ReleaseVetoRecord) -> None:
        """Store a site's veto."""
        self._session.add(row)
        self._session.flush()

    def broken_glass(self, release: str) -> BrokenGlass | None:
        """Who suspended the release in an emergency, if somebody did."""
        return self._session.get(BrokenGlass, release)

    def keep_broken_glass(self, row: BrokenGlass) -> None:
        """Store that the glass was broken, or that it was looked at."""
        self._session.add(row)
        self._session.flush()

    def installed(self, release: str) -> list[ReleaseInstallation]:
        """Which sites installed it."""
        query = select(ReleaseInstallation).where(col(ReleaseInstallation.release) == release)
        return list(self._session.exec(query.order_by(col(ReleaseInstallation.site))))

    def add_installation(self, row: ReleaseInstallation) -> bool:
        """False when the site has already said so."""
        if self._session.get(ReleaseInstallation, (row.release, row.site)) is not None:
            return False
        self._session.add(row)
        return True

    def serving_change(self, report: str) -> ServingChange | None:
        """What a site told under this identifier."""
        return self._session.get(ServingChange, report)

    def serving_changes(self, release: str) -> list[ServingChange]:
        """All that sites told of serving the release, in the order in which it came."""
        query = select(ServingChange).where(ServingChange.release == release)
        return list(self._session.exec(query.order_by(col(ServingChange.entry))))

    def add_serving_change(self, row: ServingChange) -> None:
        """Store one."""
        self._session.add(row)
        self._session.flush()


def votes_of(rows: Sequence[ReleaseVote], roster: Sequence[PlannedApprover]) -> list[Vote]:
    """The pure values that the states decide on. roster: tells for whom each person works."""
    organisations = {approver.person: approver.organisation for approver in roster}
    return [
        Vote(row.person, Role(row.role), row.subject_digest, row.approve, organisations.get(row.person)) for row in rows
    ]
