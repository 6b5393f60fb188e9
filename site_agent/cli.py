"""cloister-site: what hospital IT runs. Commands import what they need when they run, so that --help stays quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privacy.errors import PrivacyError
from protocol.errors import CloisterError
from site_agent.cohort import commands as cohort_commands
from site_agent.cohort import withdrawal_commands
from site_agent.consent import commands as consent_commands
from site_agent.evidence import commands as evidence_commands
from site_agent.incidents import commands as incident_commands
from site_agent.policy import commands as policy_commands
from site_agent.releases import commands as release_commands
from site_agent.retention import commands as retention_commands
from site_agent.serving import commands as serving_commands
from site_agent.serving import deployment_commands
from site_agent.settings import SiteHome, load_settings
from site_agent.training import commands as training_commands
from site_agent.witness import commands as log_commands

if TYPE_CHECKING:
    from protocol.enrolment import GateAnswer

MAX_TOKEN = 4096
Home = Annotated[Path | None, typer.Option("--home", help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    name="cloister-site",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A hospital's side of Cloister: patients' data stays here.",
)
app.add_typer(cohort_commands.app, name="datasets")
app.add_typer(withdrawal_commands.app, name="cohort")
app.add_typer(consent_commands.governance_app, name="governance")
app.add_typer(policy_commands.app, name="policy")
app.add_typer(consent_commands.app, name="studies")
app.add_typer(evidence_commands.app, name="evidence")
app.add_typer(incident_commands.app, name="incidents")
app.add_typer(training_commands.app, name="budget")
app.add_typer(log_commands.app, name="log")
app.add_typer(release_commands.app, name="releases")
app.add_typer(deployment_commands.app, name="deployment")
app.add_typer(retention_commands.app, name="retention")
app.command("attest")(evidence_commands.attest)
app.command("serve")(serving_commands.serve)


@app.command("enrol")
def enrol(
    token: Annotated[str, typer.Argument(help="The line that cloister-coordinator sites invite printed; - reads it.")],
    papers: Annotated[Path, typer.Option("--papers", help="A YAML file: what the hospital attests, and its evidence.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only ask what the enrolment gate says; the token stays good.")
    ] = False,
    witness_key: Annotated[
        str,
        typer.Option("--witness-key", help="What cosigns the log: ed25519, or ml-dsa-44 (post-quantum)."),
    ] = "ed25519",
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Enrol this machine as a site: make its keys here, check the coordinator, pin what it will trust."""
    from site_agent.clock import system_clock
    from site_agent.consent.report import one_line
    from site_agent.enrol import check
    from site_agent.enrol import enrol as enrol_site

    # On the command line every user of this machine can see it; it is good for one use only.
    text = sys.stdin.readline(MAX_TOKEN) if token == "-" else token  # noqa: S105 - a dash
    if dry_run:
        _tell_gate(check(text, system_clock, papers), as_json)
        return
    enrolled = enrol_site(text, SiteHome.resolve(home), system_clock, papers, witness_key=witness_key)
    if as_json:
        document = {
            "site": enrolled.site,
            "home": str(enrolled.home.path),
            "coordinator": enrolled.address,
            "identity": enrolled.identity,
            "not_after": enrolled.not_after,
            "witnesses": enrolled.witnesses,
            "quorum": enrolled.quorum,
            "warnings": list(enrolled.warnings),
        }
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(f"{enrolled.site} is enrolled at {enrolled.address}; its home is {enrolled.home.path}")
    typer.echo(f"  site key {enrolled.identity}, certificate until {enrolled.not_after}")
    typer.echo(f"  the log is watched by {enrolled.witnesses} witnesses, {enrolled.quorum} of which must agree")
    for warning in enrolled.warnings:
        typer.echo(f"  warning: {one_line(warning)}")
    typer.echo("Next: cloister-site datasets add FILE.csv --dictionary DICTIONARY.yaml; cloister-site agent")


def _tell_gate(answer: GateAnswer, as_json: bool) -> None:
    """What the enrolment gate said; exit code 1 where it is shut."""
    from site_agent.consent.report import one_line

    if as_json:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        for item in answer.owed:
            typer.echo(one_line(f"missing: {item.rule} ({item.citation}): {item.message} {item.remedy}"))
        for item in answer.warnings:
            typer.echo(one_line(f"warning: {item.rule} ({item.citation}): {item.message} {item.remedy}"))
        said = (
            "open: this site may enrol" if answer.open else f"shut: {len(answer.owed)} findings; the token stays good"
        )
        typer.echo(f"The enrolment gate is {said}.")
    if not answer.open:
        raise typer.Exit(1)


@app.command("agent")
def agent(
    gpu: Annotated[bool, typer.Option("--gpu/--no-gpu", help="Let a network train on this machine's GPU.")] = True,
    home: Home = None,
) -> None:
    """Run the site's agent: follow the log, renew the certificate, take part in granted studies. Ends on SIGTERM."""
    from site_agent.agent import run

    run(SiteHome.resolve(home), gpu=gpu)


@app.command("self-test")
def self_test(
    gpu: Annotated[bool, typer.Option("--gpu/--no-gpu", help="As for the agent.")] = True,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Audit the training engine on made-up patients, in seconds. Exit code 1: it failed, and no round is answered."""
    from dataclasses import asdict

    from site_agent.clock import system_clock
    from site_agent.database import open_database
    from site_agent.training.self_test import run
    from site_agent.training.worker_client import WorkerClient

    settings = load_settings(SiteHome.resolve(home))
    worker = WorkerClient(settings.home, gpu=gpu)
    try:
        found = run(open_database(settings.home), worker, system_clock)
    finally:
        worker.close()
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        typer.echo(f"engine {found.engine.version} ({found.engine.digest}): {'passed' if found.passed else 'FAILED'}")
        for check in found.checks:
            word = "passed" if check["passed"] else "FAILED"
            typer.echo(f"  {check['name']:<16} {word}  {check['measured']:.4g} (limit {check['limit']:.4g})")
        if not found.passed:
            typer.echo("  every round is refused. Install a sound release of Cloister and run this again.")
    if not found.passed:
        raise typer.Exit(1)


@app.command("renew-state-key")
def renew_key(home: Home = None) -> None:
    """After `secure-sum.key` was lost without a backup: give up the running studies, so that others can be joined."""
    from site_agent.keystore import renew_state_key

    given_up = renew_state_key(load_settings(SiteHome.resolve(home)).home)
    typer.echo(f"A new key is made. Over for this site: {', '.join(given_up) or 'no study'}.")


@app.command("status")
def status(as_json: Json = False, home: Home = None) -> None:
    """Show what this site holds and trusts. Exit code 2: the log has contradicted itself, or the ledger is behind."""
    from site_agent.clock import system_clock
    from site_agent.database import open_database
    from site_agent.keystore import load_keys
    from site_agent.status import status as read_status

    settings = load_settings(SiteHome.resolve(home))
    document = read_status(settings, load_keys(settings.home), open_database(settings.home), system_clock())
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        certificate, log, snapshots = document["certificate"], document["log"], document["snapshots"]
        left = "EXPIRED" if certificate["expired"] else f"{certificate['hours_left']} h left"
        typer.echo(f"{document['site']}, enrolled at {document['coordinator']}")
        typer.echo(f"  certificate until {certificate['not_after']} ({left})")
        typer.echo(
            f"  log {log['name']}: {log['size']} entries verified"
            f"{', cosigned' if log['cosigned'] else ''}; {log['witnesses']} witnesses, quorum {log['quorum']}"
        )
        typer.echo(f"  {snapshots['stored']} snapshots, {snapshots['waiting_for_registration']} not registered yet")
        reports = document["serving_reports"]
        if reports["waiting"] or reports["set_aside"]:
            typer.echo(
                f"  {reports['waiting']} serving reports wait for the coordinator, "
                f"{reports['set_aside']} were refused for good"
            )
        for item in document["refused"]:
            typer.echo(f"  refused {item['at']} {item['study']} {item['phase']} round {item['round']}: {item['code']}")
        engine = document["engine"]
        typer.echo(f"  engine {engine['version']}: self-test {engine['self_test']}")
        if document["ledger"]["behind"]:
            typer.echo(
                "  LEDGER BEHIND: site.db was put back from a backup; every round is refused. "
                f"{document['ledger']['remedy']}"
            )
        for alarm in log["alarms"]:
            typer.echo(f"  {log_commands.alarm_line(alarm)}")
        if any(alarm["acknowledged_at"] is None for alarm in log["alarms"]):
            typer.echo(f"  every round is refused while an alarm stands. {log_commands.REMEDY}")
    if any(alarm["acknowledged_at"] is None for alarm in document["log"]["alarms"]) or document["ledger"]["behind"]:
        raise typer.Exit(log_commands.ALARMED)


def main() -> None:
    """Run the command line. An error that a person can act on is one message and a remedy, never a traceback."""
    import click

    try:
        status = app(standalone_mode=False)
    except (CloisterError, PrivacyError) as error:
        raise SystemExit(_tell(error.code, error.message, error.remedy)) from None
    except OSError as error:
        raise SystemExit(_tell("system", *_explain(error))) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except click.Abort:
        raise SystemExit(_tell("interrupted", "Interrupted.", "Run the command again.")) from None
    raise SystemExit(status if isinstance(status, int) else 0)


def _tell(code: str, message: str, remedy: str) -> int:
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": {"code": code, "message": message, "remedy": remedy}}))
    typer.echo(f"error: {message}", err=True)
    if remedy:
        typer.echo(f"remedy: {remedy}", err=True)
    return 1


def _explain(error: OSError) -> tuple[str, str]:
    import errno

    place = f" ({error.filename})" if isinstance(error.filename, str) else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"The disk is full{place}.", "Free space and run the command again: nothing was half written."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"The system does not allow this{place}.", "Check who owns the file and the user you run as."
        case errno.EADDRINUSE:
            return "The port is in use.", "Stop the other program, or choose another port."
        case _:
            return f"The system refused: {error.strerror or type(error).__name__}{place}.", "Correct it and try again."
