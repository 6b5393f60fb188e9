"""cloister evidence draft …: documents with what the system knows, and blanks for what only a person can say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.client.options import Home, Json
from coordinator.terminal import emit

if TYPE_CHECKING:
    from datetime import date

    from coordinator.client.connection import Connection
    from coordinator.client.drafts.draft import Basis, Draft
    from coordinator.client.drafts.facts import StudyKnown

app = typer.Typer(no_args_is_help=True, help="Draft documents: what is known, and blanks for a person.")
Out = Annotated[Path, typer.Argument(help="The .docx or .csv to write.")]
Spec = Annotated[Path | None, typer.Option("--spec", help="The study's file, where it is not proposed yet.")]


@app.command("dpia")
def dpia(
    out: Out,
    study: Annotated[str | None, typer.Option("--study", help="A study that was proposed.")] = None,
    spec: Spec = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Draft the impact assessment of a study (Art. 35 GDPR). Another spec makes it stale, and the draft says so."""
    from coordinator.client.account import open_account
    from protocol.errors import Malformed

    if (study is None) == (spec is None):
        raise Malformed("An assessment is about one study.", "Give --study NAME, or --spec FILE before it is proposed.")
    with open_account(home).connect() as connection:
        draft = _dpia(connection, _study(connection, study or "", spec))
    _write(draft, out, as_json=as_json)


@app.command("ropa")
def ropa(
    out: Out,
    view: Annotated[str, typer.Option("--view", help="controller, or processor.")] = "controller",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Draft the register of processing activities (Art. 30 GDPR) over all studies, as controllers or processor."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        draft = _ropa(connection, view)
    _write(draft, out, as_json=as_json)


@app.command("hipaa")
def hipaa(
    out: Out,
    party: Annotated[str, typer.Option("--party", help="An enrolled hospital, or coordinator.")] = "coordinator",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Draft the matrix of the HIPAA Security Rule's safeguards for one hospital, or for the coordinator's operator."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        draft = _hipaa(connection, party)
    _write(draft, out, as_json=as_json)


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A draft, worked on since or not.")],
    spec: Spec = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Say whether a draft is stale: what it copied has changed since. Exit status 1 if so."""
    from coordinator.client.account import open_account
    from coordinator.client.drafts.documents import read_document
    from coordinator.client.drafts.draft import MARK, read_basis, stale_sections
    from protocol.errors import VerificationFailed

    text = read_document(file)
    before = read_basis(text)
    with open_account(home).connect() as connection:
        now = _again(connection, before, spec).basis
    changed = stale_sections(before, now)
    stale = bool(changed) or before.spec != now.spec
    document = {
        "kind": before.kind, "subject": before.subject, "stale": stale, "sections": list(changed),
        "another_spec": before.spec != now.spec, "blanks": text.count(f"{MARK}: "),
    }  # fmt: skip
    if not stale or as_json:
        emit(document, as_json=as_json, text=f"{file.name} rests on what is on record now.")
    if stale and as_json:
        raise typer.Exit(1)
    if stale:
        why = "it is about another spec than the study has now" if before.spec != now.spec else "its facts have changed"
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        where = f" ({'; '.join(changed[:5])}{more})" if changed else ""
        raise VerificationFailed(
            f"{file.name} is stale: {why}{where}.",
            "Draft it anew, and carry over what a person has judged that still holds.",
        )


def _again(connection: Connection, before: Basis, spec: Path | None) -> Draft:
    """The draft as it would be made now."""
    if before.kind == "dpia":
        return _dpia(connection, _study(connection, before.subject, spec))
    return _ropa(connection, before.view) if before.kind == "ropa" else _hipaa(connection, before.subject)


def _study(connection: Connection, name: str, spec: Path | None) -> StudyKnown:
    from coordinator.client.drafts.facts import read_spec, read_study

    return read_study(connection, name) if spec is None else read_spec(spec)


def _dpia(connection: Connection, study: StudyKnown) -> Draft:
    from coordinator.client.drafts.assessment import draft_dpia
    from coordinator.client.drafts.facts import read_known

    at, today = _now()
    return draft_dpia(study, read_known(connection, [study], today=today), made_at=at)


def _ropa(connection: Connection, view: str) -> Draft:
    from coordinator.client.drafts.facts import read_known, read_study
    from coordinator.client.drafts.register import draft_register

    at, today = _now()
    proposed = [row["study"] for row in connection.get("/v1/studies") if row["state"] != "denied"]
    studies = [read_study(connection, name) for name in proposed]
    return draft_register(view, read_known(connection, studies, today=today), made_at=at)


def _hipaa(connection: Connection, party: str) -> Draft:
    from coordinator.client.drafts.facts import read_known
    from coordinator.client.drafts.safeguards import OPERATOR, draft_safeguards
    from protocol.errors import Malformed

    at, today = _now()
    facts = read_known(connection, [], today=today)
    if party != OPERATOR and party not in facts.sites:
        raise Malformed(f"{party[:64]!r} is no enrolled hospital.", "See `cloister sites`, or give coordinator.")
    return draft_safeguards(party, facts, made_at=at)


def _write(draft: Draft, out: Path, *, as_json: bool) -> None:
    from coordinator.client.account import AccountError
    from coordinator.client.audit_watch import write_durably
    from coordinator.client.drafts.documents import to_csv, to_docx
    from protocol.errors import Malformed

    if out.suffix not in (".docx", ".csv"):
        raise Malformed(f"{out.name} is neither .docx nor .csv.", "Name the file so that its form is told.")
    if out.exists():
        raise AccountError(f"{out} exists already.", "Name another place: what somebody filled in is not overwritten.")
    write_durably(out, to_docx(draft) if out.suffix == ".docx" else to_csv(draft))
    notices = "".join(f"\n{notice}" for notice in draft.notices)
    emit(
        {"draft": str(out), "kind": draft.kind, "blanks": draft.blanks, "notices": list(draft.notices)},
        as_json=as_json,
        text=f"The draft is in {out}; {draft.blanks} entries are left to a person.{notices}",
    )


def _now() -> tuple[str, date]:
    from datetime import UTC, datetime

    from protocol.timestamp import timestamp

    now = datetime.now(UTC)
    return timestamp(now), now.date()
