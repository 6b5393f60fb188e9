"""cloister-site studies, governance and budget, as hospital IT types them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from privacy.errors import PrivacyError
from protocol.errors import CloisterError
from site_agent import cli
from site_agent.certificates import request_certificate
from site_agent.consent.plans import SignedPlan
from site_agent.durable_files import write_durably
from tests.site_agent.federation_of_sites import Federation, federation
from tests.site_agent.made_up_coordinator import MadeUpCoordinator, made_up_coordinator, problem

Run = Callable[..., Result]
SITE = "cork"
pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MadeUpCoordinator, Federation]]:
    folder = tmp_path_factory.mktemp("stage")
    (folder / "coordinator").mkdir()
    with made_up_coordinator(folder / "coordinator") as coordinator:
        world = federation(folder, coordinator=coordinator.key, log=coordinator.log.vkey, address=coordinator.address)
        site = world.hospitals[SITE]
        certificate = coordinator.certify(request_certificate(SITE, site.keys.identity), SITE)
        write_durably(site.keys.certificate_path, certificate)
        write_durably(site.keys.ca_path, coordinator.ca_pem)
        yield coordinator, world


@pytest.fixture
def run(stage: tuple[MadeUpCoordinator, Federation]) -> Run:
    _, world = stage
    home = str(world.hospitals[SITE].settings.home.path)
    return lambda *arguments, **options: CliRunner().invoke(cli.app, [*arguments, "--home", home], **options)


def offer(stage: tuple[MadeUpCoordinator, Federation], study: str, **changes: Any) -> SignedPlan:
    """The coordinator lists one study with this plan, and takes answers to it."""
    coordinator, world = stage
    world.spec = world.spec.model_copy(update={"study": study})
    signed = world.sign(world.plan(**changes))
    item = {
        "study": study,
        "state": "consenting",
        "plan_envelope": base64.b64encode(signed.envelope).decode(),
        "plan_digest": signed.digest,
    }
    coordinator.routes[("GET", "/v1/sites/me/studies")] = lambda _: (200, json.dumps([item]).encode())
    coordinator.routes[("POST", f"/v1/studies/{study}/consents")] = lambda _: (201, b"{}")
    return signed


def failed(result: Result) -> CloisterError | PrivacyError:
    assert result.exit_code != 0
    assert isinstance(result.exception, CloisterError | PrivacyError), result.output
    assert result.exception.remedy
    return result.exception


def test_a_study_is_listed_reviewed_granted_and_withdrawn(
    stage: tuple[MadeUpCoordinator, Federation], run: Run
) -> None:
    signed = offer(stage, "one-life")
    listed = json.loads(run("studies", "list", "--json").output)
    assert listed == [
        {"study": "one-life", "state": "consenting", "plan_digest": signed.digest, "answer": "open", "shut_out": False}
    ]
    reviewed = json.loads(run("studies", "review", "one-life", "--json").output)
    assert reviewed["grantable"] is True
    assert reviewed["costs"][0]["ledger_before"]["epsilon"] == 0
    shown = run("studies", "review", "one-life").output
    assert signed.digest in shown
    granted = json.loads(run("studies", "grant", "one-life", "--yes", "--json").output)
    assert granted == {
        "study": "one-life",
        "plan_digest": signed.digest,
        "answer": "granted",
        "delivered": True,
    }
    budget = json.loads(run("budget", "show", "--json").output)
    assert budget["cohorts"][0]["epsilon"] == pytest.approx(signed.plan.epsilon)
    assert "one-life" in run("budget", "show").output
    assert "your answer: granted" in run("studies", "list").output
    withdrawn = json.loads(run("studies", "withdraw", "one-life", "--yes", "--json").output)
    assert (withdrawn["answer"], withdrawn["delivered"]) == ("withdrawn", True)
    assert json.loads(run("budget", "show", "--json").output)["cohorts"][0]["epsilon"] == 0
    assert failed(run("studies", "grant", "one-life", "--yes")).code == "consent-conflict"


def test_a_grant_asks_and_a_no_changes_nothing(stage: tuple[MadeUpCoordinator, Federation], run: Run) -> None:
    offer(stage, "asked")
    assert run("studies", "grant", "asked", input="n\n").exit_code != 0
    assert "your answer: open" in run("studies", "list").output
    assert run("studies", "grant", "asked", input="y\n").exit_code == 0
    assert "your answer: granted" in run("studies", "list").output


def test_a_plan_with_too_little_noise_is_not_granted(stage: tuple[MadeUpCoordinator, Federation], run: Run) -> None:
    offer(stage, "quiet", noise_multiplier=1.0)
    error = failed(run("studies", "grant", "quiet", "--yes"))
    assert error.code == "grant-denied"
    assert "(noise)" in error.message
    assert "your answer: open" in run("studies", "list").output
    refused = json.loads(run("studies", "refuse", "quiet", "--reason", "privacy-budget", "--json").output)
    assert refused["answer"] == "refused"


def test_an_answer_is_kept_when_the_coordinator_is_away(stage: tuple[MadeUpCoordinator, Federation], run: Run) -> None:
    coordinator, _ = stage
    offer(stage, "late")
    coordinator.routes[("POST", "/v1/studies/late/consents")] = lambda _: problem(409, "study-state", "Too late.")
    assert failed(run("studies", "grant", "late", "--yes")).code == "study-state"
    assert "your answer: withdrawn" in run("studies", "list").output


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("studies", "grant", "nowhere", "--yes"), "not invited"),
        (("studies", "refuse", "nowhere", "--reason", "boredom"), "not a reason"),
        (("studies", "withdraw", "nowhere", "--yes"), "No grant"),
        (("studies", "grant", "nowhere", "--evidence", "G03"), "NAME=VALUE"),
        (
            ("governance", "set", "--jurisdiction", "Mars", "--hipaa-role", "none", "--collection-purpose", "x"),
            "--jurisdiction",
        ),
        (
            (
                *("governance", "set", "--jurisdiction", "EU", "--hipaa-role", "none", "--collection-purpose", "x"),
                *("--parameter", "epsilon_ceiling=9.5"),
            ),
            "epsilon_ceiling",
        ),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(
    stage: tuple[MadeUpCoordinator, Federation], run: Run, arguments: tuple[str, ...], part: str
) -> None:
    offer(stage, "somewhere")
    assert part in failed(run(*arguments)).message


def test_governance_is_written_and_shown(stage: tuple[MadeUpCoordinator, Federation], run: Run, tmp_path: Path) -> None:
    said = ("--jurisdiction", "EU", "--hipaa-role", "none", "--collection-purpose", "cardiology")
    done = run("governance", "set", *said, "--epsilon-limit", "7", "--parameter", "min_cohort=15")
    assert done.exit_code == 0
    shown = run("governance", "show").output
    assert "epsilon_limit = 7.0" in shown
    assert "min_cohort = 15" in shown


def test_a_grant_may_name_the_plan_that_was_read(stage: tuple[MadeUpCoordinator, Federation], run: Run) -> None:
    """With --yes nobody reads the plan again: the coordinator might have put another in its place."""
    read = offer(stage, "plan-swap")
    swapped = offer(stage, "plan-swap", created_at="2026-11-24T00:00:00Z")
    assert read.digest != swapped.digest
    error = failed(run("studies", "grant", "plan-swap", "--yes", "--plan", read.digest))
    assert swapped.digest in error.message
    assert json.loads(run("studies", "list", "--json").output)[0]["answer"] == "open"
    assert run("studies", "grant", "plan-swap", "--yes", "--plan", swapped.digest).exit_code == 0
