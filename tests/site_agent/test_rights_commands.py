"""`cloister-site cohort …` and `incidents …` as hospital IT types them."""

from __future__ import annotations

import json

import pytest

from tests.site_agent.test_site_cli import coordinator, files, home, run

__all__ = ["coordinator", "files", "home", "run"]
pytestmark = pytest.mark.processes


def test_patients_are_withdrawn_from_the_command_line(run, home, files, tmp_path):
    table, dictionary = files
    code, out, _ = run("datasets", "add", table, "--dictionary", dictionary, "--home", home, "--json")
    assert code == 0
    before = json.loads(out)
    first = table.read_text().splitlines()[1].split(",")[0]
    gone = tmp_path / "gone.txt"
    gone.write_text(f"{first}\nNOBODY-KNOWN\n")
    code, out, err = run("cohort", "withdraw", gone, "--ground", "objection", "--home", home, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert (said["listed"], said["new"], said["snapshots_replaced"], said["studies_to_review"]) == (2, 2, 1, [])
    listed = json.loads(run("datasets", "list", "--home", home, "--json")[1])
    newest = next(row for row in listed if row["replaced_by"] is None)
    assert newest["patients"] == before["patients"] - 1
    assert next(row for row in listed if row["digest"] == before["snapshot"])["replaced_by"] == newest["digest"]
    assert "replaced" in run("datasets", "list", "--home", home)[1]
    status = json.loads(run("cohort", "withdrawals", "--home", home, "--json")[1])
    assert (status["patients"], status["complete_through"], status["snapshots_to_replace"]) == (2, None, 0)
    assert "NEVER SAID" in run("cohort", "withdrawals", "--home", home)[1]
    code, out, _ = run("cohort", "attest-withdrawals", "--through", "2026-11-01T00:00:00Z", "--home", home, "--json")
    assert (code, json.loads(out)) == (0, {"through": "2026-11-01T00:00:00Z"})
    assert "2026-11-01" in run("cohort", "withdrawals", "--home", home)[1]
    code, out, _ = run("datasets", "add", table, "--dictionary", dictionary, "--home", home, "--json")
    assert json.loads(out)["snapshot"] == newest["digest"]
    assert ["pid", "the patient withdrew"] in [[d["column"], d["reason"]] for d in json.loads(out)["dropped"]]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["cohort", "withdraw", "{}/none.txt", "--ground", "erasure"], "can't be read"),
        (["cohort", "withdraw", "{}", "--ground", "erasure"], "regular file"),
        (["cohort", "withdraw", "{}/one.txt", "--ground", "dislike"], "no ground 'dislike'"),
        (["cohort", "attest-withdrawals", "--through", "2099-01-01T00:00:00Z"], "of the future"),
        (["cohort", "attest-withdrawals", "--through", "yesterday"], "agreed form"),
        (["incidents", "report", "flood"], "agreed form"),
        (["incidents", "report", "security", "--aware-at", "2099-01-01T00:00:00Z"], "in the future"),
        (["incidents", "end", "incident-0000000000000000"], "reported no"),
    ],
)
def test_what_is_wrong_is_one_line_with_a_remedy(run, home, tmp_path, words, why):
    (tmp_path / "one.txt").write_text("p1\n")
    code, _, err = run(*(word.replace("{}", str(tmp_path)) for word in words), "--home", home)
    assert code == 1
    assert why in err
    assert "remedy:" in err
    assert len(err.splitlines()) == 2
    assert json.loads(run("cohort", "withdrawals", "--home", home, "--json")[1])["patients"] == 0
    assert json.loads(run("incidents", "list", "--home", home, "--json")[1]) == {"open_in_log": [], "reported_here": []}


def test_an_incident_is_reported_also_where_the_coordinator_does_not_take_it(run, home):
    code, out, _ = run("incidents", "report", "data-breach", "--home", home, "--json")
    said = json.loads(out)
    assert code == 0
    assert "was not told yet" in said["told"]
    (listed,) = json.loads(run("incidents", "list", "--home", home, "--json")[1])["reported_here"]
    assert (listed["incident"], listed["told_by_log"], listed["ended_at"]) == (said["incident"], False, None)
    assert "NOT IN THE LOG YET" in run("incidents", "list", "--home", home)[1]
    code, _, err = run("incidents", "end", said["incident"], "--home", home)
    assert code == 1
    assert "does not tell of" in err
