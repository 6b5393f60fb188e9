"""cloister-site as a process would run it: exit codes, one message and a remedy, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from site_agent import cli
from site_agent.clock import system_clock
from site_agent.enrol import enrol
from site_agent.settings import SiteHome
from tests.papers import papers_file
from tests.site_agent.made_up_coordinator import made_up_coordinator

pytestmark = pytest.mark.processes

DICTIONARY = """\
dictionary: 1
name: test-set
file: {patient_id: pid}
columns:
  - {name: pid, role: patient_id}
  - {name: a, role: feature, type: number, minimum: 0, maximum: 100, center: 50, scale: 20}
  - {name: num, role: label, type: integer, minimum: 0, maximum: 4}
label: {name: sick, operator: ">", value: 0}
"""
ROWS = "pid,a,num\n" + "".join(f"p{number},{number % 90},{number % 2}\n" for number in range(80))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cloister-site", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, out.out, out.err

    return run


@pytest.fixture
def coordinator(tmp_path: Path):
    (tmp_path / "coordinator").mkdir()
    with made_up_coordinator(tmp_path / "coordinator") as coordinator:
        coordinator.log.add(b"first", b"second")
        yield coordinator


@pytest.fixture
def home(coordinator, tmp_path: Path) -> Path:
    enrol(coordinator.token(), SiteHome(tmp_path / "site"), system_clock, papers_file())
    return tmp_path / "site"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    table, dictionary = tmp_path / "table.csv", tmp_path / "dictionary.yaml"
    table.write_text(ROWS)
    dictionary.write_text(DICTIONARY)
    return table, dictionary


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but SQLite's own journals, which a reader may make and empty."""
    names = (path for path in sorted(folder.rglob("*")) if path.is_file() and ".db" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def test_enrol_status_and_json(run, coordinator, tmp_path):
    code, out, err = run("enrol", coordinator.token(), "--papers", papers_file(), "--home", tmp_path / "new", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["site"] == "clinic-a"
    code, out, _ = run("status", "--home", tmp_path / "new", "--json")
    status = json.loads(out)
    assert code == 0
    assert status["log"]["alarms"] == []
    assert 160 < status["certificate"]["hours_left"] <= 168
    code, out, _ = run("status", "--home", tmp_path / "new")
    assert "clinic-a, enrolled at" in out


def test_the_token_may_come_on_standard_input(run, coordinator, tmp_path, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(coordinator.token() + "\n"))
    code, out, _ = run("enrol", "-", "--papers", papers_file(), "--home", tmp_path / "new")
    assert code == 0
    assert "clinic-a is enrolled" in out


def test_an_error_is_one_message_and_a_remedy_and_json_where_asked(run, tmp_path):
    code, out, err = run("status", "--home", tmp_path / "nowhere")
    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert lines[0].startswith("error: No site is enrolled in")
    assert lines[1].startswith("remedy: Run cloister-site enrol TOKEN")
    assert len(lines) == 2
    code, out, _ = run("status", "--home", tmp_path / "nowhere", "--json")
    assert code == 1
    assert json.loads(out)["error"]["code"] == "not-enrolled"


def test_a_wrong_option_is_a_usage_error(run):
    code, _, err = run("status", "--wrong")
    assert code == 2
    assert "No such option" in err


@pytest.mark.parametrize("content", ["", "site = 3", "= x", 'site = "a"\nunknown = 1', "\0", "x" * 70_000])
def test_bad_settings_are_named(run, home, content):
    (home / "site.toml").write_text(content)
    code, _, err = run("status", "--home", home)
    assert code == 1
    assert "site.toml" in err
    assert "remedy:" in err


def test_a_missing_or_damaged_database_is_named(run, home):
    (home / "site.db").write_bytes(b"not a database" * 500)
    code, _, err = run("status", "--home", home)
    assert code == 1
    assert "error: The site's database" in err
    (home / "site.db").unlink()
    code, _, err = run("status", "--home", home)
    assert code == 1
    assert "site.db is missing" in err
    assert not (home / "site.db").exists()


def test_a_database_of_a_newer_version_is_left_alone(run, home):
    import sqlite3

    with sqlite3.connect(home / "site.db") as database:
        database.execute("PRAGMA user_version = 999")
    database.close()
    code, _, err = run("status", "--home", home)
    assert code == 1
    assert "newer version" in err


def test_add_and_list_a_data_set(run, home, files):
    table, dictionary = files
    code, out, _ = run("datasets", "add", table, "--dictionary", dictionary, "--home", home, "--json")
    added = json.loads(out)
    assert code == 0
    assert (added["name"], added["patients"], added["held_out"], added["registered"]) == ("test-set", 80, 20, True)
    code, out, _ = run("datasets", "list", "--home", home, "--json")
    (listed,) = json.loads(out)
    assert listed["digest"] == added["snapshot"]
    assert listed["registered_at"]
    code, out, _ = run("datasets", "add", table, "--dictionary", dictionary, "--home", home, "--json")
    assert json.loads(out)["snapshot"] == added["snapshot"]
    assert len(json.loads(run("datasets", "list", "--home", home, "--json")[1])) == 1


def test_add_images_by_a_manifest(run, home, tmp_path):
    """The files may lie in another folder than the manifest; the reading is told on stderr, without any file's name."""
    films = tmp_path / "export"
    films.mkdir()
    lines = ["pid,film,sick"]
    for number in range(60):
        np.save(films / f"doe-{number}.npy", np.full((4, 4), number, dtype=np.uint8))
        lines.append(f"p{number},doe-{number}.npy,{number % 2}")
    manifest, dictionary = tmp_path / "manifest.csv", tmp_path / "films.yaml"
    manifest.write_text("\n".join(lines) + "\n")
    dictionary.write_text(
        "dictionary: 1\nname: films\nfile: {patient_id: pid}\ncolumns:\n- {name: pid, role: patient_id}\n"
        "- {name: film, role: file}\n- {name: sick, role: label, type: category, levels: [0, 1]}\n"
        "image: {name: film, channels: 1, height: 4, width: 4, low: 0, high: 255, center: 0.5, scale: 0.25}\n"
        'label: {name: disease, operator: "==", value: 1}\n'
    )
    code, _, err = run("datasets", "add", manifest, "--dictionary", dictionary, "--home", home)
    assert code == 1
    assert "row 1, column film: no such file" in err
    assert "doe" not in err
    code, out, err = run("datasets", "add", manifest, "--dictionary", dictionary, "--files", films, "--home", home)
    assert code == 0
    assert "60 rows read, 0 dropped; 60 records of 60 patients, 15 of them held out" in out
    assert "read 60 of 60 files" in err
    assert "doe" not in out + err


def test_a_dry_run_writes_and_sends_nothing(run, coordinator, home, files):
    table, dictionary = files
    before, asked = tree(home), len(coordinator.requests)
    code, out, _ = run("datasets", "add", table, "--dictionary", dictionary, "--home", home, "--dry-run")
    assert code == 0
    assert "dry run: nothing was stored or sent" in out
    assert tree(home) == before
    assert len(coordinator.requests) == asked


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("p3,3,1", "p3,300,1", ["row 4", "column a"]),
        ("p3,3,1", "p3,NaN,1", ["row 4", "column a"]),
        ("p3,3,1", "p3,3,9", ["row 4", "column num"]),
        ("p3,3,1", "p2,3,1", ["row 4", "column num", "both outcomes"]),
        ("p3,3,1", "p3,3", ["row 4", "number of values 2"]),
        ("pid,a,num", "pid,b,num", ["lacks column a"]),
        ("p3,3,1", "p3\0,3,1", ["line 5", "NUL byte"]),
        ("p3,3,1", "p3,3,1" * 400_000, ["line 5"]),
    ],
)
def test_a_bad_table_is_refused_by_row_and_column(run, coordinator, home, files, old, new, shown):
    table, dictionary = files
    table.write_text(ROWS.replace(old, new, 1))
    before, asked = tree(home), len(coordinator.requests)
    code, out, err = run("datasets", "add", table, "--dictionary", dictionary, "--home", home)
    assert (code, out) == (1, "")
    assert all(text in err for text in ["error: table.csv", "remedy: ", *shown])
    assert tree(home) == before
    assert len(coordinator.requests) == asked
    assert json.loads(run("datasets", "list", "--home", home, "--json")[1]) == []


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("x: !!python/object/apply:os.system [id]", "line 1: tags"),
        ("a: &a [1]\nb: [*a, *a]", "line 1: anchors"),
        ("a" * 300_000, "limit is 262144"),
        ("\x00\x01", "characters that YAML does not allow"),
        (DICTIONARY.replace("scale: 20", "scale: 20, scale: 30"), "line 6: the key 'scale' stands twice"),
        (DICTIONARY.replace("role: patient_id", "role: label, type: integer, minimum: 0, maximum: 1"), "line 4"),
    ],
)
def test_a_bad_dictionary_is_refused_by_line(run, home, files, content, shown):
    table, dictionary = files
    dictionary.write_text(content)
    before = tree(home)
    code, out, err = run("datasets", "add", table, "--dictionary", dictionary, "--home", home)
    assert (code, out) == (1, "")
    assert shown in err
    assert "remedy: " in err
    assert tree(home) == before


def test_the_log_is_checked_verified_and_alarms_exit_2(run, coordinator, home):
    code, out, _ = run("log", "check", "--home", home, "--json")
    assert code == 0
    assert json.loads(out) == {"size": 2, "new_entries": 2, "cosigned": True, "alarms": []}
    code, out, _ = run("log", "verify", "--home", home, "--json")
    assert (code, json.loads(out)) == (0, {"size": 2, "verified": True})
    coordinator.log.entries[0] = b"rewritten"
    code, out, err = run("log", "check", "--home", home)
    assert code == 2
    assert "two different histories" in err
    assert "ALARM" in out
    code, out, _ = run("log", "check", "--home", home, "--json")
    (alarm,) = json.loads(out)["alarms"]
    assert code == 2
    assert alarm["held"] != alarm["served"]
    code, out, _ = run("status", "--home", home)
    assert code == 2
    assert "ALARM" in out
    coordinator.log.entries[0] = b"first"
    assert run("log", "check", "--home", home)[0] == 2  # what was once seen is not forgotten
    code, _, err = run("log", "acknowledge", 1, "--reason", "it is fine", "--home", home)
    assert (code, "is not a reason" in err) == (1, True)
    code, _, err = run("log", "acknowledge", 7, "--reason", "false-alarm", "--home", home)
    assert (code, "No alarm 7 stands" in err) == (1, True)
    code, out, _ = run("log", "acknowledge", 1, "--reason", "false-alarm", "--home", home)
    assert (code, "acknowledged" in out) == (0, True)
    code, out, _ = run("status", "--home", home)
    assert (code, "(false-alarm), alarm 1" in out) == (0, True)
    code, out, _ = run("log", "check", "--home", home, "--json")
    (kept,) = json.loads(out)["alarms"]
    assert (code, kept["served"], kept["reason"]) == (0, alarm["served"], "false-alarm")


def test_a_changed_mirror_is_told_and_repaired(run, home):
    run("log", "check", "--home", home)
    bundle = home / "mirror/tile/entries/000"
    bundle.write_bytes(bundle.read_bytes().replace(b"first", b"FIRST"))
    code, _, err = run("log", "verify", "--home", home)
    assert code == 1
    assert "log repair" in err
    assert run("log", "repair", "--home", home)[0] == 0
    assert run("log", "verify", "--home", home)[0] == 0


def test_verify_before_the_first_check_says_zero(run, home):
    assert json.loads(run("log", "verify", "--home", home, "--json")[1])["size"] == 0


def test_a_full_disk_is_told_and_leaves_nothing(run, home, files, monkeypatch):
    import errno

    import site_agent.cohort.snapshot as room

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(room, "write_stream", full)
    table, dictionary = files
    code, _, err = run("datasets", "add", table, "--dictionary", dictionary, "--home", home)
    assert code == 1
    assert "error: The disk is full" in err
    assert list((home / "snapshots").iterdir()) == []
    assert json.loads(run("datasets", "list", "--home", home, "--json")[1]) == []


def test_the_command_line_starts_without_heavy_libraries():
    probe = (
        "import sys, site_agent.cli; "
        "print([name for name in ('torch', 'flwr', 'numpy', 'sqlalchemy', 'alembic', 'httpx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_running_witness_imports_neither_torch_nor_numpy_nor_alembic(home):
    """What the idle agent does each second must not grow it."""
    probe = (
        "import sys; from site_agent.witness.cycle import Witness; from site_agent.database import open_database; "
        "from site_agent.settings import SiteHome; from pathlib import Path; "
        f"open_database(SiteHome(Path({str(home)!r}))); "
        "print([name for name in ('torch', 'flwr', 'numpy', 'alembic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
