"""The standards and implementation specifications of the HIPAA Security Rule (45 CFR 164.308 to 164.316), and what
Cloister does towards each. An empty `does`: nothing, it is the organisation's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocol.evidence import Kind


@dataclass(frozen=True)
class Safeguard:
    """A row. force: required or addressable; kinds: evidence that speaks of it."""

    citation: str
    name: str
    force: Literal["required", "addressable"]
    does: str = ""
    kinds: tuple[Kind, ...] = ()


PARTS: dict[str, tuple[Safeguard, ...]] = {
    "Administrative safeguards (45 CFR 164.308)": (
        Safeguard("164.308(a)(1)(ii)(A)", "Risk analysis", "required", "", ("risk_analysis",)),
        Safeguard("164.308(a)(1)(ii)(B)", "Risk management", "required"),
        Safeguard("164.308(a)(1)(ii)(C)", "Sanction policy", "required"),
        Safeguard(
            "164.308(a)(1)(ii)(D)", "Information system activity review", "required",
            "Every sign-in, decision, round, approval and release is logged; `cloister audit query` and `report`",
        ),
        Safeguard("164.308(a)(2)", "Assigned security responsibility", "required"),
        Safeguard("164.308(a)(3)(ii)(A)", "Authorization and/or supervision", "addressable",
                  "One role a person; approvals by two people in two roles"),
        Safeguard("164.308(a)(3)(ii)(B)", "Workforce clearance procedure", "addressable"),
        Safeguard("164.308(a)(3)(ii)(C)", "Termination procedures", "addressable",
                  "An account is disabled at once and its sessions end", ("access_review",)),
        Safeguard("164.308(a)(4)(ii)(A)", "Isolating health care clearinghouse functions", "required"),
        Safeguard("164.308(a)(4)(ii)(B)", "Access authorization", "addressable",
                  "Accounts are made by invitation, for one role", ("access_review",)),
        Safeguard("164.308(a)(4)(ii)(C)", "Access establishment and modification", "addressable",
                  "Invitations, registrations and disabled accounts are logged", ("access_review",)),
        Safeguard("164.308(a)(5)(ii)(A)", "Security reminders", "addressable", "", ("training",)),
        Safeguard("164.308(a)(5)(ii)(B)", "Protection from malicious software", "addressable",
                  "No code, pickle or archive from the wire is ever run"),
        Safeguard("164.308(a)(5)(ii)(C)", "Log-in monitoring", "addressable", "Sign-ins are logged"),
        Safeguard("164.308(a)(5)(ii)(D)", "Password management", "addressable"),
        Safeguard("164.308(a)(6)(ii)", "Response and reporting", "required",
                  "An incident freezes a study or a site, and its clocks run", ("incident_contact",)),
        Safeguard("164.308(a)(7)(ii)(A)", "Data backup plan", "required", "", ("backup_test",)),
        Safeguard("164.308(a)(7)(ii)(B)", "Disaster recovery plan", "required", "", ("restore_test",)),
        Safeguard("164.308(a)(7)(ii)(C)", "Emergency mode operation plan", "required"),
        Safeguard("164.308(a)(7)(ii)(D)", "Testing and revision procedures", "addressable", "", ("restore_test",)),
        Safeguard("164.308(a)(7)(ii)(E)", "Applications and data criticality analysis", "addressable"),
        Safeguard("164.308(a)(8)", "Evaluation", "required", "", ("risk_analysis", "security_test")),
        Safeguard("164.308(b)(3)", "Business associate contracts: written contract", "required", "", ("baa",)),
    ),
    "Physical safeguards (45 CFR 164.310)": (
        Safeguard("164.310(a)(2)(i)", "Contingency operations", "addressable"),
        Safeguard("164.310(a)(2)(ii)", "Facility security plan", "addressable"),
        Safeguard("164.310(a)(2)(iii)", "Access control and validation procedures", "addressable"),
        Safeguard("164.310(a)(2)(iv)", "Maintenance records", "addressable"),
        Safeguard("164.310(b)", "Workstation use", "required"),
        Safeguard("164.310(c)", "Workstation security", "required"),
        Safeguard("164.310(d)(2)(i)", "Disposal", "required", "", ("scratch_wipe",)),
        Safeguard("164.310(d)(2)(ii)", "Media re-use", "required", "", ("scratch_wipe",)),
        Safeguard("164.310(d)(2)(iii)", "Accountability", "addressable"),
        Safeguard("164.310(d)(2)(iv)", "Data backup and storage", "addressable", "", ("backup_test",)),
    ),
    "Technical safeguards (45 CFR 164.312)": (
        Safeguard("164.312(a)(2)(i)", "Unique user identification", "required", "One key a person, one person a key"),
        Safeguard("164.312(a)(2)(ii)", "Emergency access procedure", "required",
                  "Emergency powers suspend a release and open nothing"),
        Safeguard("164.312(a)(2)(iii)", "Automatic logoff", "addressable", "Sessions end when idle"),
        Safeguard("164.312(a)(2)(iv)", "Encryption and decryption", "addressable",
                  "The secrets of secure aggregation and of one-time codes are encrypted in the databases; disks are "
                  "the operator's"),
        Safeguard("164.312(b)", "Audit controls", "required",
                  "An append-only log that hospitals mirror and cosign; no act is done without its entry"),
        Safeguard("164.312(c)(2)", "Mechanism to authenticate ePHI", "addressable",
                  "Snapshots, plans, contributions and releases are known by digests, and signed"),
        Safeguard("164.312(d)", "Person or entity authentication", "required",
                  "Sites by client certificate; people by key, passkey, or password and one-time code"),
        Safeguard("164.312(e)(2)(i)", "Integrity controls", "addressable", "Signed messages over TLS 1.3"),
        Safeguard("164.312(e)(2)(ii)", "Encryption", "addressable", "TLS 1.3 both ways authenticated; nothing older"),
    ),
    "Organizational requirements (45 CFR 164.314)": (
        Safeguard("164.314(a)(2)(i)", "Business associate contracts", "required", "", ("baa",)),
        Safeguard("164.314(a)(2)(iii)", "Business associate contracts with subcontractors", "required", "",
                  ("subcontractor_baa",)),
        Safeguard("164.314(b)(2)", "Group health plan documents", "required"),
    ),
    "Policies, procedures and documentation (45 CFR 164.316)": (
        Safeguard("164.316(a)", "Policies and procedures", "required"),
        Safeguard("164.316(b)(2)(i)", "Time limit", "required",
                  "Every leaf of the log stays; documents are the organisation's to keep for six years"),
        Safeguard("164.316(b)(2)(ii)", "Availability", "required"),
        Safeguard("164.316(b)(2)(iii)", "Updates", "required"),
    ),
}  # fmt: skip
