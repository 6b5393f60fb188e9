"""What each clinic of the demonstration attests and has on record: made-up pages, real dates and digests."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import yaml

PAGES = {
    "EU": ("dpa", "restore_test", "security_test"),
    "US": ("baa", "risk_analysis", "training"),
    "other": (),
}
COUNTRIES = {"EU": "HU", "US": "US", "other": "CH"}


def site_papers(folder: Path, name: str, jurisdiction: str) -> Path:
    """The file for `cloister-site enrol --papers`, with its pages beside it, in a new folder."""
    folder.mkdir(parents=True)
    issued = date.today() - timedelta(days=30)
    records = []
    for kind in PAGES[jurisdiction]:
        (folder / f"{kind}.txt").write_text(f"The {kind} of {name}, made up for the demonstration.\n")
        dates = {"issued": issued.isoformat(), "expires": (issued + timedelta(days=365)).isoformat()}
        records.append({"kind": kind, "issuer": f"The clinic {name}", "document": f"{kind}.txt", **dates})
    attestation = {
        "jurisdiction": jurisdiction,
        "country": COUNTRIES[jurisdiction],
        "hipaa_role": "covered-entity" if jurisdiction == "US" else "none",
        "disk_encryption": True,
        "transit_encryption": True,
        "tls_min": "1.3",
        "pseudonymised": True,
        "idle_logoff": True,
        "security_official": "Head of information security",
        "privacy_official": "Data protection officer",
    }
    file = folder / "papers.yaml"
    file.write_text(yaml.safe_dump({"attestation": attestation, **({"records": records} if records else {})}))
    return file
