"""A draft of a matrix of the HIPAA Security Rule's safeguards, for one hospital or for the coordinator's operator.

Each row holds what Cloister itself does, what is on record, and what the organisation must say of its own. An
implementation specification that is addressable is done, or an equivalent is documented (45 CFR 164.306(d)(3)): which,
only the organisation knows.
"""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.client.drafts.draft import DESIGN, Draft, Entry, Section, blank, known
from coordinator.client.drafts.facts import Known, on_record
from coordinator.client.drafts.safeguard_rows import PARTS, Safeguard

OPERATOR = "coordinator"
RECORDS, ORGANISATION, POLICY = "evidence on record", "governance.toml", "the log's witness policy"


def draft_safeguards(party: str, facts: Known, *, made_at: str) -> Draft:
    """The draft. party: an enrolled hospital, or "coordinator" for who runs that."""
    sections = [
        Section(f"{row.citation} {row.name}", f"45 CFR {row.citation}, {row.force}", tuple(_row(row, party, facts)))
        for rows in PARTS.values()
        for row in rows
    ]
    return Draft(
        kind="hipaa", title=f"Safeguards of the HIPAA Security Rule: {party}", subject=party, made_at=made_at,
        sections=tuple(sections),
        notices=("What Cloister does is one part of a safeguard, never the whole: it says nothing of compliance.",),
    )  # fmt: skip


def _row(row: Safeguard, party: str, facts: Known) -> Iterator[Entry]:
    if row.does:
        yield known("What Cloister does", row.does, DESIGN)
    records = facts.about(party, *row.kinds) if row.kinds else ()
    if records:
        yield known("On record", on_record(records), RECORDS)
    elif row.kinds:
        yield blank("On record", f"Nothing counts today: record a {' or a '.join(row.kinds)} about {party}.")
    if row.citation == "164.312(b)" and facts.witnesses is not None:
        quorum = f"{facts.witnesses.quorum} of {len(facts.witnesses.witnesses)} witnesses must cosign"
        yield known("The log's quorum", quorum, POLICY)
    if party == OPERATOR and facts.organisation is not None:
        if row.citation.startswith("164.308(a)(7)(ii)") and "ackup" in row.name:
            yield known("Backup last restored in a test", facts.organisation.backup_tested.isoformat(), ORGANISATION)
        if row.citation == "164.314(a)(2)(iii)":
            engaged = [f"{one.name}: {'agreement signed' if one.baa else 'no agreement'}"
                       for one in facts.organisation.subprocessors]  # fmt: skip
            yield known("Subcontractors", "; ".join(engaged) or "none was named", ORGANISATION)
    if row.force == "addressable":
        yield blank("The organisation", "Done, by what; or the documented equivalent, or why neither is reasonable?")
    else:
        yield blank(
            "The organisation", "By what policy, procedure or measure; who is responsible; where is it written?"
        )
