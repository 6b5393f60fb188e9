"""The retention gate at the site, and the erasure of what it lets go: models past their day, old serving logs, and the
scratch of studies that are over, whose wiping is attested."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from policies.decided import Decided, decide
from policies.findings import Decision
from policies.retention import Holding, RecordClass, Standing, facts_of, standing_of
from protocol.canonical import digest
from protocol.errors import CloisterError
from protocol.evidence import EvidenceRecord, standing
from protocol.timestamp import timestamp
from site_agent.clock import Clock
from site_agent.cohort.snapshot import path_of
from site_agent.consent.governance import load_governance, local_policy
from site_agent.database import transaction
from site_agent.durable_files import sync_folder
from site_agent.evidence.repository import SiteEvidenceRepository
from site_agent.policy.decisions import keep
from site_agent.releases.install import CURRENT
from site_agent.retention.inventory import Scratch, forget_packets, holdings, kept_log_days, leftovers, scratches
from site_agent.retention.tables import SitePurge
from site_agent.settings import SiteSettings
from site_agent.training.budget_store import BudgetStore, drop_keys


class StudyNotOver(CloisterError):
    """Rounds of the study may still come."""

    code = "study-not-over"


class PurgeRefused(CloisterError):
    """The hospital's own retention gate does not let it go."""

    code = "purge-refused"


@dataclass(frozen=True)
class Judged:
    """A holding, what becomes of it, and the decision on purging it. path: the file or folder that it is."""

    holding: Holding
    standing: Standing
    decided: Decided
    path: Path | None

    @property
    def decision(self) -> Decision:
        """Whether it may be purged, and why."""
        return self.decided.decision

    @property
    def goes(self) -> bool:
        """Whether a run erases it. A log that may go and is within the days that this site said stays."""
        kind, due = self.holding.record_class, self.standing is Standing.DUE
        return due or (self.standing is Standing.FREE and kind is RecordClass.SERVING_LOG and self.holding.ended)


class SiteRetention:
    """Everything of one site. Nothing is erased that `judge` does not let go."""

    def __init__(self, settings: SiteSettings, engine: Engine, clock: Clock) -> None:
        self._settings, self._engine, self._clock = settings, engine, clock
        governance = load_governance(settings.home)
        self._policy, self._american = local_policy(settings.home, governance), governance.jurisdiction == "US"

    def plan(self) -> list[Judged]:
        """Every holding, judged by the site's own packs."""
        today = self._clock().date()
        with transaction(self._engine) as session:
            found = list(
                holdings(
                    session, self._settings.home, on=today, log_days=kept_log_days(session), american=self._american
                )
            )
            wipes = SiteEvidenceRepository(session).standing("study")
        return [self._judge(holding, path, wipes) for holding, path in found]

    def run(self) -> list[Judged]:
        """Erase what goes; each erasure is kept as a row before anything is erased, and may be repeated."""
        gone = [one for one in self.plan() if one.goes]
        for one in gone:
            if one.holding.record_class is RecordClass.SCRATCH:
                self.wipe(one.holding.about)
                continue
            self._keep(one.holding, one.decided)
            if one.path is not None and one.holding.record_class is RecordClass.MODEL:
                self._erase_release(one.path)
            elif one.path is not None:
                one.path.unlink(missing_ok=True)
                sync_folder(one.path.parent)
        return gone

    def wipe(self, study: str) -> dict[str, Any]:
        """Wipe what a study left here, look again, and attest it: the report whose digest the evidence names.

        The ledger, the answers to its plans and the patients' keyed hashes stay. Raises StudyNotOver, PurgeRefused.
        """
        with transaction(self._engine) as session:
            scratch = self._over(session, study)
            alarmed = any(one.holding.held for one in self.plan_of(session, study))
        if alarmed:
            raise PurgeRefused(
                f"The scratch of {study} may be evidence: an alarm or an incident of this site is open.",
                "End it first, then wipe.",
            )
        with transaction(self._engine) as session:
            drop_keys(session, study)
            forget_packets(session, study)
        for name in scratch.snapshots:
            path_of(self._settings.home, name).unlink(missing_ok=True)
        stray = leftovers(self._settings.home)
        for path in stray:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        BudgetStore(self._engine).erase_traces()
        with transaction(self._engine) as session:
            left = self._over(session, study).items
            if left or leftovers(self._settings.home):
                raise PurgeRefused(
                    f"{left} items of {study} are still here after the wipe.", "Stop the agent, try again."
                )
            report = {
                "study": study, "packets": scratch.packets, "vectors": scratch.vectors, "replies": scratch.replies,
                "keys": scratch.keys, "snapshots": len(scratch.snapshots), "leftovers": len(stray), "left": left,
                "wiped_at": timestamp(self._clock()),
            }  # fmt: skip
            record = EvidenceRecord(
                kind="scratch_wipe", scope="study", subject=study, issuer=f"cloister-site at {self._settings.site}",
                issued=self._clock().date(), file=digest(report),
            )  # fmt: skip
            evidence = SiteEvidenceRepository(session)
            if evidence.find(record.digest) is None:
                evidence.add(record, at=timestamp(self._clock()))
            for one in self.plan_of(session, study):
                keep(session, one.decided, subject=study)
            self._add(session, RecordClass.SCRATCH, study, scratch.items + len(stray), report)
        return {**report, "evidence": record.digest}

    def plan_of(self, session: Session, study: str) -> list[Judged]:
        """The scratch of one study, judged."""
        wipes = SiteEvidenceRepository(session).standing("study")
        found = holdings(session, self._settings.home, on=self._clock().date(), log_days=None, american=self._american)
        wanted = [(h, p) for h, p in found if (h.record_class, h.about) == (RecordClass.SCRATCH, study)]
        return [self._judge(holding, path, wipes) for holding, path in wanted]

    def decide(self, facts: dict[str, Any]) -> Decided:
        """The retention gate by this site's own packs."""
        return decide("retention", facts, self._policy, now=self._clock(), salt=os.urandom(32))

    def erase_models(self) -> int:
        """Every installed release, the served one too; how many."""
        from site_agent.releases.install import installed

        releases = installed(self._settings.home)
        for release in releases:
            self._erase_release(release.folder)
        return len(releases)

    def _judge(self, holding: Holding, path: Path | None, wipes: Sequence[EvidenceRecord]) -> Judged:
        today = self._clock().date()
        study = {"study": {"id": holding.about, "records": standing(wipes, on=today)}}
        asked = [self.decide({**facts_of(holding, on=today, purge=purge), **study}) for purge in (False, True)]
        kept, purged = asked
        if holding.record_class is RecordClass.SCRATCH:
            attested = kept.decision.allowed or not holding.ended
            due = holding.ended and not holding.held and (holding.items > 0 or (not attested and self._american))
            return Judged(holding, Standing.DUE if due else Standing.KEPT, kept, path)
        return Judged(holding, standing_of(kept.decision, purged.decision), purged, path)

    def _over(self, session: Session, study: str) -> Scratch:
        for scratch in scratches(session, self._settings.home):
            if scratch.study == study:
                if not scratch.over:
                    raise StudyNotOver(
                        f"Rounds of {study} may still come.",
                        f"Wait for its end, or withdraw: studies withdraw {study}.",
                    )
                return scratch
        raise StudyNotOver(f"This site never granted a study {study}.", "See cloister-site studies list.")

    def _erase_release(self, folder: Path) -> None:
        link = self._settings.home.releases / CURRENT
        if link.is_symlink() and link.readlink().name == folder.name:
            link.unlink()
            sync_folder(link.parent)
        shutil.rmtree(folder)
        sync_folder(folder.parent)

    def _keep(self, holding: Holding, decided: Decided) -> None:
        with transaction(self._engine) as session:
            keep(session, decided, subject=holding.about)
            self._add(session, holding.record_class, holding.about, holding.items, decided.decision.to_dict())

    def _add(self, session: Session, kind: RecordClass, about: str, items: int, document: dict[str, Any]) -> None:
        session.add(
            SitePurge(
                record_class=kind.value, about=about, items=items, decision=json.dumps(document, sort_keys=True),
                purged_at=timestamp(self._clock()),
            )
        )  # fmt: skip
