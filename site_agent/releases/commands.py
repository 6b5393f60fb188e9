"""cloister-site releases …"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.canonical import digest
from site_agent.settings import SiteHome, load_settings

if TYPE_CHECKING:
    from policies.findings import Decision
    from site_agent.releases.install import Installed
    from site_agent.releases.trusted_release import Installable

app = typer.Typer(no_args_is_help=True, help="Verify, install and switch releases.")
Home = Annotated[Path | None, typer.Option("--home", help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("install")
def install_release(
    release: Annotated[str, typer.Argument(help="The release's name, as `releases list` shows it.")],
    file: Annotated[Path | None, typer.Option("--file", help="Install this bundle instead of fetching it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify everything; write nothing.")] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Fetch a release, verify it in fixed order, and switch to it."""
    from protocol.identifiers import require_name
    from site_agent.clock import system_clock
    from site_agent.coordinator_client import CoordinatorClient
    from site_agent.database import open_database, transaction
    from site_agent.keystore import load_keys
    from site_agent.releases.fetch import fetch, root_of
    from site_agent.releases.install import install, read_bundle, verify_bundle
    from site_agent.releases.own_log import check_own_log
    from site_agent.releases.sealed import examine
    from site_agent.serving.gate import gate_of, refusal
    from site_agent.serving.reports import Served, refusals_told, tell
    from site_agent.witness.cycle import Witness

    require_name(release, "The release's name")
    settings = load_settings(SiteHome.resolve(home))
    root, engine = root_of(settings), open_database(settings.home)
    if file is not None:
        bundle = read_bundle(file)
    else:
        keys = load_keys(settings.home)
        with CoordinatorClient(settings, keys) as client:
            bundle = fetch(client, settings.home, release)
            Witness(settings, keys, engine, client, system_clock).turn()
    checked = verify_bundle(bundle, root)
    verified = checked.release
    if verified.subject.release != release:
        from protocol.errors import VerificationFailed

        raise VerificationFailed(
            f"The bundle holds release {verified.subject.release}, not {release}.",
            "Name the release that the bundle holds, or fetch the right one.",
        )
    sealing = verified.logged.index, checked.files["event.json"]
    served = Served.of(settings.site, verified.subject)
    with nullcontext() if dry_run else refusals_told(engine, served, "install", system_clock):
        check_own_log(settings, engine, release, sealing, study=verified.subject.study)
    sealed = examine(tuple(sorted(checked.files)), checked.files, root)
    gate = gate_of(settings, engine, sealed, system_clock)
    if dry_run:
        decision = gate.decide()
        if not decision.allowed:
            raise refusal(release, decision)
    else:
        decision = gate.require("install")
        install(settings.home, checked)
        if file is None:
            with CoordinatorClient(settings, load_keys(settings.home)) as client:
                client.post_installed(release, _reported(verified, decision))
        else:
            with transaction(engine) as session:
                tell(session, served, "installed", system_clock, decision=digest(decision.to_dict()))
    document = {**_document(verified), "installed": not dry_run}
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    _show(document)
    typer.echo("dry run: nothing was switched" if dry_run else f"{release} is installed and is what serve answers with")


@app.command("list")
def list_releases(as_json: Json = False, home: Home = None) -> None:
    """Show the releases on this disk and which of them is served."""
    from site_agent.releases.install import installed

    rows = [_row(release) for release in installed(load_settings(SiteHome.resolve(home)).home)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"{'*' if row['current'] else ' '} {row['release']}  {row['digest'][:19]}  {row['intended_use']}")
    if not rows:
        typer.echo("No release yet: cloister-site releases install RELEASE")


@app.command("rollback")
def roll_back(
    release: Annotated[str, typer.Argument(help="A release that was installed before.")], home: Home = None
) -> None:
    """Serve an earlier release again: it is verified once more, and the serving gate is asked."""
    from site_agent.clock import system_clock
    from site_agent.database import open_database, transaction
    from site_agent.releases.fetch import root_of
    from site_agent.releases.install import find, rollback
    from site_agent.releases.own_log import check_own_log
    from site_agent.releases.sealed import examine_folder
    from site_agent.serving.gate import gate_of
    from site_agent.serving.reports import Served, refusals_told, tell

    settings = load_settings(SiteHome.resolve(home))
    earlier, engine = find(settings.home, release), open_database(settings.home)
    served = Served.of(settings.site, earlier.subject)
    with refusals_told(engine, served, "switch", system_clock):
        check_own_log(settings, engine, release, None)
    sealed = examine_folder(earlier.folder, root_of(settings, installed=True))
    decision = gate_of(settings, engine, sealed, system_clock).require("switch")
    switched = rollback(settings.home, release)
    with transaction(engine) as session:
        tell(session, served, "rolled-back", system_clock, decision=digest(decision.to_dict()))
    typer.echo(f"{switched.subject.release} is what serve answers with from its next start")


def _reported(verified: Installable, decision: Decision) -> dict[str, str]:
    """What the coordinator is told of an installation: what was installed, and by which decision."""
    return {"subject_digest": verified.subject.digest, "decision_digest": digest(decision.to_dict())}


@app.command("review")
def review_releases(as_json: Json = False, home: Home = None) -> None:
    """Show the releases, submitted or out, of the studies that this site took part in."""
    from site_agent.coordinator_client import CoordinatorClient
    from site_agent.keystore import load_keys
    from site_agent.releases.veto import check_offered

    settings = load_settings(SiteHome.resolve(home))
    with CoordinatorClient(settings, load_keys(settings.home)) as client:
        shown = [(check_offered(item), str(item.get("state")), str(item["model_card"])) for item in client.releases()]
    if as_json:
        rows = [{"release": s.release, "state": state, "digest": s.digest, "model_card": c} for s, state, c in shown]
        typer.echo(json.dumps(rows, indent=2))
        return
    for subject, state, card in shown:
        typer.echo(f"{card}\nRelease {subject.release} is {state.replace('_', ' ')}; digest {subject.digest}\n")
    typer.echo("To veto one: cloister-site releases veto RELEASE" if shown else "No release yet.")


@app.command("veto")
def veto_release(
    release: Annotated[str, typer.Argument(help="The release's name, as `releases review` shows it.")],
    reason: Annotated[
        str, typer.Option("--reason", help="patients, law, safety, quality, agreement or other: all that leaves here.")
    ],
    because: Annotated[str, typer.Option("--because", help="Why, in words, which stay at this site.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask again.")] = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Refuse a release for everybody before it is sealed, and for this site in any case."""
    from protocol.errors import Malformed
    from protocol.identifiers import require_name
    from site_agent.clock import system_clock
    from site_agent.coordinator_client import CoordinatorClient
    from site_agent.database import open_database
    from site_agent.keystore import load_keys
    from site_agent.releases.veto import check_offered, deliver_vetoes, veto

    require_name(release, "The release's name")
    settings = load_settings(SiteHome.resolve(home))
    keys, engine = load_keys(settings.home), open_database(settings.home)
    with CoordinatorClient(settings, keys) as client:
        offered = [item for item in client.releases() if item.get("release") == release]
        if not offered:
            raise Malformed(f"The coordinator shows no release {release}.", "See cloister-site releases review.")
        subject = check_offered(offered[0])
        if not yes:
            typer.confirm(f"Veto {release} ({subject.digest}) in the name of the hospital?", abort=True)
        row = veto(
            engine, subject, site=settings.site, key=keys.identity, reason=reason, words=because, now=system_clock()
        )
        deliver_vetoes(engine, client)
    document = {"release": release, "digest": row.subject_digest, "reason": row.reason, "vetoed": True}
    typer.echo(json.dumps(document, indent=2) if as_json else f"{release} is vetoed; it is not installed here.")


def _document(verified: Installable) -> dict[str, Any]:
    logged = verified.logged
    return {
        "release": verified.subject.release,
        "digest": verified.subject.digest,
        "verified": True,
        "approved_by": list(logged.approved.roles),
        "approved_with": list(logged.approved.methods),
        "waived": list(logged.approved.waived),
        "log_index": logged.index,
        "checkpoint_size": logged.checkpoint_size,
        "cosigned_by": list(logged.cosigners),
        "epsilon": verified.subject.epsilon.epsilon,
        "delta": verified.subject.epsilon.delta,
        "intended_use": verified.subject.intended_use,
        "use_mode": verified.subject.use_mode,
    }


def _row(release: Installed) -> dict[str, Any]:
    subject = release.subject
    return {
        "release": subject.release,
        "digest": subject.digest,
        "current": release.current,
        "study": subject.study,
        "intended_use": subject.intended_use,
        "use_mode": subject.use_mode,
    }


def _show(document: dict[str, Any]) -> None:
    typer.echo(f"{document['release']}: {document['digest']}")
    typer.echo("  keys      plan and statement are signed by the coordinator this site pinned")
    how = " and ".join(document["approved_with"])
    typer.echo(f"  approved  by people in the roles {', '.join(document['approved_by'])}, signed by {how}")
    if document["waived"]:
        typer.echo(f"  waived    by an approver, at the coordinator's gate: {', '.join(document['waived'])}")
    typer.echo(
        f"  logged    entry {document['log_index']} of {document['checkpoint_size']}, "
        f"cosigned by {', '.join(document['cosigned_by'])}; in this site's own copy"
    )
    typer.echo("  files     byte for byte the approved ones; both model files agree")
    typer.echo(f"  privacy   epsilon {document['epsilon']:.3f} at delta {document['delta']:g}, per patient")
