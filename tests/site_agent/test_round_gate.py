"""The site's own round gate: every attempt is judged before a charge, by rules and facts of the site alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from typer.testing import CliRunner

from protocol.signing import SigningKey
from site_agent.cli import app
from site_agent.consent.governance import FILE, Governance, load_governance, save_governance
from site_agent.consent.grant import _sealed
from site_agent.consent.plans import SignedPlan
from site_agent.consent.tables import StudyGrant
from site_agent.database import transaction
from site_agent.training.budget_store import ledger
from site_agent.training.round_gate import decisions
from site_agent.training.tables import ConsumedAttempt, RoundDecision
from tests.site_agent.federation_of_sites import Federation, Hospital, federation, refusal_in

Case = tuple[Federation, SignedPlan]
PACK = """
pack: ward
version: 2026.11.1
title: What this hospital asks besides
valid_from: 2026-01-01
rules:
- id: W01
  citation: The board of the hospital, 2026
  gates: [round]
  valid_from: 2026-01-01
  facts: [{fact}]
  require: {require}
  effect: {effect}
  message: The board does not allow this round.
  remedy: Ask the board.
"""


def say(site: Hospital, **changes: Any) -> None:
    home = site.settings.home
    save_governance(home, Governance.model_validate({**load_governance(home).model_dump(), **changes}))


def board(site: Hospital, fact: str = "round.number", require: str = "round.number < 9", effect: str = "deny") -> Path:
    folder = site.settings.home.path / "packs"
    folder.mkdir(exist_ok=True)
    path = folder / "ward.yaml"
    path.write_text(PACK.format(fact=fact, require=json.dumps(require), effect=effect))
    return path


def book(site: Hospital) -> list[RoundDecision]:
    with transaction(site.engine) as session:
        return decisions(session, "hearts-one")


def charged(site: Hospital) -> int:
    with transaction(site.engine) as session:
        consumed = len(session.exec(select(ConsumedAttempt)).all())
        assert sum(line.steps_charged for line in ledger(session)) == consumed
    return consumed


def refused(site: Hospital, request: bytes, code: str) -> RoundDecision:
    """Refused by a signed closed code, at no charge, with the decision in the site's book: the decision."""
    before = charged(site), len(book(site)), site.worker.computed  # type: ignore[attr-defined]
    assert refusal_in(site.participant().answer("train.contribute", request), site) == code
    assert site.store.last_refusals(1)[0].code == code
    after = charged(site), len(book(site)) - 1, site.worker.computed  # type: ignore[attr-defined]
    assert after == before
    return book(site)[0]


def rules_of(decision: RoundDecision) -> set[str]:
    return {finding["rule"] for finding in json.loads(decision.document)["findings"]}


def test_each_charge_has_its_decision_and_what_it_rests_on(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    participant = site.participant()
    for number in (1, 2):
        participant.answer("train.contribute", world.round_request(signed, number))
    second, first = book(site)
    assert (first.outcome, first.round, second.outcome, second.round) == ("allow", 1, "allow", 2)
    assert charged(site) == 2
    document = json.loads(first.document)
    passed = {item["rule"] for item in document["checked"] if item["result"] == "passed"}
    assert {"G05", "G14", "G16", "N01", "N01-site", "N03", "N04", "N05-site"} <= passed
    assert document["facts"]["ledger"]["epsilon_spent"] == pytest.approx(1.0, rel=0.01)
    assert document["facts"]["dataset"]["patients"] == 80
    assert second.document == ""  # it says the same: a book of a thousand rounds stays small
    assert second.rules == first.rules
    assert second.facts_digest != first.facts_digest


def test_a_resend_is_no_second_decision(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    request = world.round_request(signed)
    assert site.participant().answer("train.contribute", request) == site.participant().answer(
        "train.contribute", request
    )
    assert (len(book(site)), charged(site)) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"direct_identifiers": ("age",)}, "G05"),
        ({"epsilon_limit": 0.5}, "N03"),
        ({"delta_limit": 1e-5}, "N03"),
        ({"parameters": {"epsilon_ceiling": 0.5}}, "N01"),
        ({"parameters": {"min_cohort": 61}}, "N05-site"),
    ],
)
def test_a_round_after_the_gate_shut_is_refused_and_goes_on_when_it_opens(
    running: Case, changes: dict[str, Any], rule: str
) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    participant = site.participant()
    participant.answer("train.contribute", world.round_request(signed, 1))
    said = load_governance(site.settings.home).model_dump()
    say(site, **changes)
    decision = refused(site, world.round_request(signed, 2), "policy-denied")
    assert decision.outcome == "deny"
    assert rule in rules_of(decision)
    # The same running agent: it must not go by the rules that it compiled first.
    assert refusal_in(participant.answer("train.contribute", world.round_request(signed, 2)), site) == "policy-denied"
    save_governance(site.settings.home, Governance.model_validate(said))
    participant.answer("train.contribute", world.round_request(signed, 2))
    assert charged(site) == 2


def test_what_is_stored_is_not_sent_again_through_a_shut_gate(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    request = world.round_request(signed)
    site.participant().answer("train.contribute", request)
    say(site, direct_identifiers=("age",))
    refused(site, request, "policy-denied")


def test_the_hospital_s_own_pack_counts_and_only_adds(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    board(site, require="round.number != 2")
    participant = site.participant()
    participant.answer("train.contribute", world.round_request(signed, 1))
    assert charged(site) == 1
    assert rules_of(refused(site, world.round_request(signed, 2), "policy-denied")) == {"W01"}


def test_evidence_that_is_owed_holds_the_round(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    board(site, require="round.number > 9", effect="evidence")
    assert refused(site, world.round_request(signed), "policy-held").outcome == "hold"


def test_a_warning_holds_nothing(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    board(site, require="round.number > 9", effect="warn")
    site.participant().answer("train.contribute", world.round_request(signed))
    assert [decision.outcome for decision in book(site)] == ["allow"]


def test_a_rule_of_the_hospital_whose_fact_nobody_gathers_denies(running: Case) -> None:
    """A coordinator's fact too: only rules that ship with Cloister are left to it."""
    world, signed = running
    site = world.hospitals["bergen"]
    board(site, "coordinator.backup_tested_days", "coordinator.backup_tested_days < 9")
    decision = refused(site, world.round_request(signed), "policy-denied")
    assert [finding["kind"] for finding in json.loads(decision.document)["findings"]] == ["missing-fact"]


@pytest.mark.parametrize("content", [None, b"jurisdiction = 3\n", b"\xff", b"not toml"])
def test_rules_that_cannot_be_read_shut_the_gate(running: Case, content: bytes | None) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    path = site.settings.home.path / FILE
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    decision = refused(site, world.round_request(signed), "policy-denied")
    assert json.loads(decision.document)["unreadable"] == "governance-unset"


def test_a_pack_that_does_not_compile_shuts_the_gate(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    board(site, require="round.number <")
    decision = refused(site, world.round_request(signed), "policy-denied")
    assert json.loads(decision.document)["unreadable"] == "bad-policy-document"


# An insider at the hospital, who can write its files and its database but has not its site key


def test_an_insider_who_removes_a_pack_after_the_grant_stops_the_rounds(tmp_path: Path) -> None:
    world = federation(tmp_path)
    signed = world.sign(world.plan())
    site = world.hospitals["bergen"]
    path = board(site)
    for other in world.hospitals.values():
        other.grant(signed)
    world.establish(signed)
    site.participant().answer("train.contribute", world.round_request(signed))
    path.unlink()
    decision = refused(site, world.round_request(signed, 2), "policy-denied")
    assert json.loads(decision.document)["lapsed"] == ["pack ward"]


def other_plan(world: Federation, signed: SignedPlan) -> SignedPlan:
    """A plan that the coordinator signed and nobody granted: it asks for more rounds."""
    training = world.spec.training.model_copy(update={"rounds": 4})
    world.spec = world.spec.model_copy(update={"training": training})
    return world.sign(world.plan())


def move_grant(site: Hospital, signed: SignedPlan, moved: SignedPlan) -> None:
    with transaction(site.engine) as session:
        row = session.get_one(StudyGrant, signed.digest)
        fields = {**row.model_dump(), "plan_digest": moved.digest, "plan": moved.envelope}
        session.delete(row)
        session.flush()
        session.add(StudyGrant(**fields))


def test_a_grant_that_was_moved_to_another_plan_is_no_instruction(running: Case) -> None:
    """A coordinator with an accomplice who rewrites the row: the site's own signature names another plan."""
    world, signed = running
    site = world.hospitals["bergen"]
    moved = other_plan(world, signed)
    move_grant(site, signed, moved)
    assert rules_of(refused(site, world.round_request(moved), "policy-denied")) == {"G16"}


def test_nor_is_it_under_a_law_whose_packs_do_not_ask(tmp_path: Path) -> None:
    world = federation(tmp_path)
    site = world.hospitals["bergen"]
    say(site, jurisdiction="other")

    def elsewhere() -> SignedPlan:
        sites = [
            item.model_copy(update={"jurisdiction": "other" if item.name == "bergen" else "EU"})
            for item in world.plan().sites
        ]
        return world.sign(world.plan(sites=sites))

    signed = elsewhere()
    site.grant(signed)
    training = world.spec.training.model_copy(update={"rounds": 4})
    world.spec = world.spec.model_copy(update={"training": training})
    moved = elsewhere()
    move_grant(site, signed, moved)
    refused(site, world.round_request(moved), "plan-not-granted")


def test_an_insider_who_says_that_the_hospital_is_under_another_law_stops_the_rounds(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    say(site, jurisdiction="other")
    decision = refused(site, world.round_request(signed), "policy-denied")
    assert json.loads(decision.document)["lapsed"] == ["jurisdiction"]


def test_a_consent_that_another_key_signed_is_none(running: Case) -> None:
    from protocol.consent import CONSENT_TYPE, Consent
    from protocol.envelope import Envelope, open_json

    world, signed = running
    site = world.hospitals["bergen"]
    with transaction(site.engine) as session:
        row = session.get_one(StudyGrant, signed.digest)
        own = site.keys.identity.public
        document, _ = open_json(Envelope.from_bytes(row.consent), CONSENT_TYPE, {own.key_id: own})
        row.consent = _sealed(Consent.model_validate(document), SigningKey.generate())
        session.add(row)
    assert refusal_in(site.participant().answer("train.contribute", world.round_request(signed)), site) == (
        "plan-not-granted"
    )
    assert charged(site) == 0


def test_a_person_reads_what_was_decided_and_why(running: Case) -> None:
    world, signed = running
    site = world.hospitals["bergen"]
    site.participant().answer("train.contribute", world.round_request(signed))
    say(site, direct_identifiers=("age",))
    refused(site, world.round_request(signed, 2), "policy-denied")
    site.engine.dispose()
    home = ["--home", str(site.settings.home.path)]
    shown = CliRunner().invoke(app, ["studies", "rounds", "hearts-one", *home])
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].endswith("train 2, attempt 1: deny")
    assert lines[1].startswith("  G05 (deny): These columns are not justified by the study, or identify a person")
    assert lines[2].endswith("train 1, attempt 1: allow")
    as_json = json.loads(CliRunner().invoke(app, ["studies", "rounds", "hearts-one", "--json", *home]).stdout)
    assert [row["outcome"] for row in as_json] == ["deny", "allow"]
