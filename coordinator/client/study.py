"""cloister study …: validate, propose, approve, start, stop, and look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.client.options import Home, Json, PassphraseFile
from coordinator.client.results import results
from coordinator.client.simulate import simulate
from coordinator.client.study_text import audit_cost, findings_text, in_the_evaluation, plan_text, status_text
from coordinator.terminal import emit, read_passphrase, table

if TYPE_CHECKING:
    from coordinator.client.exploration_forecast import ExplorationForecast
    from coordinator.client.forecast import Forecast
    from coordinator.client.spec_file import SpecFile

app = typer.Typer(no_args_is_help=True, help="Studies: validate, propose, start, watch.")
Spec = Annotated[Path, typer.Argument(help="The study's YAML file.")]
Name = Annotated[str, typer.Argument(help="The study, as `cloister study list` shows it.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask before signing.")]


@app.command()
def validate(spec: Spec, home: Home = None, as_json: Json = False) -> None:
    """Say what is wrong with a study, and forecast what it costs its patients. Needs no network."""
    from coordinator.client.spec_file import SpecInvalid
    from protocol.canonical import digest

    file, forecast, problems, notes = _judged(spec, home)
    document = {
        "study": file.spec.study,
        "spec_digest": digest(file.spec.model_dump(mode="json")),
        "valid": not problems,
        "problems": [problem.to_dict() for problem in problems],
        "notes": list(notes),
        "forecast": forecast.to_dict() if forecast else None,
    }
    if problems and not as_json:
        raise SpecInvalid(spec, problems)
    said = [] if forecast is None else [forecast.text(), *(f"note: {note}" for note in notes)]
    said.append(f"spec {document['spec_digest']}")
    emit(document, as_json=as_json, text="\n".join(said))
    if problems:
        raise typer.Exit(1)


app.command()(simulate)
app.command()(results)


@app.command()
def propose(
    spec: Spec,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask what policy would say; propose nothing.")] = False,
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Sign a study with your key and propose it. A denial names rule, citation, fact and remedy."""
    from coordinator.client.account import open_account
    from coordinator.client.connection import CoordinatorRefused
    from coordinator.client.spec_file import SpecInvalid
    from protocol.consent import PROPOSAL_TYPE
    from protocol.envelope import seal

    account = open_account(home)
    file, _, problems, _ = _judged(spec, home)
    if problems:
        raise SpecInvalid(spec, problems)
    key = account.unlock(read_passphrase(passphrase_file, "Passphrase"))
    signed = seal(PROPOSAL_TYPE, file.spec.model_dump(mode="json"), key).to_bytes()
    with account.connect() as connection:
        try:
            proposed = connection.post_bytes(f"/v1/studies{'?dry_run=true' if dry_run else ''}", signed)
        except CoordinatorRefused as refused:
            if not as_json and "findings" in refused.facts:
                typer.echo(findings_text(refused.facts["findings"]), err=True)
            raise
    owed = findings_text(proposed["decision"]["findings"])
    lines = [
        f"{proposed['study']}: {_OUTCOMES[proposed['state']]}",
        f"plan {proposed['plan_digest']}",
        f"epsilon {proposed['epsilon']:.4f}, a site's worst case {proposed['epsilon_worst_site']:.4f}"
        f"{in_the_evaluation(proposed, proposed)}",
        *([] if proposed["kind"] == "exploration" else [f"membership audit: {audit_cost(proposed.get('membership'))}"]),
        *([owed] if owed else []),
    ]
    if dry_run:
        lines.insert(0, "Nothing was proposed (dry run).")
    emit({**proposed, "dry_run": dry_run}, as_json=as_json, text="\n".join(lines))
    if proposed["state"] == "denied":
        raise typer.Exit(1)


_OUTCOMES = {
    "denied": "policy denies it",
    "held": "policy holds it until a compliance officer approves the plan (`cloister study approve`)",
    "consenting": "policy allows it; its sites are asked (`cloister-site studies review`)",
}


@app.command("list")
def list_studies(home: Home = None, as_json: Json = False) -> None:
    """List studies, and proposals that policy denied."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        rows = connection.get("/v1/studies")
    columns = ("study", "state", "reason", "submitter", "proposed_at")
    emit(rows, as_json=as_json, text=table(columns, [tuple(row[name] for name in columns) for row in rows]))


@app.command()
def status(study: Name, home: Home = None, as_json: Json = False) -> None:
    """Show a study: its sites' answers, how far it is, what was spent."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        document = connection.get(f"/v1/studies/{_name(study)}")
    emit(document, as_json=as_json, text=status_text(document))


@app.command()
def rounds(study: Name, home: Home = None, as_json: Json = False) -> None:
    """Show each round: who was invited, who contributed, who did not and why, and the epsilon spent so far."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        document = connection.get(f"/v1/studies/{_name(study)}/rounds")
    rows = [
        (
            row["phase"],
            row["round"],
            row["attempts"],
            f"{len(row['contributed'])} of {len(row['invited'])}",
            ", ".join(f"{site} ({code})" for site, code in sorted(row["excluded"].items())),
            f"{row['epsilon']:.4f}",
            None if row["norm"] is None else f"{row['norm']:.4g}",
            f"{row['seconds']:.1f}",
        )
        for row in document["rounds"]
    ]
    head = ("phase", "round", "attempts", "contributed", "left out", "epsilon so far", "norm", "seconds")
    emit(document["rounds"], as_json=as_json, text=table(head, rows))


@app.command()
def approve(
    study: Name,
    reject: Annotated[bool, typer.Option("--reject", help="Reject the plan instead; that stops the study.")] = False,
    yes: Yes = False,
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Sign a decision on a plan that policy holds, with your own key."""
    import base64
    from datetime import UTC, datetime

    from coordinator.client.account import open_account
    from protocol.canonical import parse, sha256_hex
    from protocol.consent import PLAN_APPROVAL_TYPE, PlanApproval
    from protocol.envelope import Envelope, seal
    from protocol.errors import VerificationFailed
    from protocol.study_kind import plan_from
    from protocol.timestamp import timestamp

    account = open_account(home)
    with account.connect() as connection:
        shown = connection.get(f"/v1/studies/{_name(study)}/plan")
        payload = Envelope.from_bytes(base64.b64decode(shown["plan_envelope"]), limit=8 << 20).payload
        if sha256_hex(payload) != shown["plan_digest"]:
            raise VerificationFailed(
                "The coordinator shows a plan that does not have the digest it names.",
                "Sign nothing; tell the coordinator's administrator.",
            )
        plan = plan_from(parse(payload, limit=4 << 20))
        if not as_json:
            typer.echo(plan_text(plan, shown["plan_digest"]))
        decision = "reject" if reject else "approve"
        if not yes:
            typer.confirm(f"Sign «{decision}» over {shown['plan_digest']}?", abort=True)
        key = account.unlock(read_passphrase(passphrase_file, "Passphrase"))
        approval = PlanApproval.model_validate(
            {
                "study": study,
                "plan_digest": shown["plan_digest"],
                "person": account.name,
                "role": account.role,
                "decision": decision,
                "signed_at": timestamp(datetime.now(UTC)),
            }
        )
        signed = seal(PLAN_APPROVAL_TYPE, approval.model_dump(mode="json"), key).to_bytes()
        document = connection.post_bytes(f"/v1/studies/{study}/approvals", signed)
    emit(document, as_json=as_json, text=f"{study} is {document['state']}.")


@app.command()
def exclude(
    study: Name,
    site: Annotated[str, typer.Argument(help="The site to shut out, as `cloister study status` shows it.")],
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why, in words; kept at the coordinator, erasable.")
    ] = None,
    confirm: Annotated[bool, typer.Option("--confirm", help="Do it, as another person in another role.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Ask to shut a site out of a running study, or confirm it: from its next attempt on it is not invited. What it
    added before stays in the model."""
    from coordinator.client.account import open_account

    if (reason is None) is not confirm:
        raise typer.BadParameter("give --reason to ask, or --confirm to confirm what another person asked")
    path = f"/v1/studies/{_name(study)}/exclusions"
    with open_account(home).connect() as connection:
        if confirm:
            document = connection.post(f"{path}/{_name(site)}/confirmation")
            said = f"{site} is shut out of {study}; left: {', '.join(document['left'])}."
        else:
            document = connection.post(path, {"site": site, "reason": reason})
            said = f"Asked. Another person in another role: `cloister study exclude {study} {site} --confirm`."
    emit(document, as_json=as_json, text=said)


@app.command()
def start(
    study: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress until the study has ended.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Start a study that enough sites have granted."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        document = connection.post(f"/v1/studies/{_name(study)}/start")
        if not wait:
            emit(document, as_json=as_json, text=f"{study} has started; watch it with `cloister study status {study}`.")
            return
        from coordinator.client.progress import watch

        ended = watch(lambda: connection.get(f"/v1/studies/{study}"), quiet=as_json)
    emit(ended, as_json=as_json, text=status_text(ended))
    if ended["state"] not in ("candidate", "completed"):
        raise typer.Exit(1)


@app.command()
def stop(study: Name, home: Home = None, as_json: Json = False) -> None:
    """Stop a study. What was spent stays spent."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        document = connection.post(f"/v1/studies/{_name(study)}/stop")
    emit(document, as_json=as_json, text=f"{study} is stopped.")


def _judged(
    spec: Path, home: Path | None
) -> tuple[SpecFile, Forecast | ExplorationForecast | None, tuple[Any, ...], tuple[str, ...]]:
    from coordinator.client.exploration_forecast import make_exploration_forecast
    from coordinator.client.forecast import make_forecast
    from coordinator.client.spec_file import load_spec
    from protocol.exploration import ExplorationSpec

    file = load_spec(spec)
    counts = _counts(file, home)
    if isinstance(file.spec, ExplorationSpec):
        return file, *make_exploration_forecast(file, file.spec, counts)
    return file, *make_forecast(file, file.spec, counts)


def _counts(file: SpecFile, home: Path | None) -> dict[str, int] | None:
    """Registered patients by site where the person is signed in; None where they are not, or nobody answers."""
    from coordinator.client.account import AccountError, open_account
    from coordinator.client.connection import CoordinatorRefused, CoordinatorUnreachable
    from coordinator.studies.plan import schema_digest

    try:
        with open_account(home).connect() as connection:
            rows = connection.get("/v1/datasets")
    except (AccountError, CoordinatorRefused, CoordinatorUnreachable):
        return None
    wanted = schema_digest(file.spec.dataset)
    return {str(row["site"]): int(row["patients"]) for row in rows if row["schema_digest"] == wanted}


def _name(study: str) -> str:
    from protocol.identifiers import require_name

    return require_name(study, "The study's name")
