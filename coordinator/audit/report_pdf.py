"""An evidence report on paper (A4), by ReportLab; unsigned, with what a machine checks attached by the signer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.lib.units import mm
from reportlab.platypus import Flowable, LongTable, Paragraph, Preformatted, SimpleDocTemplate, Spacer, TableStyle

from coordinator.audit.report import EvidenceReport, ListedEvent
from protocol.timestamp import timestamp

WIDTH = A4[0] - 36 * mm
_STYLES = getSampleStyleSheet()
_BODY = ParagraphStyle("body", parent=_STYLES["BodyText"], fontSize=9, leading=12)
_CELL = ParagraphStyle("cell", parent=_BODY, fontSize=7, leading=9, wordWrap="CJK")  # breaks digests anywhere
_MONO = ParagraphStyle("mono", parent=_STYLES["Code"], fontSize=6.5, leading=8, leftIndent=0)
_LINES = TableStyle(
    [
        ("GRID", (0, 0), (-1, -1), 0.25, colors.grey),
        ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("LEFTPADDING", (0, 0), (-1, -1), 3),
        ("RIGHTPADDING", (0, 0), (-1, -1), 3),
    ]
)
LIMITS = (
    "This report evidences controls. It does not say that anybody complies with a law or a standard.",
    "Times are the coordinator's own. What the hospitals' cosignatures vouch for is that the entries are those that "
    "they saw, in this order, with none changed or left out up to the checkpoint.",
    "People stand in the log under pseudonyms; names and reasons are in the export, where they were not erased.",
)


def render(report: EvidenceReport) -> bytes:
    """The PDF."""
    about = f"study {report.study}" if report.study is not None else "the whole log"
    story: list[Flowable] = [
        Paragraph(f"Evidence report on {escape(about)}", _STYLES["Title"]),
        *_paragraphs(f"Log {report.origin}. Made at {report.made_at} from {report.entries} entries.", *LIMITS),
        *_checkpoint(report),
        *_events(report),
        *_verification(report),
    ]
    out = io.BytesIO()
    document = SimpleDocTemplate(
        out, pagesize=A4, leftMargin=18 * mm, rightMargin=18 * mm, topMargin=18 * mm, bottomMargin=18 * mm,
        title=f"Evidence report on {about}", author=f"Cloister coordinator {report.origin}", lang="en",
    )  # fmt: skip

    def footer(canvas: Any, _: object) -> None:
        canvas.saveState()
        canvas.setFont("Helvetica", 7)
        text = f"{report.origin} · checkpoint {report.size} · {report.made_at} · page {canvas.getPageNumber()}"
        canvas.drawString(18 * mm, 10 * mm, text)
        canvas.restoreState()

    document.build(story, onFirstPage=footer, onLaterPages=footer)
    return out.getvalue()


def _checkpoint(report: EvidenceReport) -> list[Flowable]:
    cosigned = sum(witness.cosigned_at is not None for witness in report.witnesses)
    rows = [
        (witness.name, witness.kind, witness.key, "did not cosign" if witness.cosigned_at is None
         else timestamp(datetime.fromtimestamp(witness.cosigned_at, UTC)))
        for witness in report.witnesses
    ]  # fmt: skip
    return [
        _heading("Checkpoint and quorum"),
        *_paragraphs(
            f"The log's tree head at {report.size} entries; {cosigned} of {len(report.witnesses)} witnesses cosigned, "
            f"{report.quorum} must: more than (n + f) / 2 of n witnesses, f = (n - 1) / 3 rounded down, so that any "
            "two quorums share a witness that is honest."
        ),
        _table(("size", "root (SHA-256, RFC 6962)"), [(report.size, report.root)], (20, 80)),
        Spacer(1, 4),
        _table(("witness", "key", "SHA-256 of its verifier key", "cosigned at"), rows, (22, 12, 46, 20)),
        Spacer(1, 4),
        Preformatted(_note_without_long_lines(report.files["checkpoint"]), _MONO, maxLineLength=120),
    ]


def _events(report: EvidenceReport) -> list[Flowable]:
    story: list[Flowable] = [
        _heading("What the log holds"),
        *_paragraphs(f"From {report.first_at or '-'} to {report.last_at or '-'}."),
        _table(("event", "entries"), report.counts, (70, 30)),
    ]
    if report.decisions:
        story += [
            _heading("Decisions by policy"),
            _table(("gate", "outcome", "decisions"), report.decisions, (40, 40, 20)),
        ]
    story.append(_heading("Entries of the study" if report.study is not None else "Releases sealed and suspended"))
    story.append(_listing(report.listed))
    if report.not_listed:
        story += _paragraphs(f"{report.not_listed} more entries are in the export and not listed here.")
    return story


def _verification(report: EvidenceReport) -> list[Flowable]:
    bundle = "BUNDLE" if report.study is None else f"BUNDLE --study {report.study}"
    return [
        _heading("How to verify"),
        *_paragraphs(
            "1. This document. It is signed as a whole, under a certificate that the coordinator's authority issued. "
            "Compare that authority's SHA-256 fingerprint with the one that a hospital pinned when it enrolled:"
        ),
        Preformatted(report.ca, _MONO),
        Preformatted("cloister audit check-report REPORT.pdf --ca CA.pem", _MONO),
        *_paragraphs(
            "The command also opens the attached checkpoint under the attached witness policy. A PDF reader shows the "
            "same signature as valid for the whole document, and its signer as trusted once it trusts that authority.",
            "2. The log. Export it, and check it with nothing but the bundle and the log's key from a hospital:",
        ),
        Preformatted(f"cloister audit verify BUNDLE --log-key '{report.log_key}'", _MONO, maxLineLength=120),
        *_paragraphs(
            "A second verifier, on Go's own packages, is in packaging/audit_go. An export made later is longer: that "
            "it begins with the tree above, `cloister audit monitor --compare CHECKPOINT` shows.",
            "3. The entries. Each leaf hash above is in that tree; the entries themselves, with proofs:",
        ),
        Preformatted(f"cloister audit query {bundle} --format jsonl", _MONO),
    ]


def _listing(events: Sequence[ListedEvent]) -> Flowable:
    rows = [
        (item.index, item.at, item.event, item.actor, item.subject, f"{item.details} leaf={item.leaf_hash}")
        for item in events
    ]
    return _table(
        ("index", "time", "event", "actor", "subject", "details and leaf hash"), rows, (7, 13, 15, 14, 14, 37)
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], shares: Sequence[int]) -> Flowable:
    cells = [[Paragraph(escape(str(cell)), _CELL) for cell in row] for row in (head, *rows)]
    return LongTable(cells, colWidths=[WIDTH * share / 100 for share in shares], repeatRows=1, style=_LINES)


def _paragraphs(*texts: str) -> list[Flowable]:
    return [Paragraph(escape(text), _BODY) for text in texts]


def _heading(text: str) -> Flowable:
    return Paragraph(escape(text), _STYLES["Heading2"])


def _note_without_long_lines(note: bytes) -> str:
    """The note, for the eye: a signature's text is cut, for the whole note is attached."""
    lines = note.decode("utf-8", "replace").replace("— ", "-- ").splitlines()
    return "\n".join(line if len(line) <= 110 else f"{line[:107]}..." for line in lines)
