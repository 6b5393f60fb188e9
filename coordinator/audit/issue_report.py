"""Issue an evidence report: export the log as it was cosigned, verify that export, print it, sign it."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import Session

from coordinator.appliance import Appliance
from coordinator.audit.export import write_export
from coordinator.audit.report import make_report
from coordinator.audit.report_pdf import render
from coordinator.audit.report_signature import sign_report
from coordinator.client.audit_bundle import open_bundle
from coordinator.errors import NotFound
from protocol.timestamp import timestamp


@dataclass(frozen=True)
class IssuedReport:
    """The signed PDF, and of how many entries it tells."""

    pdf: bytes
    entries: int


def issue_report(session: Session, appliance: Appliance, *, study: str | None, minimum_size: int = 1) -> IssuedReport:
    """The signed report on the log, or on one study.

    Raises Unavailable while no quorum has cosigned so much of the log,
    NotFound for a study of which the cosigned log holds nothing, LogTampered as the export does."""
    made = write_export(session, appliance, minimum_size=minimum_size)
    with tempfile.TemporaryDirectory(dir=appliance.settings.log_folder) as folder, made.file as export:
        path = Path(folder) / "bundle.tar"
        export.seek(0)
        with path.open("wb") as file:
            shutil.copyfileobj(export, file)
        with open_bundle(path) as bundle:
            report = make_report(
                bundle, study=study, made_at=timestamp(appliance.clock()), ca=appliance.keys.authority.fingerprint
            )
    if study is not None and not report.counts:
        raise NotFound(f"The cosigned log holds nothing of a study {study}.", "See `cloister study list`.")
    return IssuedReport(sign_report(render(report), appliance, report.files), report.entries)
