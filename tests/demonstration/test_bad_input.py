"""Bad input, met as people meet it: real commands against one coordinator that is served, with a study, its candidate
and its release. Each is told in one message with a remedy, exits with an error, and changes no file of the home.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from protocol.bundle import pack, unpack
from protocol.enrolment import Token, secret_hash
from protocol.release import BUNDLE_FILES
from tests.papers import papers_file

pytestmark = pytest.mark.processes

BIN = Path(sys.executable).parent
MIB = 1 << 20
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


# ru_maxrss would tell the test's own memory, which a process has until it becomes another program.
WATCHED = """
import atexit, os, sys
from pathlib import Path
def tell():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    Path(os.environ["PEAK"]).write_text(line.split()[1])
atexit.register(tell)
sys.argv = sys.argv[1:]
from {module} import main
main()
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


def run(command: str, *arguments: object, wrap: tuple[str, ...] = (), limit: int | None = None, **more: str) -> Done:
    """Run one of the three commands to its end. limit: the most bytes that it may write to any one file."""
    return _end([*wrap, str(BIN / command), *map(str, arguments)], limit, more)


def peak(tmp_path: Path, module: str, *arguments: object, **more: str) -> tuple[Done, int]:
    """Run a command's `main`; what it said, and its largest resident set in bytes."""
    told = tmp_path / "peak"
    words = [sys.executable, "-c", WATCHED.format(module=module), module, *map(str, arguments)]
    return _end(words, None, {**more, "PEAK": str(told)}), int(told.read_text()) * 1024


def _end(words: list[str], limit: int | None, more: dict[str, str]) -> Done:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}

    def bounded() -> None:
        assert limit is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        words, env={**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **more}, stdin=subprocess.DEVNULL, timeout=120,
        capture_output=True, text=True, check=False, preexec_fn=bounded if limit is not None else None,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def listing(home: Path) -> dict[str, int]:
    """Every file and its size, a database's apart; its journals come and go with every reader, and a lock is empty."""
    names = (path for path in sorted(home.rglob("*")) if not path.name.endswith(("-wal", "-shm", ".lock")))
    return {
        str(path.relative_to(home)): path.stat().st_size if path.is_file() and path.suffix != ".db" else -1
        for path in names
    }


def refused(done: Done, *shown: str) -> None:
    """One error and one remedy on stderr, nothing of the inside, and an exit status that says so."""
    assert done.code not in (0, None), done.out + done.err
    assert done.code > 0, f"ended by signal {-done.code}"
    heads = [line.partition(":")[0] for line in done.err.splitlines() if not line.startswith(" ")]
    assert heads == ["error", "remedy"], done.err
    for text in shown:
        assert text in done.err, done.err
    assert "Traceback" not in done.out + done.err
    assert 'File "' not in done.err


class World:
    """A coordinator with people, four sites and a release in review; made once for all tests here."""

    def __init__(self, work: Path) -> None:
        import clinics
        from demonstration import Demonstration
        from rich.console import Console

        self.work = work
        scenario = clinics.scenario(None, work)
        spec = yaml.safe_load(scenario.study.read_text())
        spec["training"]["rounds"] = 2
        short = work / "short"
        short.mkdir()
        shutil.copy(scenario.dictionary, short)
        (short / "study.yaml").write_text(yaml.safe_dump(spec))
        scenario = clinics.Scenario(scenario.clinics, scenario.dictionary, short / "study.yaml", scenario.intended_use)
        (work / "out").mkdir()
        self.said = (work / "said").open("w")
        self.demo = Demonstration(scenario, work, work / "out", Console(file=self.said))
        try:
            self.demo.set_up()
            self.study = self.demo.propose()
            self.demo.train(self.study)
            use = scenario.intended_use
            arguments = (self.study, "--intended-use", use, "--use-mode", "research")
            self.release = str(self.demo.person("ada", "release", "draft", *arguments)["release"])
            self.demo.person("ada", "release", "submit", self.release)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        self.demo.stop()
        self.said.close()

    @property
    def site(self) -> Path:
        """The first clinic's home."""
        return next(iter(self.demo.sites.values()))

    def invite(self, name: str) -> str:
        return str(self.demo.admin("sites", "invite", name)["token"])

    def as_person(self, name: str, *arguments: object) -> Done:
        passphrase = self.demo.passphrases[name]
        return run("cloister", *arguments, "--home", self.demo.people[name], CLOISTER_PASSPHRASE=passphrase)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("world"))
    yield world
    world.end()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A small table and its dictionary, both good."""
    table, dictionary = tmp_path / "table.csv", tmp_path / "dictionary.yaml"
    table.write_text(ROWS)
    dictionary.write_text(DICTIONARY)
    return table, dictionary


# Tokens and sites


def _used(world: World, tmp_path: Path) -> str:
    token = world.invite("site-used")
    assert run("cloister-site", "enrol", token, "--papers", papers_file(), "--home", tmp_path / "first").code == 0
    return token


def _expired(world: World, _: Path) -> str:
    token = world.invite("site-late")
    with closing(sqlite3.connect(world.demo.coordinator / "coordinator.db", timeout=10)) as database, database:
        changed = database.execute(
            "UPDATE site_invitation SET expires_at = '2020-01-01T00:00:00Z' WHERE secret_hash = ?",
            (secret_hash(Token.from_text(token).secret),),
        )
        assert changed.rowcount == 1
    return token


def _another_sites(world: World, _: Path) -> str:
    world.invite("site-other")
    return Token.from_text(world.invite("site-own")).model_copy(update={"name": "site-other"}).to_text()


def _wrong_authority(world: World, _: Path) -> str:
    return Token.from_text(world.invite("site-fooled")).model_copy(update={"ca": "sha256:" + "0" * 64}).to_text()


def _a_persons(world: World, _: Path) -> str:
    return str(world.demo.admin("people", "add", "eve", "--role", "auditor")["token"])


def _cut_short(world: World, _: Path) -> str:
    return world.invite("site-short")[:-4]


def _nobody_there(world: World, _: Path) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        return Token.from_text(world.invite("site-lost")).model_copy(update={"address": address}).to_text()


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (_used, "used already"),
        (_expired, "expired"),
        (_another_sites, "token"),
        (_wrong_authority, "CA is not the one that the token names"),
        (_a_persons, "for a person"),
        (_cut_short, "not a Cloister token"),
        (_nobody_there, "can't be reached"),
    ],
)
def test_a_token_that_does_not_enrol(
    world: World, tmp_path: Path, make: Callable[[World, Path], str], shown: str
) -> None:
    token = make(world, tmp_path)
    before = listing(tmp_path)
    refused(run("cloister-site", "enrol", token, "--papers", papers_file(), "--home", tmp_path / "home"), shown)
    assert listing(tmp_path) == before


def test_a_persons_token_is_used_once_and_by_that_person(world: World, tmp_path: Path) -> None:
    token = str(world.demo.admin("people", "add", "fay", "--role", "auditor")["token"])
    secret = {"CLOISTER_PASSPHRASE": "a long enough passphrase"}
    assert run("cloister", "login", token, "--home", tmp_path / "fay", **secret).code == 0
    before = listing(tmp_path)
    refused(run("cloister", "login", token, "--home", tmp_path / "again", **secret), "used already")
    refused(run("cloister", "login", world.invite("site-x"), "--home", tmp_path / "site", **secret), "for a site")
    refused(run("cloister", "login", token, "--home", tmp_path / "weak", CLOISTER_PASSPHRASE="short"), "shorter than")
    assert listing(tmp_path) == before


def test_a_home_that_is_in_use_is_not_enrolled_over(world: World) -> None:
    before = listing(world.site / "keys")
    refused(
        run("cloister-site", "enrol", world.invite("site-over"), "--papers", papers_file(), "--home", world.site),
        "in use",
    )
    assert listing(world.site / "keys") == before


def test_a_revoked_site_is_refused_at_its_next_request(world: World, tmp_path: Path) -> None:
    home = tmp_path / "gone"
    assert run("cloister-site", "enrol", world.invite("site-gone"), "--papers", papers_file(), "--home", home).code == 0
    assert run("cloister-site", "studies", "list", "--home", home).code == 0
    assert run("cloister-coordinator", "sites", "revoke", "site-gone", "--home", world.demo.coordinator).code == 0
    before = listing(home)
    refused(run("cloister-site", "studies", "list", "--home", home), "revoked")
    assert listing(home) == before


# The coordinator


def test_a_port_in_use(world: World, tmp_path: Path) -> None:
    home = tmp_path / "second"
    address = f"127.0.0.1:{world.demo.port}"
    assert run("cloister-coordinator", "init", "--address", address, "--home", home).code == 0
    before = listing(home)
    refused(run("cloister-coordinator", "serve", "--home", home), f"Port {world.demo.port}", "in use")
    assert listing(home) == before
    refused(run("cloister-coordinator", "serve", "--home", world.demo.coordinator), "already being served")


# Approvals and releases


def test_approval_by_the_submitter_or_twice_by_one_person(world: World) -> None:
    arguments = ("release", "approve", world.release, "--reason", "Seen.", "--yes")
    before = listing(world.demo.people["ada"])
    refused(world.as_person("ada", *arguments))
    assert listing(world.demo.people["ada"]) == before
    assert world.as_person("bo", *arguments).code == 0
    before = listing(world.demo.people["bo"])
    refused(world.as_person("bo", *arguments), "already")
    assert listing(world.demo.people["bo"]) == before
    refused(world.as_person("ada", "release", "seal", world.release, "--wait", 0))
    shown = world.demo.person("di", "release", "show", world.release)
    assert [(vote["person"], vote["decision"]) for vote in shown["approvals"]] == [("bo", "approve")]


@pytest.fixture(scope="module")
def bundle(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sealed release as a file."""
    for name in ("bo", "cy"):
        world.as_person(name, "release", "approve", world.release, "--reason", "Seen.", "--yes")
    world.demo.account_for_disclosures(world.release)
    assert world.as_person("ada", "release", "seal", world.release, "--wait", 60).code == 0
    home = tmp_path_factory.mktemp("first") / "home"
    before = listing(world.site)
    refused(run("cloister-site", "releases", "install", world.release, "--home", world.site), "deployment.care")
    assert {name for name in listing(world.site) if name.startswith("releases/")} <= before.keys()
    world.demo.say_deployment(world.site.name, world.study)
    shutil.copytree(world.site, home, symlinks=True)
    assert run("cloister-site", "releases", "install", world.release, "--home", home).code == 0
    current = (home / "releases" / "current").resolve()
    path = tmp_path_factory.mktemp("bundle") / "release.tar"
    path.write_bytes(pack({name: (current / name).read_bytes() for name in BUNDLE_FILES}, BUNDLE_FILES))
    return path


def test_a_deployment_that_is_none(world: World) -> None:
    said = {"--use": "research", "--log-days": "200", "--coordinator-country": "DE"}
    for option, value in (("--use", "sport"), ("--log-days", "-1"), ("--coordinator-country", "Germany")):
        arguments = [word for pair in {**said, option: value}.items() for word in pair]
        refused(run("cloister-site", "deployment", "set", world.study, *arguments, "--home", world.site), option)


def test_an_installed_release_whose_files_were_changed_is_not_served(
    world: World, bundle: Path, tmp_path: Path
) -> None:
    home = tmp_path / "site"
    shutil.copytree(world.site, home, symlinks=True)
    install = ("cloister-site", "releases", "install", world.release, "--file", bundle, "--home", home)
    assert run(*install).code == 0
    assert run("cloister-site", "deployment", "show", "--home", home).code == 0
    card = (home / "releases" / "current").resolve() / "model_card.md"
    card.write_bytes(card.read_bytes() + b"Good for everyone.\n")
    refused(run("cloister-site", "serve", "--home", home), "not sealed")
    refused(run("cloister-site", "releases", "rollback", world.release, "--home", home), "not sealed")
    shown = run("cloister-site", "deployment", "show", "--json", "--home", home)
    assert (shown.code, json.loads(shown.out)["gate"]["outcome"]) == (1, "deny")


def test_a_serving_port_in_use_at_a_site(world: World, bundle: Path, tmp_path: Path) -> None:
    home = tmp_path / "site"
    shutil.copytree(world.site, home, symlinks=True)
    run("cloister-site", "releases", "install", world.release, "--file", bundle, "--home", home)
    refused(run("cloister-site", "serve", "--port", world.demo.port, "--home", home), "in use")


def test_a_tampered_release_bundle_is_not_installed(world: World, bundle: Path, tmp_path: Path) -> None:
    true = bundle.read_bytes()
    parts = unpack(true, BUNDLE_FILES)
    wrong = tmp_path / "wrong.tar"
    before = listing(world.site / "releases")

    def tampered(name: str, change: Callable[[bytes], bytes]) -> bytes:
        return pack({**parts, name: change(parts[name])}, BUNDLE_FILES)

    def flipped(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[len(changed) // 2] ^= 1
        return bytes(changed)

    changed = ("model.onnx", "plan.dsse.json", "release.tlog-proof")  # every file and byte: test_trusted_release
    for data in (*(tampered(name, flipped) for name in changed), true[: len(true) // 2], os.urandom(5000)):
        wrong.write_bytes(data)
        refused(run("cloister-site", "releases", "install", world.release, "--file", wrong, "--home", world.site))
        assert listing(world.site / "releases") == before
    absent = tmp_path / "absent.tar"
    refused(
        run("cloister-site", "releases", "install", world.release, "--file", absent, "--home", world.site), "absent"
    )
    other = run("cloister-site", "releases", "install", "another-r1", "--file", bundle, "--home", world.site)
    refused(other, "another-r1")
    assert listing(world.site / "releases") == before


def test_a_tampered_audit_bundle_is_not_verified(world: World, tmp_path: Path) -> None:
    true = tmp_path / "evidence.tar"
    assert world.as_person("di", "audit", "export", true).code == 0
    assert run("cloister", "audit", "verify", true).code == 0
    data = bytearray(true.read_bytes())
    data[data.index(b"site:clinic-a")] ^= 1
    wrong = tmp_path / "wrong.tar"
    for changed in (bytes(data), true.read_bytes()[:-1024], b"", os.urandom(5000)):
        wrong.write_bytes(changed)
        refused(run("cloister", "audit", "verify", wrong), "wrong.tar")
    refused(run("cloister", "audit", "verify", tmp_path / "absent.tar"), "absent.tar")
    refused(world.as_person("di", "audit", "export", true), "evidence.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evidence.tar", "wrong.tar"]


# Studies


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)


def _spec(change: Callable[[str], str]) -> Callable[[str], bytes]:
    return lambda text: change(text).encode()


STUDIES: dict[str, tuple[Callable[[str], bytes], tuple[str, ...]]] = {
    "aliases": (_spec(lambda _: BOMB), ("line 1",)),
    "duplicate key": (_spec(lambda text: text + "title: again\n"), ("line ", "title", "twice")),
    "two megabytes": (_spec(lambda text: text + "#" * (2 * MIB)), ("at most",)),
    "binary": (lambda _: b"\x7fELF\0\0" + os.urandom(4096), ("binary",)),
    "not UTF-8": (lambda text: text.encode() + b"\xff\xfe", ("remedy",)),
    "empty": (lambda _: b"", ("remedy",)),
    "a tag that makes objects": (_spec(lambda text: text + "x: !!python/object/apply:os.system [id]\n"), ("line ",)),
    "deep": (lambda _: b"[" * 20_000, ("remedy",)),
    "missing field": (_spec(lambda text: text.replace("minimum_sites: 3\n", "")), ("minimum_sites", "Add the field")),
    "wrong type": (
        _spec(lambda text: text.replace("minimum_sites: 3", "minimum_sites: three")),
        ("line ", "minimum_sites", "Give a number"),
    ),
    "unknown field": (_spec(lambda text: text + "minimum_site: 3\n"), ("line ", "did you mean minimum_sites?")),
    "out of range": (_spec(lambda text: text.replace("epsilon: 1.0", "epsilon: -1.0", 1)), ("line ", "epsilon")),
    "not a number": (_spec(lambda text: text.replace("clip: 0.25", "clip: .nan")), ("line ", "not finite")),
    "no such dictionary": (
        _spec(lambda text: text.replace("dictionary: dictionary.yaml", "dictionary: nowhere.yaml")),
        ("line ", "nowhere.yaml"),
    ),
}


@pytest.mark.parametrize("kind", STUDIES)
def test_a_bad_study_is_told_by_line_field_and_remedy(world: World, tmp_path: Path, kind: str) -> None:
    change, shown = STUDIES[kind]
    shutil.copy(world.demo.scenario.dictionary, tmp_path / "dictionary.yaml")
    source = Path(__file__).resolve().parents[2] / "packaging" / "demo" / "wisconsin" / "study.yaml"
    spec = tmp_path / "study.yaml"
    spec.write_bytes(change(source.read_text()))
    before = listing(world.demo.people["ada"])
    refused(world.as_person("ada", "study", "validate", spec), "study.yaml", *shown)
    if kind in ("aliases", "missing field"):  # both commands read the file with the same code
        refused(world.as_person("ada", "study", "propose", spec), "study.yaml", *shown)
    assert listing(world.demo.people["ada"]) == before


def test_a_study_that_is_not_there_or_exists_already(world: World, tmp_path: Path) -> None:
    refused(world.as_person("ada", "study", "validate", tmp_path / "absent.yaml"), "absent.yaml")
    refused(world.as_person("ada", "study", "validate", tmp_path))
    refused(world.as_person("ada", "study", "status", "nowhere"), "nowhere")
    refused(world.as_person("ada", "study", "propose", world.demo.scenario.study), "already")
    refused(world.as_person("bo", "study", "propose", world.demo.scenario.study))
    refused(world.as_person("ada", "study", "start", world.study))


# Dictionaries and tables


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"", "dictionary.yaml"),
        (b"\x00\x01" * 100, "dictionary.yaml"),
        (BOMB.encode(), "line 1"),
        (b"#" * 2 * MIB, "limit"),
        (DICTIONARY.replace("scale: 20", "scale: 20, scale: 30").encode(), "line 6"),
        (DICTIONARY.replace("minimum: 0, maximum: 100", "minimum: 100, maximum: 0").encode(), "line 6"),
        (DICTIONARY.replace("role: feature", "role: features").encode(), "line 6"),
        (DICTIONARY.replace("label: {", "labels: {").encode(), "label"),
    ],
)
def test_a_bad_dictionary(world: World, files: tuple[Path, Path], content: bytes, shown: str) -> None:
    table, dictionary = files
    dictionary.write_bytes(content)
    before = listing(world.site / "snapshots")
    add = ("datasets", "add", table, "--dictionary", dictionary, "--home", world.site)
    refused(run("cloister-site", *add), shown)
    assert listing(world.site / "snapshots") == before


TABLES: dict[str, tuple[Callable[[str], bytes], tuple[str, ...]]] = {
    "missing column": (_spec(lambda text: text.replace("pid,a,num", "pid,b,num")), ("table.csv", "lacks column a")),
    "out of range": (_spec(lambda text: text.replace("p3,3,1", "p3,300,1")), ("table.csv", "row 4", "column a")),
    "NaN": (_spec(lambda text: text.replace("p3,3,1", "p3,NaN,1")), ("table.csv", "row 4", "column a")),
    "one patient twice, with two outcomes": (
        _spec(lambda text: text.replace("p3,3,1", "p2,3,1")),
        ("table.csv", "row 4", "both outcomes"),
    ),
    "a value too few": (_spec(lambda text: text.replace("p3,3,1", "p3,3")), ("row 4",)),
    "binary": (lambda _: b"\x7fELF\0\0" + os.urandom(100_000), ("remedy",)),
    "a patient's name where a number belongs": (
        _spec(lambda text: text.replace("p3,3,1", "p3,Ivanova,1")),
        ("row 4", "column a"),
    ),
    "empty": (lambda _: b"", ("remedy",)),
    "a head alone": (lambda _: b"pid,a,num\n", ("remedy",)),
    "too few patients": (lambda text: "\n".join(text.splitlines()[:9]).encode(), ("at most 10 patients",)),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_bad_table(world: World, files: tuple[Path, Path], kind: str) -> None:
    table, dictionary = files
    change, shown = TABLES[kind]
    table.write_bytes(change(ROWS))
    before = listing(world.site / "snapshots")
    done = run("cloister-site", "datasets", "add", table, "--dictionary", dictionary, "--home", world.site)
    refused(done, *shown)
    assert "Ivanova" not in done.out + done.err, "no value of a patient in a message"
    assert listing(world.site / "snapshots") == before
    with closing(sqlite3.connect(f"file:{world.site / 'site.db'}?mode=ro", uri=True)) as database:
        assert database.execute("SELECT name FROM snapshot").fetchall() == [("wisconsin",)]


def test_a_line_of_a_hundred_megabytes_takes_little_memory(
    world: World, files: tuple[Path, Path], tmp_path: Path
) -> None:
    table, dictionary = files
    add = ("datasets", "add", table, "--dictionary", dictionary, "--home", world.site, "--dry-run")
    usual, base = peak(tmp_path, "site_agent.cli", *add)
    assert usual.code == 0, usual.err
    with table.open("ab") as file:
        for _ in range(100):
            file.write(b"1" * MIB)
    done, largest = peak(tmp_path, "site_agent.cli", *add)
    refused(done, "line 82")
    assert largest < base + 16 * MIB


# A full disk


def test_a_disk_that_takes_no_more_is_told_and_leaves_nothing(
    world: World, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """The kernel lets these processes write 2000 bytes to any file: enough for keys, not for a database or data."""
    table, dictionary = files
    limit = 2000
    site = tmp_path / "site"
    shutil.copytree(world.site, site, symlinks=True)
    before = listing(tmp_path)
    # as a person's own temporary files would be
    refused(run("cloister-coordinator", "init", "--address", "127.0.0.1:1", "--home", tmp_path / "new", limit=limit))
    refused(
        run(
            "cloister-site",
            "enrol",
            world.invite("site-full"),
            "--papers",
            papers_file(),
            "--home",
            tmp_path / "full",
            limit=limit,
        )
    )
    add = ("datasets", "add", table, "--dictionary", dictionary, "--home", site)
    refused(run("cloister-site", *add, limit=limit))
    passphrase = {"CLOISTER_PASSPHRASE": world.demo.passphrases["di"]}
    export = ("audit", "export", tmp_path / "evidence.tar", "--home", world.demo.people["di"])
    refused(run("cloister", *export, limit=limit, **passphrase))
    refused(run("cloister", *export[:2], tmp_path / "evidence", *export[3:], limit=limit, **passphrase))
    assert listing(tmp_path) == before


FULL = """
set -eu
mount -t tmpfs -o size=$SIZE tmpfs "$DISK"
cp -a "$SOURCE" "$DISK/home"
find "$DISK" -type f ! -name '*-wal' ! -name '*-shm' ! -name '*.lock' | sort > "$LISTS/before"
head -c 1G /dev/zero > "$DISK/filler" 2>/dev/null || true
code=0; "$@" || code=$?
rm "$DISK/filler"
find "$DISK" -type f ! -name '*-wal' ! -name '*-shm' ! -name '*.lock' | sort > "$LISTS/after"
exit $code
"""


@pytest.fixture
def full_disk(tmp_path: Path) -> Callable[..., Done]:
    """Run a command while the file system that `source` was copied to has not a byte left."""
    unshare = shutil.which("unshare")
    disk, lists = tmp_path / "disk", tmp_path / "lists"
    disk.mkdir()
    lists.mkdir()
    alone = (unshare or "", "--mount", "--map-root-user")
    probe = [*alone, "mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if unshare is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("a file system of the test's own can't be mounted here")

    def fill(source: Path, command: str, *arguments: object) -> Done:
        settings = {"DISK": str(disk), "LISTS": str(lists), "SOURCE": str(source), "SIZE": "24m"}
        done = run(command, *arguments, wrap=(*alone, "sh", "-c", FULL, "sh"), **settings)
        assert (lists / "before").read_text() == (lists / "after").read_text()
        return done

    return fill


def test_a_disk_without_a_free_byte(
    world: World, files: tuple[Path, Path], full_disk: Callable[..., Done], tmp_path: Path
) -> None:
    table, dictionary = files
    home = tmp_path / "disk" / "home"
    done = full_disk(world.site, "cloister-site", "datasets", "add", table, "--dictionary", dictionary, "--home", home)
    refused(done, "full")
    empty = tmp_path / "empty"
    empty.mkdir()
    init = ("init", "--address", "127.0.0.1:1", "--home", home / "new")
    refused(full_disk(empty, "cloister-coordinator", *init), "space")


# PostgreSQL


def test_a_coordinator_on_postgresql(postgresql_url: str, tmp_path: Path) -> None:
    from processes import Service, free_port

    port, home = free_port(), tmp_path / "coordinator"
    at = ("--home", home)
    init = ("init", "--address", f"127.0.0.1:{port}", "--database", postgresql_url, "--json", *at)
    made = run("cloister-coordinator", *init)
    assert made.code == 0, made.err
    assert not (home / "coordinator.db").exists()
    service = Service(tmp_path / "log", "cloister-coordinator", "serve", *at)
    try:
        service.wait_for_port(port)
        _enrols(home, tmp_path, made)
        service.check()
    finally:
        service.stop()
    second = ("init", "--address", "127.0.0.1:1", "--database", postgresql_url, "--home", tmp_path / "second")
    refused(run("cloister-coordinator", *second), "not empty")
    assert not (tmp_path / "second").exists()


def _enrols(home: Path, tmp_path: Path, made: Done) -> None:
    at, secret = ("--home", home), {"CLOISTER_PASSPHRASE": "a long enough passphrase"}
    added: dict[str, Any] = json.loads(
        run("cloister-coordinator", "people", "add", "ada", "--role", "auditor", "--json", *at).out
    )
    for name, token in (("administrator", json.loads(made.out)["token"]), ("ada", added["token"])):
        done = run("cloister", "login", token, "--home", tmp_path / name, **secret)
        assert done.code == 0, done.err
    invited = json.loads(run("cloister-coordinator", "sites", "invite", "clinic-a", "--json", *at).out)["token"]
    said = ("--country", "DE", "--contact", "it@example.org", "--security", "Measures of 2026")
    assert run("cloister-coordinator", "governance", "set", *said, "--backup-tested", "2026-11-01", *at).code == 0
    done = run("cloister-site", "enrol", invited, "--papers", papers_file(), "--home", tmp_path / "site")
    assert done.code == 0, done.err
    assert run("cloister-site", "log", "check", "--home", tmp_path / "site").code == 0
    refused(
        run("cloister-site", "enrol", invited, "--papers", papers_file(), "--home", tmp_path / "again"), "used already"
    )
    exported = run("cloister", "audit", "export", tmp_path / "bundle.tar", "--home", tmp_path / "ada", **secret)
    assert exported.code == 0, exported.err
    assert run("cloister", "audit", "verify", tmp_path / "bundle.tar").code == 0
    listed = json.loads(run("cloister-coordinator", "sites", "list", "--json", *at).out)
    assert [(row["name"], row["status"]) for row in listed] == [("clinic-a", "active")]
