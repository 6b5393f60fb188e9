"""cloister policy propose | activate | reject | list | show | dry-run: the set of packs that is in force, and how two
people change it.

Who decides reads the documents on their own machine: their digests are recomputed here before a key is unlocked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.client.options import Home, Json, PassphraseFile
from coordinator.client.policy import app, run_all
from coordinator.terminal import emit, read_passphrase, table

if TYPE_CHECKING:
    from coordinator.client.account import Account
    from coordinator.client.connection import Connection
    from policies.replay import Past
    from protocol.policy_set import PolicySet

SetDigest = Annotated[str, typer.Argument(metavar="SET", help="The set's digest, as `cloister policy list` shows it.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in words; kept at the coordinator, erasable.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask before signing.")]
__all__ = ["app"]
IN_FORCE = "in-force"
PAGE = 200
LAPSE = (
    "\nWhere a hospital granted a study under packs of the set in force that this one takes back or writes anew, the "
    "grant lapses and the hospital refuses the study's rounds: let running studies end first, or propose them again."
)


@app.command("list")
def list_sets(home: Home = None, as_json: Json = False) -> None:
    """List the sets that are or were in force, and those that are proposed."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        rows = connection.get("/v1/policy/sets")
    columns = ("number", "state", "origin", "proposer", "activated_at", "set")
    emit(rows, as_json=as_json, text=table(columns, [tuple(row[name] for name in columns) for row in rows]))


@app.command("show")
def show_set(
    digest: SetDigest,
    out: Annotated[Path | None, typer.Option("--out", help="Write the set's documents into this new folder.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show a set: who decided on it, and how it differs from what is in force."""
    from coordinator.client.account import open_account

    with open_account(home).connect() as connection:
        told, _, documents = _fetch(connection, digest)
        report = _difference(connection, documents)
    if out is not None:
        _write(out, documents)
    shown = {name: value for name, value in told.items() if name not in ("documents", "envelope")}
    emit({**shown, "difference": report}, as_json=as_json, text=_set_in_words(told, report))


@app.command("propose")
def propose(
    packs: Annotated[
        str, typer.Argument(help="A folder of packs, built-in for those of this package, or in-force.")
    ] = IN_FORCE,
    parameters: Annotated[
        Path | None, typer.Option("--parameters", help="The organisation's own values: a YAML file with values.")
    ] = None,
    yes: Yes = False,
    home: Home = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Propose a set of packs, signed with your key. Two others, in two roles, put it in force."""
    from coordinator.client.account import open_account
    from protocol.canonical import parse
    from protocol.envelope import seal
    from protocol.policy_set import POLICY_SET_TYPE

    account = open_account(home)
    with account.connect() as connection:
        current, _, in_force = _fetch(connection, "active")
        documents = _documents(packs, parameters, in_force)
        _require_cases(documents)
        report = _difference(connection, documents)
        given = _next_set(account, current, documents)
        if not as_json:
            typer.echo(_difference_in_words(report))
        if not yes:
            typer.confirm(f"Propose the set {given.digest}?", abort=True)
        key = account.unlock(read_passphrase(passphrase_file, "Passphrase"))
        envelope = parse(seal(POLICY_SET_TYPE, given.model_dump(mode="json"), key).to_bytes())
        texts = {name: data.decode() for name, data in documents.items()}
        made = connection.post("/v1/policy/sets", {"envelope": envelope, "documents": texts})
    said = f"Set {made['number']} is proposed. Next, a compliance officer and a clinical lead, neither of them you: "
    emit(made, as_json=as_json, text=f"{said}cloister policy activate {made['set']}")


@app.command("activate")
def activate(
    digest: SetDigest, reason: Reason, yes: Yes = False, home: Home = None, passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Sign for a proposed set. The second signature, by another person in another role, puts it in force."""
    _vote(digest, "activate", reason, yes, home, passphrase_file, as_json)


@app.command("reject")
def reject(
    digest: SetDigest, reason: Reason, yes: Yes = False, home: Home = None, passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Sign against a proposed set: one rejection ends it."""
    _vote(digest, "reject", reason, yes, home, passphrase_file, as_json)


@app.command("dry-run")
def dry_run(
    packs: Annotated[str, typer.Argument(help="A folder of packs, built-in, in-force, or a set's digest.")],
    parameters: Annotated[Path | None, typer.Option("--parameters", help="The organisation's own values.")] = None,
    gate: Annotated[str | None, typer.Option("--gate", help="Only this gate's decisions, such as release.")] = None,
    about: Annotated[str | None, typer.Option("--about", help="Only a study's, or release:NAME's.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many decisions.")] = 1000,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Take past decisions again under other packs: which would have come out differently, and why. Changes nothing."""
    from coordinator.client.account import open_account
    from policies.packs import policy_from
    from policies.replay import in_words, replay

    with open_account(home).connect() as connection:
        if packs.startswith("sha256:"):
            _, _, documents = _fetch(connection, packs)
        else:
            _, _, in_force = _fetch(connection, "active")
            documents = _documents(packs, parameters, in_force)
        past = _past(connection, gate, about, limit)
    report = replay(past, policy_from(documents))
    emit(report, as_json=as_json, text=in_words(report))


def _vote(
    digest: str, decision: str, reason: str, yes: bool, home: Path | None, passphrase_file: Path | None, as_json: bool
) -> None:
    from datetime import UTC, datetime

    from coordinator.client.account import open_account
    from protocol.canonical import parse, sha256_hex
    from protocol.envelope import seal
    from protocol.policy_set import POLICY_VOTE_TYPE, PolicyVote
    from protocol.timestamp import timestamp

    account = open_account(home)
    with account.connect() as connection:
        told, given, documents = _fetch(connection, digest)
        if not as_json:
            typer.echo(_set_in_words(told, _difference(connection, documents)))
        if not yes:
            typer.confirm(f"Sign «{decision}» over {given.digest}?", abort=True)
        key = account.unlock(read_passphrase(passphrase_file, "Passphrase"))
        vote = PolicyVote.model_validate(
            {
                "set": given.digest,
                "policy": given.policy,
                "person": account.name,
                "role": account.role,
                "decision": decision,
                "reason_hash": sha256_hex(reason.encode()),
                "signed_at": timestamp(datetime.now(UTC)),
            }
        )
        envelope = parse(seal(POLICY_VOTE_TYPE, vote.model_dump(mode="json"), key).to_bytes())
        made = connection.post(f"/v1/policy/sets/{given.digest}/votes", {"envelope": envelope, "reason": reason})
    emit(made, as_json=as_json, text=f"Set {made['number']} is {made['state']}.")


def _fetch(connection: Connection, digest: str) -> tuple[dict[str, Any], PolicySet, dict[str, bytes]]:
    """What the coordinator tells of a set ("active": the one in force), the set, and its documents, once digests of
    both are found to be those named. Raises VerificationFailed otherwise."""
    from pydantic import ValidationError

    from protocol.canonical import canonical
    from protocol.envelope import Envelope
    from protocol.errors import Malformed, VerificationFailed
    from protocol.policy_set import PolicySet, check_documents

    if digest != "active" and not (digest.startswith("sha256:") and digest[7:].isalnum()):
        raise Malformed(f"{digest[:40]!r} is no set's digest.", "Copy it from `cloister policy list`.")
    told = connection.get("/v1/policy/active" if digest == "active" else f"/v1/policy/sets/{digest}")
    try:
        given = PolicySet.model_validate_json(Envelope.from_bytes(canonical(told["envelope"])).payload)
        documents = {str(name): str(text).encode() for name, text in told["documents"].items()}
    except (ValidationError, KeyError, TypeError, AttributeError):
        raise Malformed("The coordinator shows a policy set of another form.", "Update this program.") from None
    if digest not in ("active", given.digest) or told.get("set") != given.digest:
        raise VerificationFailed(
            "The coordinator shows another policy set than the one that was named.",
            "Sign nothing; tell the coordinator's administrator and the compliance officer.",
        )
    check_documents(given.documents, documents)
    return told, given, documents


def _documents(packs: str, parameters: Path | None, in_force: dict[str, bytes]) -> dict[str, bytes]:
    """The documents of a place; where it holds no values of the organisation's, those in force are kept."""
    from coordinator.client.policy_documents import read_documents
    from policies.documents import MAX_BYTES
    from protocol.errors import Malformed

    documents = dict(in_force) if packs == IN_FORCE else dict(read_documents(packs))
    if "organisation" in in_force:
        documents.setdefault("organisation", in_force["organisation"])
    if parameters is not None:
        try:
            with parameters.open("rb") as file:
                documents["organisation"] = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise Malformed(f"{parameters} can't be read ({error.strerror}).", "Name a YAML file.") from None
    return documents


def _require_cases(documents: dict[str, bytes]) -> None:
    from coordinator.client.policy import CasesFailed

    report = run_all(documents)
    if report["failed"]:
        raise CasesFailed(
            f"{report['failed']} of the packs' expectations do not hold: {report['failures'][0]}.",
            "Nothing is proposed. Correct the rule or the case: cloister policy test.",
        )


def _next_set(account: Account, current: dict[str, Any], documents: dict[str, bytes]) -> PolicySet:
    from datetime import UTC, datetime

    from protocol.canonical import sha256_hex
    from protocol.policy_set import PolicySet
    from protocol.timestamp import timestamp

    return PolicySet(
        origin="people",
        coordinator=current["coordinator"],
        number=current["number"] + 1,
        previous=current["set"],
        documents={name: sha256_hex(data) for name, data in documents.items()},
        proposer=account.name,
        proposed_at=timestamp(datetime.now(UTC)),
    )


def _difference(connection: Connection, documents: dict[str, bytes]) -> dict[str, Any]:
    from policies.difference import compare
    from policies.packs import policy_from

    _, _, in_force = _fetch(connection, "active")
    return compare(policy_from(in_force), policy_from(documents))


def _difference_in_words(report: dict[str, Any]) -> str:
    from policies.difference import in_words

    lapse = "" if not any(report["packs"][side] for side in ("removed", "changed")) else LAPSE
    return "Compared with what is in force:\n" + in_words(report) + lapse


def _set_in_words(told: dict[str, Any], report: dict[str, Any]) -> str:
    votes = [f"  {vote['role']} {vote['person']}: {'for' if vote['activate'] else 'against'}" for vote in told["votes"]]
    whose = f"proposed by {told['proposer']}" if told["proposer"] else "shipped with the package"
    return "\n".join(
        [
            f"Set {told['number']} is {told['state']}: {whose}; digest {told['set']}",
            "Decisions:",
            *(votes or ["  none"]),
            _difference_in_words(report),
        ]
    )


def _past(connection: Connection, gate: str | None, about: str | None, limit: int) -> list[Past]:
    from datetime import datetime

    from policies.replay import Past

    found: list[Past] = []
    query: dict[str, str | int] = {
        name: value for name, value in (("gate", gate), ("subject", about)) if value is not None
    }
    while (asked := min(PAGE, limit - len(found))) > 0:
        rows = connection.get("/v1/policy/decisions", limit=asked, **query)
        for row in rows:
            at = datetime.fromisoformat(row["at"])
            waived = frozenset((pack, rule) for pack, rule in row["waived"])
            told = (row["entry"], row["gate"], row["subject"], at, row["policy"], row["outcome"], row["facts"])
            found.append(Past(*told, waived))
        if len(rows) < asked:
            break
        query["before"] = rows[-1]["entry"]
    return found


def _write(out: Path, documents: dict[str, bytes]) -> None:
    from protocol.errors import Malformed

    if out.exists():
        raise Malformed(f"{out} exists already.", "Name a new folder.")
    (out / "cases").mkdir(parents=True)
    for name, data in documents.items():
        (out / f"{name}.yaml").write_bytes(data)
