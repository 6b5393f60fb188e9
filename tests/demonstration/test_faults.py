"""Power cuts in a running federation, on real processes: the coordinator's, one site's, two sites', and a site's
between its charge and its answer. One federation serves all four studies; each begins with everything running.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.demonstration

DEMO = Path(__file__).resolve().parents[2] / "packaging" / "demo"
ROUND_DEADLINE, KEY_DEADLINE = 15, 30  # a worker starts in the first round: some seconds on a busy machine
WAITS_AT_MOST = 10
PATIENCE = 240.0
SITES = ("clinic-a", "clinic-b", "clinic-c", "clinic-d")
MINIMUM = 3


class Federation:
    """A demonstration whose processes can be killed, looked at from outside: databases and /proc."""

    def __init__(self, work: Path) -> None:
        import clinics
        from demonstration import Demonstration
        from rich.console import Console

        class Impatient(Demonstration):
            def admin(self, *arguments: object) -> Any:
                """Short deadlines, before the coordinator is served for the first time."""
                answer = super().admin(*arguments)
                if arguments[0] == "init":
                    settings = self.coordinator / "coordinator.toml"
                    kept = [
                        line
                        for line in settings.read_text().splitlines()
                        if "_deadline" not in line and not line.startswith("patience")
                    ]
                    kept += [f"round_deadline = {ROUND_DEADLINE}", f"key_deadline = {KEY_DEADLINE}"]
                    kept += [f"patience = {WAITS_AT_MOST}"]
                    settings.write_text("\n".join(kept) + "\n")
                return answer

        self.said = (work / "said").open("w")
        out = work / "out"
        out.mkdir()
        self.demo = Impatient(clinics.scenario(None, work), work, out, Console(file=self.said))
        self.demo.set_up()
        names = ["coordinator", *(f"agent-{site}" for site in SITES)]
        self.running = dict(zip(names, self.demo.services, strict=True))

    def end(self) -> None:
        self.demo.stop()
        self.said.close()

    def kill(self, name: str) -> None:
        """SIGKILL, as a power cut would."""
        service = self.running.pop(name)
        service.kill()
        self.demo.services.remove(service)

    def restart(self, name: str) -> None:
        """What the operator or a service manager does."""
        demo = self.demo
        if name == "coordinator":
            service = demo.start("coordinator", "cloister-coordinator", "serve", "--home", demo.coordinator)
            service.wait_for_port(demo.port)
        else:
            service = demo.start(name, "cloister-site", "agent", "--home", demo.sites[name.removeprefix("agent-")])
        self.running[name] = service

    def heal(self) -> None:
        """Everything runs again."""
        for name in ("coordinator", *(f"agent-{site}" for site in SITES)):
            if name not in self.running:
                self.restart(name)

    def begin(self, study: str, *, rounds: int, retries: int, model: dict[str, Any] | None = None) -> None:
        """A short study of its own name: proposed, granted by all, started."""
        demo, folder = self.demo, self.demo.work / study
        folder.mkdir()
        shutil.copy(demo.scenario.dictionary, folder)
        spec = yaml.safe_load(demo.scenario.study.read_text())
        spec["study"] = study
        spec["training"]["rounds"], spec["privacy"]["retries"] = rounds, retries
        spec["model"] = model or spec["model"]
        assert spec["minimum_sites"] == MINIMUM
        (folder / "study.yaml").write_text(yaml.safe_dump(spec))
        demo.person("ada", "login")
        demo.assess(demo.person("ada", "study", "validate", folder / "study.yaml"))
        demo.person("ada", "study", "propose", folder / "study.yaml")
        for site in SITES:
            demo.site(site, "studies", "review", study)
            demo.site(site, "studies", "grant", study, "--yes")
        demo.person("ada", "study", "start", study)

    # What has happened, read from the parties' own databases

    def coordinator_rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        return _rows(self.demo.coordinator / "coordinator.db", query, *values)

    def site_rows(self, site: str, query: str, *values: object) -> list[sqlite3.Row]:
        return _rows(self.demo.sites[site] / "site.db", query, *values)

    def state(self, study: str) -> str:
        (row,) = self.coordinator_rows("SELECT state FROM study WHERE id = ?", study)
        return str(row["state"])

    def committed(self, study: str) -> int:
        query = "SELECT COUNT(*) AS n FROM study_round WHERE study = ? AND phase = 'train'"
        return int(self.coordinator_rows(query, study)[0]["n"])

    def attempts(self, study: str) -> list[sqlite3.Row]:
        query = "SELECT * FROM round_attempt WHERE study = ? ORDER BY sequence"
        return self.coordinator_rows(query, study)

    def ended(self, study: str) -> str:
        """The state the study ends in."""
        return str(
            until(
                lambda: (state := self.state(study)) in {"candidate", "failed", "stopped"} and state,
                lambda: f"{study} to end: {self.state(study)}, round {self.committed(study)}\n{self.logs()}",
            )
        )

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self.demo.work.glob("*.log"))

    def check_ledgers(self, study: str) -> None:
        """Each site's ledger counts every attempt that it consumed once, and no round was committed twice."""
        attempts = self.attempts(study)
        trained = [row for row in attempts if row["phase"] == "train"]
        done = [(row["phase"], row["round"]) for row in attempts if row["status"] == "committed"]
        assert len(done) == len(set(done)), "a round was committed twice"
        for site in SITES:
            consumed = self.site_rows(site, "SELECT * FROM consumed_attempt WHERE study = ?", study)
            keys = [(row["phase"], row["round"], row["attempt"]) for row in consumed]
            assert len(keys) == len(set(keys)), site
            query = "SELECT steps_charged, steps_allowed FROM cohort_charge WHERE study = ? AND held_out = 0"
            ((charged, allowed),) = self.site_rows(site, query, study)
            assert charged == sum(phase == "train" for phase, _, _ in keys), site
            assert charged <= allowed, site
            gave = {
                (row["round"], row["attempt"])
                for row in trained
                if row["status"] != "open" and site in json.loads(row["contributed"])
            }
            assert gave <= {(number, attempt) for phase, number, attempt in keys if phase == "train"}, site

    def charged(self, study: str, site: str) -> int:
        query = "SELECT steps_charged FROM cohort_charge WHERE study = ? AND held_out = 0"
        return int(self.site_rows(site, query, study)[0]["steps_charged"])


def _rows(database: Path, query: str, *values: object) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(query, values).fetchall()


def until(condition: Callable[[], Any], what: Callable[[], str], seconds: float = PATIENCE, pause: float = 0.05) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what()}"
        time.sleep(pause)
    return value


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue  # it has ended since
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(folder.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    federation = Federation(tmp_path_factory.mktemp("faults"))
    try:
        yield federation
    finally:
        federation.end()


@pytest.fixture
def federation(whole: Federation) -> Federation:
    whole.heal()
    return whole


def test_a_killed_coordinator_resumes_and_no_patient_is_charged_twice(federation: Federation) -> None:
    study, rounds = "coordinator-killed", 8
    federation.begin(study, rounds=rounds, retries=3)
    until(lambda: federation.committed(study) >= 2, lambda: f"two rounds: {federation.logs()}")
    before = children(federation.running["coordinator"].pid)
    assert len(before) == 2, "the SuperLink and the driver"
    federation.kill("coordinator")
    until(lambda: not any(map(alive, before)), lambda: "the SuperLink and the driver to end", seconds=10)
    left_at = federation.committed(study)
    assert 2 <= left_at < rounds
    records = federation.coordinator_rows("SELECT * FROM study_round WHERE study = ? ORDER BY round", study)
    federation.restart("coordinator")

    assert federation.ended(study) == "candidate"

    now = federation.coordinator_rows("SELECT * FROM study_round WHERE study = ? ORDER BY phase DESC, round", study)
    assert [tuple(row) for row in now[:left_at]] == [tuple(row) for row in records], "what was committed stays"
    assert [(row["phase"], row["round"]) for row in now] == [("train", n) for n in range(1, rounds + 1)] + [
        ("evaluate", 1)
    ]
    federation.check_ledgers(study)
    lost = [row for row in federation.attempts(study) if row["phase"] == "train" and row["status"] == "abandoned"]
    assert len(lost) <= 1
    for site in SITES:
        assert rounds <= federation.charged(study, site) <= rounds + len(lost), site


def test_a_killed_site_is_left_out_by_name_and_invited_again_when_it_is_back(federation: Federation) -> None:
    study, rounds, gone = "site-killed", 24, "clinic-d"
    federation.begin(study, rounds=rounds, retries=8)
    until(lambda: federation.committed(study) >= 1 and _open_attempt(federation, study), lambda: "an open round")
    federation.kill(f"agent-{gone}")

    def told() -> list[sqlite3.Row]:
        query = "SELECT * FROM study_round WHERE study = ? AND phase = 'train' ORDER BY round"
        return [row for row in federation.coordinator_rows(query, study) if gone in json.loads(row["excluded"])]

    first = until(told, lambda: f"a round without {gone}: {federation.logs()}")[0]
    assert json.loads(first["contributed"]) == [site for site in SITES if site != gone]
    assert json.loads(first["excluded"])[gone] in {"no-answer", "offline"}
    assert (first["attempts"], json.loads(first["invited"])) == (2, list(SITES))
    federation.restart(f"agent-{gone}")
    assert federation.ended(study) == "candidate"

    trained = [row for row in federation.attempts(study) if row["phase"] == "train"]
    after = [row for row in trained if row["round"] > first["round"] and gone in json.loads(row["contributed"])]
    assert after, "it was invited again and contributed"
    committed = [row for row in trained if row["status"] == "committed"]
    assert [row["round"] for row in committed] == list(range(1, rounds + 1))
    assert all(len(json.loads(row["contributed"])) >= MINIMUM for row in committed)
    told_people = federation.demo.person("ada", "study", "rounds", study)
    (shown,) = [row for row in told_people if row["phase"] == "train" and row["round"] == first["round"]]
    assert shown["excluded"] == json.loads(first["excluded"])
    federation.check_ledgers(study)
    others = [federation.charged(study, site) for site in SITES if site != gone]
    assert federation.charged(study, gone) < min(others), "who was away was not charged"
    assert max(others) == len(trained), "a lost attempt stays charged"


def test_below_the_minimum_the_study_fails_and_says_so(federation: Federation) -> None:
    study, rounds = "two-sites-killed", 8
    federation.begin(study, rounds=rounds, retries=4)
    until(lambda: federation.committed(study) >= 1 and _open_attempt(federation, study), lambda: "an open round")
    for gone in ("clinic-c", "clinic-d"):
        federation.kill(f"agent-{gone}")
    assert federation.ended(study) == "failed"

    status = federation.demo.person("ada", "study", "status", study)
    assert (status["reason"], status["candidate"]) == ("too-few-sites", None)
    assert "at least 3" in status["detail"]
    assert 1 <= status["rounds"]["committed"] < rounds
    for row in federation.demo.person("ada", "study", "rounds", study):
        assert len(row["contributed"]) >= MINIMUM, "no round of a subset counts"
    last = federation.attempts(study)[-1]
    assert last["status"] == "abandoned"
    from processes import DemonstrationFailed

    use = federation.demo.scenario.intended_use
    with pytest.raises(DemonstrationFailed, match=r"candidate|failed"):
        federation.demo.person("ada", "release", "draft", study, "--intended-use", use, "--use-mode", "research")
    federation.check_ledgers(study)


def test_a_site_killed_between_charge_and_answer_never_computes_that_attempt_again(federation: Federation) -> None:
    study, rounds, site = "killed-in-between", 12, "clinic-a"
    federation.begin(study, rounds=rounds, retries=4)
    charged = _stop_between(federation, study, site)
    federation.kill("coordinator")
    federation.kill(f"agent-{site}")
    number, attempt = charged
    federation.restart(f"agent-{site}")
    federation.restart("coordinator")
    assert federation.ended(study) == "candidate"

    query = "SELECT packet FROM consumed_attempt WHERE study = ? AND phase = 'train' AND round = ? AND attempt = ?"
    ((packet,),) = federation.site_rows(site, query, study, number, attempt)
    assert packet is None, "nothing was computed for it after the crash"
    (asked,) = [
        row
        for row in federation.attempts(study)
        if (row["phase"], row["round"], row["attempt"]) == ("train", number, attempt)
    ]
    assert asked["status"] == "abandoned"
    assert json.loads(asked["excluded"])[site] == "refused:consumed"
    federation.check_ledgers(study)
    trained = Counter(row["status"] for row in federation.attempts(study) if row["phase"] == "train")
    assert trained["committed"] == rounds
    assert federation.charged(study, site) >= 1


def test_large_contributions_go_on_from_disk_after_an_agent_and_the_coordinator_were_killed(
    federation: Federation,
) -> None:
    study, rounds, site = "large-model", 2, "clinic-b"
    federation.begin(study, rounds=rounds, retries=3, model={"architecture": "mlp", "hidden": [1200, 600]})
    uploads = federation.demo.coordinator / "uploads"

    def chunks() -> list[Path]:
        return [path for path in uploads.rglob("*") if path.name.isdecimal()] if uploads.exists() else []

    until(chunks, lambda: f"a first chunk: {federation.logs()}", pause=0.001)
    federation.kill("coordinator")
    federation.kill(f"agent-{site}")
    kept = {path: path.read_bytes() for path in chunks()}
    before = federation.site_rows(site, "SELECT attempt, vector FROM stored_vector")
    federation.restart(f"agent-{site}")
    federation.restart("coordinator")
    assert federation.ended(study) == "candidate"

    federation.check_ledgers(study)
    assert kept, "it was killed with chunks on its disk"
    assert chunks() == [], "and none is left when the attempt is over"
    first = next(row for row in federation.attempts(study) if row["phase"] == "train")
    assert len(before) <= 1
    if len(before) == 1:  # the vector was on the site's disk: those very bytes were collected, at one charge
        assert first["status"] == "committed", federation.logs()
        assert json.loads(first["contributed"]) == list(SITES)
    parameters = len(before[0]["vector"]) // 4 if before else 0
    assert parameters == 0 or parameters > 700_000
    shown = federation.demo.person("ada", "study", "rounds", study)
    assert [row["phase"] for row in shown] == ["train", "train", "evaluate"]


def _open_attempt(federation: Federation, study: str) -> bool:
    return any(row["status"] == "open" for row in federation.attempts(study))


def _stop_between(federation: Federation, study: str, site: str) -> tuple[int, int]:
    """Stop the agent while an attempt is charged and not answered: (round, attempt). What is seen there a moment too
    late goes on, and the next round is watched."""
    pid = federation.running[f"agent-{site}"].pid
    database = federation.demo.sites[site] / "site.db"
    waiting = (
        "SELECT round, attempt FROM consumed_attempt WHERE study = ? AND phase = 'train' AND packet IS NULL "
        "ORDER BY round DESC, attempt DESC LIMIT 1"
    )
    newest = "SELECT MAX(round) FROM consumed_attempt WHERE study = ? AND phase = 'train'"
    deadline = time.monotonic() + PATIENCE
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        while time.monotonic() < deadline:
            row = connection.execute(waiting, (study,)).fetchone()
            if row is None or row[0] < connection.execute(newest, (study,)).fetchone()[0]:
                continue  # answers of rounds that are over are dropped: only the newest may be waiting
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.05)
            if connection.execute(waiting, (study,)).fetchone() == row:
                return int(row[0]), int(row[1])
            os.kill(pid, signal.SIGCONT)
    raise AssertionError("no attempt was met between its charge and its answer")
