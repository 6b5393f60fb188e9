"""`cloister`: what researchers, approvers and auditors run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from coordinator.client import (
    evidence,
    incident,
    model,
    people,
    policy_change,
    release,
    review,
    study,
    witness_commands,
)
from coordinator.client.options import Home, Json, PassphraseFile
from coordinator.terminal import emit, read_passphrase, run

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
audit = typer.Typer(no_args_is_help=True, help="The audit log: export, verify, query, monitor.")
app.add_typer(study.app, name="study")
app.add_typer(model.app, name="model")
app.add_typer(release.app, name="release")
app.add_typer(policy_change.app, name="policy")
app.add_typer(evidence.app, name="evidence")
app.add_typer(incident.app, name="incident")
app.add_typer(review.app, name="review")
app.add_typer(people.app, name="people")
app.add_typer(audit, name="audit")
audit.add_typer(witness_commands.app, name="witness")

EXPORT_POLL_SECONDS = 0.5

Bundle = Annotated[Path, typer.Argument(help="The bundle: a .tar or a folder.")]
PinnedPolicy = Annotated[
    Path | None, typer.Option("--witness-policy", help="The policy that you trust, from elsewhere.")
]
PinnedLog = Annotated[str | None, typer.Option("--log-key", help="The log's key (vkey) that you trust.")]


@app.callback()
def about() -> None:
    """Take part in a Cloister federation: studies, releases, policy, audit."""


@app.command()
def login(
    token: Annotated[str | None, typer.Argument(help="The one-time token, the first time.")] = None,
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Sign in. The first time, with the token, make your key and register it."""
    from coordinator.client.account import open_account, register, sign_in

    if token is None:
        account = open_account(home)
        passphrase = read_passphrase(passphrase_file, "Passphrase")
    else:
        passphrase = read_passphrase(passphrase_file, "Choose a passphrase for your key", confirm=True)
        account = register(token, home, passphrase)
    sign_in(account, account.unlock(passphrase))
    emit(
        {"name": account.name, "role": account.role.value, "address": account.address, "home": str(account.home)},
        as_json=as_json,
        text=f"Signed in at {account.address} as {account.name} ({account.role.value}).",
    )


@app.command()
def logout(home: Home = None) -> None:
    """End the session."""
    from coordinator.client.account import open_account, sign_out

    sign_out(open_account(home))
    typer.echo("Signed out.")


@app.command()
def password(
    home: Home = None,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="A file whose first line is the new password.")
    ] = None,
) -> None:
    """Choose a password and an authenticator app for signing in with a browser. Sign in first; your key stays yours."""
    from coordinator.client.account import open_account

    # Never the environment's passphrase: that one opens the key and leaves this machine for nobody.
    if password_file is not None:
        chosen = password_file.read_text(encoding="utf-8").split("\n", 1)[0]
    else:
        chosen = typer.prompt("New password for the browser", hide_input=True, confirmation_prompt=True)
    with open_account(home).connect() as connection:
        made = connection.post("/v1/people/me/password", {"password": chosen})
        typer.echo(f"Add this secret to your authenticator app: {made['secret']}\n{made['uri']}")
        connection.post("/v1/people/me/password/confirm", {"code": typer.prompt("The code that it shows").strip()})
    typer.echo("This password and the app's codes sign you in from now on. Sign in again: your sessions have ended.")


@app.command()
def sites(home: Home = None, as_json: Json = False) -> None:
    """List the sites and the data sets that they have registered: counts and schema digests."""
    from coordinator.client.account import open_account
    from coordinator.terminal import table

    with open_account(home).connect() as connection:
        found, datasets = connection.get("/v1/sites"), connection.get("/v1/datasets")
    rows = [(row["site"], row["name"], row["patients"], row["held_out"], row["schema_digest"]) for row in datasets]
    without = {row["name"] for row in found} - {row[0] for row in rows}
    rows += [(name, None, None, None, None) for name in sorted(without)]
    emit(
        {"sites": found, "datasets": datasets},
        as_json=as_json,
        text=table(("site", "data set", "patients", "held out", "schema"), rows),
    )


@audit.command("reviewed")
def audit_reviewed(home: Home = None, as_json: Json = False) -> None:
    """Say that you have reviewed the log as it is published now: it is logged, and the round gate counts from it."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        told = connection.post("/v1/audit/reviews", {})
    emit(told, as_json=as_json, text=f"Your review of the log's {told['size']} entries is on record.")


@audit.command("export")
def audit_export(
    out: Annotated[Path, typer.Argument(help="The bundle to write: a name ending in .tar, or a new folder.")],
    home: Home = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for the sites to cosign what is logged now.")
    ] = 30,
    as_json: Json = False,
) -> None:
    """Export the log up to now, with the cosignatures of a quorum of sites."""
    from coordinator.client.account import open_account
    from coordinator.client.audit_export import fetch_bundle, write_bundle

    with open_account(home).connect() as connection:
        size = write_bundle(
            out, lambda file: fetch_bundle(connection, file, wait_seconds=wait, pause_seconds=EXPORT_POLL_SECONDS)
        )
    emit(
        {"bundle": str(out), "bytes": size},
        as_json=as_json,
        text=f"The audit bundle is in {out}; check it anywhere with `cloister audit verify {out}`.",
    )


@audit.command("erase")
def audit_erase(
    index: Annotated[int, typer.Argument(help="The entry whose words are to go: its index in the log.", min=0)],
    ground: Annotated[
        str | None, typer.Option("--ground", help="Ask for it: unlawful-content or subject-request.")
    ] = None,
    confirm: Annotated[bool, typer.Option("--confirm", help="Confirm what another person asked for.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Have the words of one entry erased: one person asks, another in another role confirms. Proofs hold."""
    from coordinator.client.account import open_account
    from protocol.errors import Malformed

    if confirm == (ground is not None):
        raise Malformed("Give either --ground, to ask, or --confirm.", "See cloister audit erase --help.")
    with open_account(home).connect() as connection:
        if confirm:
            document = connection.post(f"/v1/audit/erasures/{index}/confirm")
        else:
            document = connection.post("/v1/audit/erasures", {"index": index, "ground": ground})
    gone = f"The words of entry {index} are erased; its leaf and every proof stay."
    emit(
        document,
        as_json=as_json,
        text=gone if confirm else f"Asked; a second person confirms with `cloister audit erase {index} --confirm`.",
    )


@audit.command("verify")
def audit_verify(
    bundle: Bundle,
    witness_policy: PinnedPolicy = None,
    log_key: PinnedLog = None,
    as_json: Json = False,
) -> None:
    """Verify a bundle, or what a query found (.jsonl), offline. Nothing but it, and the keys that you pin, is read."""
    from coordinator.client.audit_bundle import read_policy, verify_path
    from coordinator.client.audit_formats import verify_found
    from protocol.errors import VerificationFailed
    from protocol.note import VerifierKey

    trusted = read_policy(witness_policy) if witness_policy else None
    log = VerifierKey.parse(log_key) if log_key else None
    if bundle.suffix == ".jsonl":
        report = verify_found(bundle.read_bytes(), policy=trusted, log=log)
    else:
        report = verify_path(bundle, policy=trusted, log=log)
    emit(report.document(), as_json=as_json, text=report.text())
    if not report.verified and as_json:
        raise typer.Exit(1)
    if not report.verified:
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        raise VerificationFailed(
            f"{bundle} is not a true bundle of the log: {report.problems[0]}{more}",
            "Export it again; if it fails again, do not rely on it and tell the sites that watch the log.",
        )


@audit.command("report")
def audit_report(
    out: Annotated[Path, typer.Argument(help="The PDF to write.")],
    study: Annotated[str | None, typer.Option("--study", help="One study, with every entry of it.")] = None,
    home: Home = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for the sites to cosign what is logged now.")
    ] = 30,
    as_json: Json = False,
) -> None:
    """Have the coordinator print and sign what the log holds: checkpoint, quorum, events, how to verify."""
    import io

    from coordinator.client.account import AccountError, open_account
    from coordinator.client.audit_export import fetch_bundle
    from coordinator.client.audit_report import check_report
    from coordinator.client.audit_watch import write_durably

    if out.exists():
        raise AccountError(f"{out} exists already.", "Name another place, or remove it first.")
    account, data = open_account(home), io.BytesIO()
    query = {"study": study} if study is not None else {}
    with account.connect() as connection:
        fetch_bundle(
            connection, data, wait_seconds=wait, pause_seconds=EXPORT_POLL_SECONDS, path="/v1/audit/report", **query
        )
    checked = check_report(data.getvalue(), account.ca_path.read_bytes())
    write_durably(out, data.getvalue())
    emit(
        {"report": str(out), **checked.document()},
        as_json=as_json,
        text=f"The evidence report is in {out}: signed by {checked.signer}, on a checkpoint of {checked.size} entries "
        f"that {', '.join(checked.cosigners)} cosigned.",
    )


@audit.command("check-report")
def audit_check_report(
    file: Annotated[Path, typer.Argument(help="The PDF.")],
    ca: Annotated[Path, typer.Option("--ca", help="The coordinator's certificate authority (PEM).")],
    witness_policy: PinnedPolicy = None,
    as_json: Json = False,
) -> None:
    """Check an evidence report offline: its signature under that authority, every byte, and its checkpoint's quorum."""
    from coordinator.client.audit_bundle import read_policy
    from coordinator.client.audit_report import check_report

    checked = check_report(
        file.read_bytes(), ca.read_bytes(), policy=read_policy(witness_policy) if witness_policy else None
    )
    emit(
        checked.document(),
        as_json=as_json,
        text=f"VERIFIED\n  signed by             {checked.signer}\n  under the authority   {checked.ca}\n"
        f"  at (its own word)     {checked.signed_at}\n  checkpoint size       {checked.size}\n"
        f"  cosigned by           {', '.join(checked.cosigners)}",
    )


@audit.command("monitor")
def audit_monitor(
    state: Annotated[Path, typer.Option("--state", help="The file that keeps what was seen.")],
    log_key: PinnedLog = None,
    witness_policy: PinnedPolicy = None,
    address: Annotated[
        str | None, typer.Option("--address", help="The coordinator, where you have no account.")
    ] = None,
    ca: Annotated[Path | None, typer.Option("--ca", help="Its certificate authority (PEM), with --address.")] = None,
    stall: Annotated[int, typer.Option(min=1, help="Seconds that entries may be without a quorum.")] = 3600,
    quiet: Annotated[int | None, typer.Option(min=1, help="Seconds that the log may go without an entry.")] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", help="A checkpoint that someone else was served: is it ours?")
    ] = None,
    follow: Annotated[
        float | None, typer.Option(min=1, help="Look again every so many seconds, until an alarm.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Follow the log from outside: fork, rollback, a change or entries that no quorum cosigns end it with an alarm."""
    import time

    from coordinator.client.audit_bundle import read_policy
    from coordinator.client.audit_watch import connect, load, watch
    from protocol.note import VerifierKey

    pinned = read_policy(witness_policy) if witness_policy else None
    key = VerifierKey.parse(log_key) if log_key else None
    other = compare.read_bytes() if compare else None
    with connect(home, address, ca) as connection:
        while True:
            now = int(time.time())
            turn = watch(
                connection, state, load(state, key, pinned, now=now), now=now, stall_seconds=stall, quiet_seconds=quiet,
                other=other,
            )  # fmt: skip
            emit(
                turn.document(),
                as_json=as_json,
                text=f"{turn.size} entries, {turn.new_entries} of them new; {turn.witnessed} vouched for by "
                f"{', '.join(turn.cosigners) or 'nobody'}",
            )
            if follow is None:
                return
            time.sleep(follow)


@audit.command("query")
def audit_query(
    bundle: Bundle,
    event: Annotated[list[str] | None, typer.Option("--event", help="Such as release.sealed; may be repeated.")] = None,
    actor: Annotated[str | None, typer.Option("--actor", help="Who: a label, such as site:NAME.")] = None,
    person: Annotated[str | None, typer.Option("--person", help="Who or whom: a person's name.")] = None,
    site: Annotated[str | None, typer.Option("--site", help="A site that acts, is acted upon or is named.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="What it was done to: a label.")] = None,
    study: Annotated[str | None, typer.Option("--study", help="A study, and its releases.")] = None,
    release: Annotated[str | None, typer.Option("--release", help="One release.")] = None,
    digest: Annotated[str | None, typer.Option("--digest", help="A document: sha256:…")] = None,
    since: Annotated[str | None, typer.Option("--since", help="A day or a time in UTC, included.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="A day or a time in UTC, included.")] = None,
    witness_policy: PinnedPolicy = None,
    log_key: PinnedLog = None,
    form: Annotated[
        str | None, typer.Option("--format", help="jsonl (the master: with proofs), csv, fhir, ocsf, or json.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV that is safe to open in a spreadsheet.")] = False,
    as_json: Json = False,
) -> None:
    """Find events in a bundle by who, what and when. Offline; the bundle is verified first, or nothing is answered."""
    from coordinator.client.audit_bundle import open_bundle, read_policy
    from coordinator.client.audit_formats import to_fhir, to_jsonl, to_ocsf
    from coordinator.client.audit_query import AuditQuery, BadQuery, find, to_csv, to_rows
    from coordinator.terminal import table
    from protocol.note import VerifierKey
    from protocol.witness_policy import WitnessPolicy

    asked = {*([form] if form else []), *(["csv"] if as_csv else []), *(["json"] if as_json else [])}
    if len(asked) > 1 or not asked <= {"jsonl", "csv", "fhir", "ocsf", "json"}:
        raise BadQuery("That is no form, or more than one.", "Give --format jsonl, csv, fhir, ocsf or json.")
    wanted = asked.pop() if asked else "text"
    query = AuditQuery.of(
        events=event or (), actor=actor, subject=subject, study=study, release=release, since=since, until=until,
        person=person, site=site, digest=digest,
    )  # fmt: skip
    with open_bundle(bundle) as opened:
        report, found = find(
            opened,
            query,
            policy=read_policy(witness_policy) if witness_policy else None,
            log=VerifierKey.parse(log_key) if log_key else None,
        )
        master = list(to_jsonl(opened, found)) if wanted == "jsonl" else []
        origin = WitnessPolicy.from_bytes(opened.small["witness_policy.json"]).log.name
    if wanted == "csv":
        typer.echo(to_csv(found), nl=False)
    elif wanted == "jsonl":
        typer.echo(b"".join(master), nl=False)
    elif wanted in ("fhir", "ocsf"):
        for line in (to_fhir if wanted == "fhir" else to_ocsf)(origin, found):
            typer.echo(line)
    if wanted in ("csv", "jsonl", "fhir", "ocsf"):
        return
    document = {
        "verified": report.verified, "anchor": report.anchor, "entries": report.entries, "found": len(found),
        "events": [item.document() for item in found],
    }  # fmt: skip
    rows = table(("index", "time", "event", "actor", "subject", "details"), to_rows(found))
    summary = f"{len(found)} of {report.entries} entries; trust rests on {report.anchor}."
    emit(document, as_json=wanted == "json", text=f"{rows}\n{summary}" if found else summary)


def main() -> NoReturn:
    """The entry point of `cloister`."""
    os.umask(0o077)
    run(app)


if __name__ == "__main__":
    main()
