"""cloister release …: draft, review, approve, waive or reject, seal, stop.

An approver's machine recomputes the release digest from the document it shows before the key is unlocked: what is
read is what is signed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.client.options import Home, Json, PassphraseFile
from coordinator.terminal import emit, read_passphrase

if TYPE_CHECKING:
    from coordinator.client.connection import Connection
    from protocol.errors import CloisterError
    from protocol.membership import MembershipReport
    from protocol.release import ReleaseSubject, Selection

app = typer.Typer(no_args_is_help=True, help="Releases: draft, review, approve, seal.")
Name = Annotated[str, typer.Argument(help="The release, as `cloister release list` shows it.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in words; kept at the coordinator, erasable.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask before signing.")]
SEAL_POLL_SECONDS = 0.5


@app.command()
def draft(
    study: Annotated[str, typer.Argument(help="The study whose candidate is released.")],
    intended_use: Annotated[str, typer.Option("--intended-use", help="A purpose code that the study declared.")],
    use_mode: Annotated[str, typer.Option("--use-mode", help="research or decision-support.")] = "research",
    claim_anonymous: Annotated[
        bool, typer.Option("--claim-anonymous", help="Claim that it is anonymous; needs an evaluation of attacks.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Draft a release from a study's candidate."""
    from coordinator.client.account import open_account

    body: dict[str, Any] = {"study": study, "intended_use": intended_use, "use_mode": use_mode}
    if claim_anonymous:
        body["claim_anonymous"] = True
    with open_account(home).connect() as connection:
        made = connection.post("/v1/releases", body)
    _tell(made, as_json, next_step=f"cloister release submit {made['release']}")


@app.command("list")
def list_releases(home: Home = None, as_json: Json = False) -> None:
    """List releases."""
    from coordinator.client.account import open_account
    from coordinator.terminal import table

    with open_account(home).connect() as connection:
        rows = connection.get("/v1/releases")
    columns = ("release", "study", "state", "submitter", "subject_digest")
    emit(rows, as_json=as_json, text=table(columns, [tuple(row[name] for name in columns) for row in rows]))


@app.command()
def show(release: Name, home: Home = None, as_json: Json = False) -> None:
    """Show a release: its model card, the decisions on it, and what the release gate says now."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        document = connection.get(f"/v1/releases/{_name(release)}")
    _check_card(_check_subject(document["subject"], document["subject_digest"]), document["model_card"])
    findings = [f"  {item['rule']} ({item['citation']}): {item['message']}" for item in document["gate"]["findings"]]
    votes = [f"  {vote['role']} {vote['person']}: {vote['decision']}" for vote in document["approvals"]]
    text = [
        document["model_card"],
        f"Release {document['release']} is {document['state'].replace('_', ' ')}; digest {document['subject_digest']}",
        "Decisions:",
        *(votes or ["  none yet"]),
        *(f"  vetoed by {veto['site']}: {veto['reason']}" for veto in document["vetoes"]),
        *(f"Waived until {w['until']} by {w['person']}: {w['pack']} {w['rule']}" for w in document["waivers"]),
        *(f"Served at {s['site']} by {s['answering']}; last told: {s['last']}, {s['at']}" for s in document["serving"]),
        f"The release gate says now: {document['gate']['outcome']}",
        *findings,
    ]
    emit(document, as_json=as_json, text="\n".join(text))


@app.command("remove-dossier")
def remove_dossier(
    release: Name,
    confirm: Annotated[bool, typer.Option("--confirm", help="Confirm what another person asked for.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Have a release's documents removed once their ten years are over: one person asks, another role confirms."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        document = connection.post(f"/v1/dossiers/{_name(release)}/removal{'/confirm' if confirm else ''}")
    asked = f"Asked; another person in another role runs `cloister release remove-dossier {release} --confirm`."
    gone = f"The dossier of {release} is removed; the log's entries and every proof stay."
    emit(document, as_json=as_json, text=gone if confirm else asked)


@app.command()
def submit(release: Name, home: Home = None, as_json: Json = False) -> None:
    """Put a draft into review."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        document = connection.post(f"/v1/releases/{_name(release)}/submit")
    failed = document["state"] == "failed"
    step = "a compliance officer and a clinical lead run cloister release approve"
    _tell(document, as_json, next_step="draft it again; tell the administrator if it fails again" if failed else step)
    if failed:
        raise typer.Exit(1)


@app.command()
def approve(
    release: Name, reason: Reason, yes: Yes = False, home: Home = None, passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Sign an approval of the release's digest with your own key."""
    _decide(release, "approve", reason, yes, home, passphrase_file, as_json)


@app.command()
def reject(
    release: Name, reason: Reason, yes: Yes = False, home: Home = None, passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Sign a rejection: one is enough to end the release."""
    _decide(release, "reject", reason, yes, home, passphrase_file, as_json)


@app.command()
def seal(
    release: Name,
    home: Home = None,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for the sites to cosign.")] = 30,
    as_json: Json = False,
) -> None:
    """Have the release gate decide, sign and log an approved release; wait until a quorum of sites has cosigned."""
    from coordinator.client.account import open_account

    deadline = time.monotonic() + wait
    with open_account(home).connect() as connection:
        while True:
            document = connection.post(f"/v1/releases/{_name(release)}/seal")
            if document["state"] == "released" or time.monotonic() >= deadline:
                break
            time.sleep(SEAL_POLL_SECONDS)
    sealed = document["state"] == "released"
    step = f"cloister-site releases install {release}" if sealed else "wait for the sites' agents, then seal again"
    _tell(document, as_json, next_step=step)
    if not sealed:
        raise typer.Exit(1)


@app.command()
def suspend(release: Name, reason: Reason, home: Home = None, as_json: Json = False) -> None:
    """Stop a released model from being fetched: one approver is enough."""
    _stop(release, "suspend", reason, home, as_json, next_step="have each site stop cloister-site serve, or roll back")


@app.command()
def revoke(release: Name, reason: Reason, home: Home = None, as_json: Json = False) -> None:
    """Take a released or suspended model back for good: one approver is enough."""
    _stop(
        release, "revoke", reason, home, as_json, next_step="draft another release of the study, if there is to be one"
    )


@app.command("break-glass")
def break_glass(
    release: Name,
    reason: Reason,
    review: Annotated[bool, typer.Option("--review", help="Say what came of it, as an approver.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Suspend a released model in an emergency, whatever your role; an approver looks at it afterwards."""
    if review:
        _stop(release, "break-glass/review", reason, home, as_json, next_step=f"cloister release revoke {release}")
        return
    step = "an approver looks at it: cloister release break-glass --review"
    _stop(release, "break-glass", reason, home, as_json, next_step=step)


@app.command()
def waive(
    release: Name,
    pack: Annotated[str, typer.Option("--pack", help="The rule's pack.")],
    rule: Annotated[str, typer.Option("--rule", help="A rule that its pack lets approvers waive.")],
    days: Annotated[int, typer.Option("--days", min=1, max=90, help="How long the waiver holds.")],
    reason: Reason,
    yes: Yes = False,
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Answer for one rule of the release gate with your own key, before anybody decides. Never for consent,
    agreements, audit or approvals."""
    from datetime import UTC, datetime, timedelta

    from coordinator.client.account import open_account
    from protocol.canonical import parse, sha256_hex
    from protocol.envelope import seal as sign
    from protocol.release import WAIVER_TYPE, ReleaseWaiver
    from protocol.timestamp import timestamp

    account = open_account(home)
    with account.connect() as connection:
        asked, subject = _challenged(connection, release)
        now = datetime.now(UTC)
        until = timestamp(now + timedelta(days=days, minutes=-5))
        if not yes:
            typer.confirm(f"Sign a waiver of {pack} {rule} for {subject.digest} until {until}?", abort=True)
        key = account.unlock(read_passphrase(passphrase_file, "Passphrase"))
        waiver = ReleaseWaiver.model_validate(
            {
                "release": subject.release,
                "subject_digest": subject.digest,
                "person": account.name,
                "role": account.role,
                "pack": pack,
                "rule": rule,
                "reason_hash": sha256_hex(reason.encode()),
                "expires_at": until,
                "challenge": asked["challenge"],
                "signed_at": timestamp(now),
            }
        )
        envelope = sign(WAIVER_TYPE, waiver.model_dump(mode="json"), key)
        body = {"envelope": parse(envelope.to_bytes()), "reason": reason}
        document = connection.post(f"/v1/releases/{release}/waivers", body)
    _tell(document, as_json, next_step=f"cloister release show {release}")


def _stop(release: str, verb: str, reason: str, home: Path | None, as_json: bool, *, next_step: str) -> None:
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        document = connection.post(f"/v1/releases/{_name(release)}/{verb}", {"reason": reason})
    _tell(document, as_json, next_step=next_step)


def _challenged(connection: Connection, release: str) -> tuple[dict[str, Any], ReleaseSubject]:
    """A fresh challenge, and the subject that it is for, once its digest is found to be right."""
    asked = connection.post(f"/v1/releases/{_name(release)}/challenge")
    subject = _check_subject(asked["subject"], asked["subject_digest"])
    if subject.release != release:
        raise _other_release(subject.release, release)
    return asked, subject


def _decide(
    release: str, decision: str, reason: str, yes: bool, home: Path | None, passphrase_file: Path | None, as_json: bool
) -> None:
    from datetime import UTC, datetime

    from coordinator.client.account import open_account
    from protocol.canonical import parse, sha256_hex
    from protocol.envelope import seal as sign
    from protocol.release import APPROVAL_TYPE, Approval
    from protocol.timestamp import timestamp

    account = open_account(home)
    with account.connect() as connection:
        asked, subject = _challenged(connection, release)
        if not as_json:
            typer.echo(_summary(subject))
        if not yes:
            typer.confirm(f"Sign «{decision}» over {subject.digest}?", abort=True)
        key = account.unlock(read_passphrase(passphrase_file, "Passphrase"))
        approval = Approval.model_validate(
            {
                "release": subject.release,
                "subject_digest": subject.digest,
                "person": account.name,
                "role": account.role,
                "decision": decision,
                "meaning": "reviewed-and-approved" if decision == "approve" else "reviewed-and-rejected",
                "reason_hash": sha256_hex(reason.encode()),
                "packs": asked["packs"],
                "challenge": asked["challenge"],
                "signed_at": timestamp(datetime.now(UTC)),
            }
        )
        envelope = sign(APPROVAL_TYPE, approval.model_dump(mode="json"), key)
        body = {"envelope": parse(envelope.to_bytes()), "reason": reason}
        document = connection.post(f"/v1/releases/{release}/approvals", body)
    verb = "seal" if document["state"] == "approved" else "show"
    _tell(document, as_json, next_step=f"cloister release {verb} {release}")


def _check_subject(document: Any, digest: str) -> ReleaseSubject:
    """The subject, once its own digest is found to be the one that the coordinator names."""
    from pydantic import ValidationError

    from protocol.errors import VerificationFailed
    from protocol.release import ReleaseSubject

    try:
        subject = ReleaseSubject.model_validate(document)
    except ValidationError:
        subject = None
    if subject is None or subject.digest != digest:
        raise VerificationFailed(
            "The coordinator shows a release that does not have the digest it names.",
            "Sign nothing; tell the coordinator's administrator and the compliance officer.",
        )
    return subject


def _check_card(subject: ReleaseSubject, card: str) -> None:
    """The model card that is read is the one whose digest is signed."""
    from protocol.canonical import sha256_hex
    from protocol.errors import VerificationFailed

    signed = {entry.name: entry.sha256 for entry in subject.files}
    if signed.get("model_card.md") != sha256_hex(card.encode()):
        raise VerificationFailed(
            "The coordinator shows another model card than the one in the release.",
            "Sign nothing; tell the coordinator's administrator and the compliance officer.",
        )


def _other_release(shown: str, asked: str) -> CloisterError:
    from protocol.errors import VerificationFailed

    return VerificationFailed(
        f"The coordinator asks for a signature on {shown}, not on {asked}.",
        "Sign nothing; tell the coordinator's administrator and the compliance officer.",
    )


def _summary(subject: ReleaseSubject) -> str:
    from protocol.evaluation import figures

    epsilon = subject.epsilon
    measured = [f"{name}: {figure.told}" for name, figure in figures(subject.evaluation)]
    outside = " (evaluated outside the privacy guarantee)" if subject.evaluation.outside_guarantee else ""
    return "\n".join(
        [
            f"release     {subject.release} of study {subject.study}",
            f"use         {subject.intended_use}, {subject.use_mode}; for {', '.join(subject.recipients)}",
            f"privacy     epsilon {epsilon.epsilon:.3f} at delta {epsilon.delta:g} per patient; "
            f"worst case of a site {epsilon.epsilon_worst_site:.3f}, in the evaluation "
            f"{_or_exact(epsilon.epsilon_evaluation_worst_site)}",
            f"measured    on {subject.evaluation.held_out} held-out patients{outside}",
            *(f"            {line}" for line in measured),
            *_chosen(epsilon.selection),
            f"rests on    {epsilon.trust}",
            f"attacked    {_attacked(subject.membership)}",
            f"digest      {subject.digest}",
        ]
    )


def _chosen(selection: Selection | None) -> list[str]:
    if selection is None:
        return []
    return [
        f"chosen      best of {len(selection.runs)} runs over a grid of {selection.entries} (entry {selection.chosen}) "
        "on these same patients: what was measured leans upwards; epsilon is that of all runs together"
    ]


def _attacked(report: MembershipReport | None) -> str:
    from protocol.membership import audit_figures

    if report is None:
        return "no membership audit was planned"
    if not report.ran:
        return f"the membership audit DID NOT RUN: {report.reason}"
    return "; ".join(f"{name} {figure.told}" for name, figure in audit_figures(report))


def _or_exact(epsilon: float | None) -> str:
    return "its exact counts" if epsilon is None else f"{epsilon:.3f}"


def _name(release: str) -> str:
    from protocol.identifiers import require_name

    return require_name(release, "The release's name")


def _tell(document: dict[str, Any], as_json: bool, *, next_step: str) -> None:
    state = document["state"].replace("_", " ")
    emit(document, as_json=as_json, text=f"{document['release']} is {state}. Next: {next_step}")
