"""A draft on paper: as a Word document (python-docx), or as CSV. Blanks are marked in both, and counted at the top."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from docx import Document
from docx.enum.text import WD_COLOR_INDEX
from docx.shared import Pt

from coordinator.client.audit_query import safe_cell
from coordinator.client.drafts.draft import Draft, Entry
from protocol.errors import Malformed

COLUMNS = ("section", "asked for by", "item", "state", "text", "source")
NOT_FINISHED = (
    "This is a draft. A person completes, judges and signs it; until then it is no assessment and no register."
)
_UNFIT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def to_docx(draft: Draft) -> bytes:
    """The Word document. Its last paragraph is what `read_document` looks for."""
    document = Document()
    document.core_properties.title = _text(draft.title)[:255]
    document.core_properties.author = "Cloister (draft, not reviewed)"
    document.add_heading(_text(draft.title), 0)
    for line in _opening(draft):
        document.add_paragraph(_text(line))
    for section in draft.sections:
        document.add_heading(_text(section.title), 1)
        document.add_paragraph(_text(section.citation)).runs[0].italic = True
        table = document.add_table(rows=1, cols=3, style="Table Grid")
        for cell, name in zip(table.rows[0].cells, ("Item", "What is known, or asked", "Known from"), strict=True):
            cell.paragraphs[0].add_run(name).bold = True
        for entry in section.entries:
            item, text, source = table.add_row().cells
            item.text, source.text = _text(entry.item), _text(entry.source)
            _write(text.paragraphs[0], entry)
    document.add_heading("What this draft rests on", 1)
    document.add_paragraph("Leave the next line as it is: `cloister evidence draft check` reads it.")
    run = document.add_paragraph().add_run(draft.basis.to_text())
    run.font.size = Pt(6)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def to_csv(draft: Draft) -> bytes:
    """RFC 4180, every cell quoted, none that a spreadsheet takes for a formula; UTF-8."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for line in _opening(draft):
        writer.writerow(["", "", "", "notice", safe_cell(line), ""])
    for section in draft.sections:
        for entry in section.entries:
            cells = (section.title, section.citation, entry.item, entry.state, entry.shown, entry.source)
            writer.writerow([safe_cell(cell) for cell in cells])
    writer.writerow(["", "", "", "basis", draft.basis.to_text(), ""])
    return out.getvalue().encode("utf-8")


def read_document(path: Path) -> str:
    """The text of a draft that was written as .docx or .csv, for `read_basis`. Raises Malformed."""
    data = path.read_bytes()
    if path.suffix == ".csv":
        try:
            rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
        except (UnicodeDecodeError, csv.Error):
            raise _unreadable(path) from None
        return "\n".join(cell for row in rows for cell in row)
    try:
        document = Document(io.BytesIO(data))
    except Exception:  # noqa: BLE001 - zipfile, lxml and docx each have errors of their own for a damaged file
        raise _unreadable(path) from None
    cells = (cell.text for table in document.tables for row in table.rows for cell in row.cells)
    return "\n".join([*(paragraph.text for paragraph in document.paragraphs), *cells])


def _opening(draft: Draft) -> tuple[str, ...]:
    left = f"{draft.blanks} entries are left to a person: each begins with the words TO BE FILLED IN."
    return (NOT_FINISHED, f"Drafted at {draft.made_at}. {left}", *draft.notices)


def _write(paragraph: object, entry: Entry) -> None:
    run = paragraph.add_run(_text(entry.shown))  # type: ignore[attr-defined]  # docx brings no types
    if entry.state != "known":
        run.bold = entry.state == "fill-in"
        run.font.highlight_color = WD_COLOR_INDEX.YELLOW if entry.state == "fill-in" else WD_COLOR_INDEX.GRAY_25


def _text(value: str) -> str:
    """Without what XML can't hold or what would turn the text around."""
    return _UNFIT.sub(" ", value)


def _unreadable(path: Path) -> Malformed:
    return Malformed(f"{path.name} can't be read as a draft.", "Give the .docx or .csv that was drafted.")
