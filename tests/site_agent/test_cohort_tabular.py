"""Reading hospitals' files: every bad one is refused by row and column, and no cell is ever repeated."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from protocol.delimited import MAX_RECORD_BYTES, DatasetRefused
from protocol.dictionary import Dictionary, parse_dictionary
from protocol.table import Table
from site_agent.cohort.tabular import read_table

DICTIONARY = """\
dictionary: 1
name: heart
file: {{header: {header}, patient_id: {patient}, missing: ["", "?"], max_rows_per_patient: 2}}
columns:
{pid}  - {{name: age, source: "Age (years)", role: feature, type: integer, minimum: 0, maximum: 120,
     center: 50, scale: 10, on_bad: {on_bad}}}
  - {{name: chol, role: feature, type: number, minimum: 50, maximum: 800, center: 210, scale: 45,
     missing: [0], impute: 210}}
  - {{name: sex, role: feature, type: category, levels: [f, m]}}
  - {{name: num, role: label, type: integer, minimum: 0, maximum: 4, on_bad: {on_bad_label}}}
label: {{name: disease, operator: ">", value: 0}}
"""
PID = "  - {{name: pid, role: patient_id, on_bad: {on_bad}}}\n"
HEADER = "pid,Age (years),chol,sex,num\n"
ROWS = "p1,40,200,f,0\np2,50,0,m,2\np3,60,300,f,1\n"


def dictionary(
    *, header: bool = True, generated: bool = False, on_bad: str = "refuse", on_bad_label: str = "refuse"
) -> Dictionary:
    pid = "" if generated else PID.format(on_bad=on_bad)
    text = DICTIONARY.format(
        header=str(header).lower(),
        patient="generated" if generated else "pid",
        pid=pid,
        on_bad=on_bad,
        on_bad_label=on_bad_label,
    )
    return parse_dictionary(text.encode())


def hashed(identity: str) -> bytes:
    return hashlib.sha256(identity.encode()).digest()


@pytest.fixture
def read(tmp_path: Path):
    def read(content: str | bytes, described: Dictionary | None = None) -> Table:
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(path, described or dictionary(), hashed)

    return read


def refusal(read, content: str | bytes, described: Dictionary | None = None) -> DatasetRefused:
    with pytest.raises(DatasetRefused) as caught:
        read(content, described)
    assert caught.value.remedy
    return caught.value


def test_records_are_encoded_as_the_schema_says(read):
    table = read(HEADER + ROWS)
    schema = dictionary().schema
    rows = [
        {"age": 40, "chol": 200.0, "sex": "f"},
        {"age": 50, "chol": None, "sex": "m"},
        {"age": 60, "chol": 300.0, "sex": "f"},
    ]
    assert list(table.x) == [value for row in rows for value in schema.encode(row)]
    assert list(table.y) == [0, 1, 1]
    assert table.patients == [hashed(f"id\0p{number}") for number in (1, 2, 3)]
    assert dict(table.imputed) == {"chol": 1}


@pytest.mark.parametrize(
    "content",
    [
        HEADER.replace(",", ", ") + ROWS.replace(",", " , "),
        "\ufeff" + HEADER + ROWS,
        (HEADER + ROWS).replace("\n", "\r\n"),
        HEADER + "\n" + ROWS + "\n\n",
        HEADER + ROWS.rstrip("\n"),
        HEADER + ROWS.replace("p1", '"p1"').replace("200", '"200.0"'),
    ],
)
def test_the_ways_that_files_are_written_all_read_the_same(read, content):
    plain = read(HEADER + ROWS)
    assert read(content) == plain


def test_columns_may_come_in_any_order_under_a_header(read):
    lines = [line.split(",") for line in (HEADER + ROWS).splitlines()]
    turned = "\n".join(",".join(reversed(cells)) for cells in lines)
    assert read(turned) == read(HEADER + ROWS)


def test_a_headerless_file_takes_the_dictionarys_order(read):
    assert read(ROWS, dictionary(header=False)) == read(HEADER + ROWS)


def test_generated_patients_are_rows(read):
    table = read("40,200,f,0\n50,200,m,1\n", dictionary(header=False, generated=True))
    assert table.patients == [hashed("row\x001"), hashed("row\x002")]


@pytest.mark.parametrize(
    ("cell", "bad", "match"),
    [
        ("40", "121", "row 1, column age: outside the allowed range"),
        ("40", "-1", "row 1, column age: outside the allowed range"),
        ("40", "4O", "row 1, column age: not an integer"),
        ("40", "40.5", "row 1, column age: not an integer"),
        ("40", "nan", "row 1, column age: not an integer"),
        ("200", "NaN", "row 1, column chol: not a finite number"),
        ("200", "inf", "row 1, column chol: not a finite number"),
        ("200", "1e999", "row 1, column chol: not a finite number"),
        ("40", "?", "row 1, column age: missing, and the dictionary has no imputation constant"),
        (",f,0", ",x,0", "row 1, column sex: not one of the levels"),
        (",f,0", ",,0", "row 1, column sex: missing"),
        (",f,0", ",f,7", "row 1, column num: outside the allowed range"),
        (",f,0", ",f,", "row 1, column num: missing"),
        ("p1", "", "row 1, column pid: missing"),
    ],
)
def test_a_bad_cell_is_told_by_row_and_column_without_its_content(read, cell, bad, match):
    secret = bad if len(bad) > 2 else "\0"
    error = refusal(read, HEADER + ROWS.replace(cell, bad, 1))
    assert match in error.message
    assert secret not in error.message.replace("table.csv", "")


def test_twenty_problems_are_shown_and_all_are_counted(read):
    rows = "".join(f"p{number},999,200,f,0\n" for number in range(50)) + "q,40,1,f,0\n"
    error = refusal(read, HEADER + rows)
    assert "has 51 problems" in error.message
    assert error.message.count("\n  row ") == 20
    assert "50 x column age: outside the allowed range; 1 x column chol" in error.message


@pytest.mark.parametrize("line", ["p1,40,200,f\n", "p1,40,200,f,0,9\n", "p1\n", "p1;40;200;f;0\n"])
def test_a_wrong_number_of_values_refuses_the_file(read, line):
    assert "row 4, number of values" in refusal(read, HEADER + ROWS + line).message


def test_a_bad_value_may_drop_the_row_counted_by_column_and_reason(read):
    rows = ROWS + "p4,999,200,f,0\np5,x,200,f,0\np6,999,200,m,1\n"
    table = read(HEADER + rows, dictionary(on_bad="drop"))
    assert (table.rows_read, len(table.y)) == (6, 3)
    assert dict(table.dropped) == {("age", "outside the allowed range"): 2, ("age", "not an integer"): 1}


def test_a_row_that_one_column_refuses_is_not_dropped_by_another(read):
    error = refusal(read, HEADER + ROWS + "p4,999,200,x,0\n", dictionary(on_bad="drop"))
    assert "row 4, column sex" in error.message


def test_a_patient_with_both_outcomes_refuses_or_drops_all_rows_of_the_patient(read):
    rows = ROWS + "p1,41,200,f,3\n"
    assert "row 4, column num: one patient has both outcomes" in refusal(read, HEADER + rows).message
    table = read(HEADER + rows, dictionary(on_bad_label="drop"))
    assert hashed("id\0p1") not in table.patients
    assert len(table.patients) == 2
    assert len(table.x) == 2 * table.width
    assert table.dropped.total() == 2


def test_a_patient_with_more_rows_than_allowed(read):
    rows = ROWS + "p1,41,200,f,0\np1,42,200,f,0\n"
    assert "row 5, column pid: one patient has more than 2 rows" in refusal(read, HEADER + rows).message
    table = read(HEADER + rows, dictionary(on_bad="drop"))
    assert table.patients.count(hashed("id\0p1")) == 2
    assert table.dropped.total() == 1


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (HEADER.encode(), "leaves no usable row"),
        (b"pid,chol,sex,num\n", "lacks column age"),
        (b"a,b\n1,2\n", "lacks columns pid, age, chol, sex, num"),
        (HEADER.strip().encode() + b",secret words\n", "column number 6 of the header is not in the dictionary"),
        (HEADER.strip().encode() + b",chol\n", "names column chol twice"),
        ((HEADER + ROWS).encode() + b"p\0,1,2,f,0\n", "line 5: holds a NUL byte"),
        ((HEADER + ROWS).encode() + b"p\xff,41,200,f,0\n", "line 5: is not utf-8"),
        ((HEADER + ROWS).encode("utf-16"), "line 1: holds a NUL byte"),
        (b"PK\x03\x04\x14\x00\x06\x00" + os.urandom(2000), "line 1"),
        (b"\x89PNG\r\n\x1a\n" + bytes(3000), "line"),
        ((HEADER + ROWS).encode() + b'p4,"40,200,f,0\n', "line 5: the quotes are wrong"),
        ((HEADER + ROWS).encode() + b"x" * 200_000, "longer than 131072"),
    ],
)
def test_what_is_no_table_is_refused(read, content, match):
    error = refusal(read, content)
    assert match in error.message
    assert "secret words" not in error.message


def test_a_line_without_end_is_not_loaded(tmp_path: Path):
    """Two gigabytes of one line, in a sparse file: refused after the first MiB."""
    import resource

    path = tmp_path / "table.csv"
    with path.open("wb") as file:
        file.write(HEADER.encode() + b"x" * (MAX_RECORD_BYTES + 10))
        file.truncate(2 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DatasetRefused, match="line 2: is part of a record over 1048576 bytes"):
        read_table(path, dictionary(), hashed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_an_unclosed_quote_does_not_swallow_the_file(read):
    content = HEADER + ROWS + 'p4,"40,200,f,0\n' + "p5,40,200,f,0\n" * 100_000
    assert "line" in refusal(read, content).message


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "absent"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind):
    path = tmp_path / "table.csv"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
    with pytest.raises(DatasetRefused) as caught:
        read_table(path, dictionary(), hashed)
    assert str(path) in caught.value.message


def test_latin_1_is_read_where_the_dictionary_says_so(read):
    described = parse_dictionary(
        DICTIONARY.format(
            header="true", patient="pid", pid=PID.format(on_bad="refuse"), on_bad="refuse", on_bad_label="refuse"
        )
        .replace("header: true", "header: true, encoding: latin-1")
        .encode()
    )
    assert len(read((HEADER + "Müller,40,200,f,0\n").encode("latin-1"), described).y) == 1
