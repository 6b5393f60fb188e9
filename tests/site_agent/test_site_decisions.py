"""What a hospital's own gates decided can be taken again under other packs, at the hospital, and nothing leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlmodel import select
from typer.testing import CliRunner

from policies.replay import replay
from protocol.signing import VerifyingKey
from site_agent.cli import app
from site_agent.consent.governance import load_governance, local_policy, save_governance
from site_agent.consent.grant import GrantDenied
from site_agent.consent.plans import SignedPlan
from site_agent.database import transaction
from site_agent.policy.decisions import judging, past
from site_agent.policy.federation import adopt, compare_with_own
from site_agent.policy.tables import SiteDecision
from tests.site_agent.federation_of_sites import Federation, federation
from tests.site_agent.test_federation_policy import COORDINATOR, changed, signed, values
from tests.site_agent.test_round_gate import board, refused
from tests.site_agent.test_serving_gate import Clinic, clinic

__all__ = ["clinic"]
Case = tuple[Federation, SignedPlan]
PACK = (
    "pack: own\nversion: 2026.1.1\ntitle: The clinic of its own\nvalid_from: 2026-01-01\nrules:\n"
    "- {{id: X01, citation: House rule 1, gates: [{gate}], valid_from: 2026-01-01, facts: [{fact}],\n"
    "   require: '{require}', effect: deny, message: Not here., remedy: Ask the board.}}\n"
)


def pack_in(folder: Path, gate: str, fact: str, require: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "own.yaml").write_text(PACK.format(gate=gate, fact=fact, require=require))
    return folder


def test_grants_and_rounds_are_taken_again_under_a_pack_that_a_hospital_tries(running: Case, tmp_path: Path) -> None:
    world, plan = running
    site = world.hospitals["bergen"]
    site.participant().answer("train.contribute", world.round_request(plan))
    home = ["--home", str(site.settings.home.path), "--json"]
    same = CliRunner().invoke(app, ["policy", "dry-run", *home])
    assert same.exit_code == 0, same.output
    told = json.loads(same.stdout)
    assert (told["replayed"], told["changed"], told["not_replayable"]) == (2, 0, [])
    tried = pack_in(tmp_path / "tried", "consent", "plan.dp.epsilon", "plan.dp.epsilon < 0.0001")
    found = json.loads(CliRunner().invoke(app, ["policy", "dry-run", str(tried), *home]).stdout)
    assert [(item["gate"], item["was"], item["becomes"]) for item in found["decisions"]] == [
        ("consent", "allow", "deny")
    ]
    assert [item["rule"] for item in found["decisions"][0]["findings"]] == ["X01"]
    tried = pack_in(tmp_path / "tried", "round", "round.number", "round.number > 1")
    found = json.loads(CliRunner().invoke(app, ["policy", "dry-run", str(tried), "--gate", "round", *home]).stdout)
    assert [item["gate"] for item in found["decisions"]] == ["round"]
    assert not (site.settings.home.path / "packs").exists()  # nothing was changed by trying
    words = CliRunner().invoke(app, ["policy", "dry-run", str(tried), "--home", str(site.settings.home.path)])
    assert "would come out differently" in words.stdout
    absent = CliRunner().invoke(app, ["policy", "dry-run", str(tmp_path / "nowhere"), *home])
    assert absent.exit_code != 0


def test_a_grant_that_the_gate_denied_is_on_record_too(running: Case) -> None:
    world, _ = running
    site = world.hospitals["bergen"]
    board(site, fact="plan.dp.epsilon", require="plan.dp.epsilon < 0.0001")
    path = site.settings.home.path / "packs" / "ward.yaml"
    path.write_text(path.read_text().replace("gates: [round]", "gates: [consent]"))
    training = world.spec.training.model_copy(update={"rounds": 4})
    world.spec = world.spec.model_copy(update={"training": training})
    with pytest.raises(GrantDenied):
        site.grant(world.sign(world.plan()))
    with transaction(site.engine) as session:
        newest, *_ = past(session, gate="consent")
    assert newest.outcome == "deny"
    assert newest.facts is not None
    assert newest.facts["plan"]["dp"]["epsilon"] > 0.0001


def test_serving_decisions_are_taken_again(clinic: Clinic) -> None:
    clinic.say()
    clinic.gate.require("install")
    assert clinic.ask().status_code == 200
    with transaction(clinic.engine) as session:
        found = past(session, gate="serving")
        rows = session.exec(select(SiteDecision)).all()
    assert [(one.subject, one.outcome) for one in found] == [("release:heart-study-r1", "allow")] * 2
    assert all("age" not in (row.facts or "") or "age_days" in (row.facts or "") for row in rows)
    policy = local_policy(clinic.home, load_governance(clinic.home))
    assert replay(found, policy, judging)["changed"] == 0
    stricter = local_policy(
        clinic.home,
        load_governance(clinic.home).model_copy(update={"parameters": {"serving_log_min_days": 365}}),
    )
    assert [item["becomes"] for item in replay(found, stricter, judging)["decisions"]] == ["deny", "deny"]


def test_the_serving_gate_goes_by_an_adopted_set_at_the_next_asking(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No restart, and no waiting for the next minute's compiling."""

    class Pinned:
        coordinator = COORDINATOR.public.text

    monkeypatch.setattr("site_agent.consent.governance.load_settings", lambda _home: Pinned)
    clinic.say(log_retention_days=200)
    assert clinic.ask().status_code == 200
    data = signed(values(serving_log_min_days=300))
    adopt(clinic.home, data, compare_with_own(data, VerifyingKey.from_text(COORDINATOR.public.text)), accepted=False)
    answer = clinic.ask()
    assert (answer.status_code, answer.json()["code"]) == (503, "serving-refused")
    assert "A07" in answer.json()["error"]


def test_a_grant_that_a_new_set_made_lapse_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pinned:
        coordinator = COORDINATOR.public.text

    monkeypatch.setattr("site_agent.consent.governance.load_settings", lambda _home: Pinned)
    world = federation(tmp_path)
    plan, site = world.sign(world.plan()), world.hospitals["bergen"]
    home = site.settings.home
    data = signed(changed("gdpr", b"effect: evidence", b"effect: deny"))
    adopt(home, data, compare_with_own(data, COORDINATOR.public), accepted=False)
    for other in world.hospitals.values():
        other.grant(plan)
    world.establish(plan)
    site.participant().answer("train.contribute", world.round_request(plan))
    data = signed(values(epsilon_ceiling=4.0), number=3)  # takes the other gdpr pack back
    adopt(home, data, compare_with_own(data, COORDINATOR.public), accepted=False)
    decision = refused(site, world.round_request(plan, 2), "policy-denied")
    assert json.loads(decision.document)["lapsed"] == ["pack federation-gdpr"]
    site.engine.dispose()
    shown = CliRunner().invoke(app, ["studies", "rounds", "hearts-one", "--home", str(home.path)])
    assert shown.exit_code == 0, shown.output
    assert "put another set of packs in force" in shown.stdout
    assert "Ask for hearts-one to be proposed again" in shown.stdout
    with transaction(site.engine) as session:  # what the rules said is what is taken again, not the lapse beside them
        assert [one.outcome for one in past(session, gate="round")] == ["allow", "allow"]


def test_a_person_is_told_why_a_grant_lapsed_and_what_to_do(running: Case) -> None:
    world, plan = running
    site = world.hospitals["bergen"]
    governance = load_governance(site.settings.home)
    save_governance(site.settings.home, governance.model_copy(update={"jurisdiction": "other"}))
    refused(site, world.round_request(plan), "policy-denied")
    site.engine.dispose()
    shown = CliRunner().invoke(app, ["studies", "rounds", "hearts-one", "--home", str(site.settings.home.path)])
    assert shown.exit_code == 0, shown.output
    assert "under another law" in shown.stdout
    assert "cloister-site studies withdraw hearts-one" in shown.stdout
