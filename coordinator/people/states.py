"""What each role may do, and what may happen to a person's account: pure decisions over facts."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from coordinator.errors import Conflict, Forbidden
from protocol.errors import Malformed, Refused
from protocol.identifiers import Role
from protocol.timestamp import moment

IDLE = timedelta(minutes=15)
LIFETIME = timedelta(hours=8)
CHALLENGE_LIFE = timedelta(minutes=2)
SEEN_EVERY = timedelta(seconds=30)  # how coarsely idleness is written down

FRESH = timedelta(minutes=10)  # how long after signing in a person may change how they sign in
FREE_ATTEMPTS = 5
FIRST_REST = timedelta(seconds=30)
LONGEST_REST = timedelta(minutes=15)
CODE_SECONDS = 30  # a time step of RFC 6238
PASSWORD_CHARACTERS = (12, 128)
_FEWEST_DIFFERENT = 5

Status = Literal["invited", "active", "disabled"]


class Permission(StrEnum):
    """Something that a person does at the coordinator, in the words of a refusal. What a person does to their own
    account needs none. A study's own submitter is meant where a permission says "own"."""

    READ_STUDIES = "read studies, sites and releases"
    READ_EVIDENCE = "read the evidence on record"
    READ_LOG = "read the audit log"
    READ_PEOPLE = "read who has an account"
    REVIEW_LOG = "put a review of the audit log on record"
    PROPOSE_STUDY = "propose a study"
    RUN_OWN_STUDY = "start, stop or narrow an own study"
    START_ANY_STUDY = "start somebody else's study"
    STOP_ANY_STUDY = "stop somebody else's study, or shut a site out of it"
    APPROVE_PLAN = "approve a plan"
    DRAFT_RELEASE = "draft a release"
    DECIDE_RELEASE = "approve, reject or suspend a release"
    BREAK_GLASS = "suspend a release in an emergency"
    REPORT_INCIDENT = "report an incident"
    RECORD_EVIDENCE = "record evidence"
    CLASSIFY = "decide on a model's classification and on changes to it"
    ERASE_WORDS = "erase an entry's words from the audit log"
    CERTIFY_PEOPLE = "confirm people's roles"
    DISABLE_PEOPLE = "disable an account"


_ALL = frozenset(Role)
_RESEARCHER = frozenset({Role.RESEARCHER})
_OFFICER = frozenset({Role.COMPLIANCE_OFFICER})
_ADMINISTRATOR = frozenset({Role.ADMINISTRATOR})
_APPROVERS = _OFFICER | {Role.CLINICAL_LEAD}
SITE_ROLES = frozenset({Role.DATA_STEWARD, Role.SITE_IT})
"""Roles that belong to a site: they see what concerns it, and act there, under their own institution's rules."""

PERMISSIONS: dict[Permission, frozenset[Role]] = {
    Permission.READ_STUDIES: _ALL,
    Permission.READ_EVIDENCE: _ALL - SITE_ROLES,
    Permission.READ_LOG: _APPROVERS | _ADMINISTRATOR | {Role.AUDITOR},
    Permission.READ_PEOPLE: _OFFICER | _ADMINISTRATOR | {Role.AUDITOR},
    Permission.REVIEW_LOG: _OFFICER | _ADMINISTRATOR,
    Permission.PROPOSE_STUDY: _RESEARCHER,
    Permission.RUN_OWN_STUDY: _RESEARCHER,
    Permission.START_ANY_STUDY: _ADMINISTRATOR,
    Permission.STOP_ANY_STUDY: _ADMINISTRATOR | _OFFICER,
    Permission.APPROVE_PLAN: _APPROVERS,
    Permission.DRAFT_RELEASE: _RESEARCHER,
    Permission.DECIDE_RELEASE: _APPROVERS,
    Permission.BREAK_GLASS: _ALL - {Role.AUDITOR},
    Permission.REPORT_INCIDENT: _ALL - {Role.AUDITOR},
    Permission.RECORD_EVIDENCE: _OFFICER,
    Permission.CLASSIFY: frozenset({Role.REGULATORY}),
    Permission.ERASE_WORDS: _APPROVERS | _ADMINISTRATOR,
    Permission.CERTIFY_PEOPLE: _ADMINISTRATOR,
    Permission.DISABLE_PEOPLE: _ADMINISTRATOR,
}
"""Who may do what: the one table. No permission that changes anything holds an auditor."""

_READING = frozenset({Permission.READ_STUDIES, Permission.READ_EVIDENCE, Permission.READ_LOG, Permission.READ_PEOPLE})
READ_ONLY = frozenset(
    role for role in Role if not any(role in PERMISSIONS[item] for item in Permission if item not in _READING)
)
"""Roles that change nothing at the coordinator but their own account."""


def allowed(role: str, permission: Permission) -> bool:
    """Whether the table gives a role the permission. A word that is no role has none."""
    return role in {holder.value for holder in PERMISSIONS[permission]}


def require_permission(role: str, *permissions: Permission) -> None:
    """Raise Forbidden unless the role has one of the permissions."""
    if any(allowed(role, permission) for permission in permissions):
        return
    holders = [holder for holder in Role if any(holder in PERMISSIONS[permission] for permission in permissions)]
    raise Forbidden(
        f"To {' or '.join(permission.value for permission in permissions)} is not for {words(role)}s.",
        f"Ask a {' or a '.join(words(holder.value) for holder in holders)}.",
    )


def require_not_read_only(role: str) -> None:
    """Raise Forbidden for a role that only reads."""
    if role in {reader.value for reader in READ_ONLY}:
        raise Forbidden(f"A {words(role)} reads and changes nothing here.", "Ask somebody in another role.")


def sees(role: str, own_site: str | None, sites: Collection[str]) -> bool:
    """Whether somebody sees what concerns these sites: the people of a site, what concerns theirs alone."""
    return role not in {holder.value for holder in SITE_ROLES} or own_site in sites


def words(role: str) -> str:
    """A role as people say it."""
    return role.replace("_", " ").replace(" it", " IT")


class AuthLevel(StrEnum):
    """What a session was proved by. `FEDERATED`: the identity provider told of no second factor."""

    KEY = "key"
    PASSKEY = "passkey"
    PASSWORD_AND_CODE = "password-and-code"  # noqa: S105 - a name, no secret
    FEDERATED = "federated"
    FEDERATED_MULTI_FACTOR = "federated-multi-factor"


class Medium(StrEnum):
    """Where a session lives: a token in a person's home, or a cookie that scripts can't read."""

    COMMAND_LINE = "command-line"
    BROWSER = "browser"


class SignInRefused(Refused):
    """A wrong name, password or code, or an account that rests: told alike, so that nobody learns which."""

    code = "sign-in-refused"

    def __init__(self) -> None:
        super().__init__(
            "The name, the password or the code is wrong, or there were too many attempts.",
            "Try again with a new code; after five wrong attempts wait, for 15 minutes at most.",
        )


class CodeRefused(Refused):
    """A one-time code that is wrong, or was used before."""

    code = "code-refused"

    def __init__(self) -> None:
        super().__init__("The code is wrong or was used before.", "Wait for the next code and type that.")


class TokenRefused(Refused):
    """A one-time secret that can't be used: unknown, used, expired or for someone else."""

    code = "token-refused"


def decide_invitation(status: str | None, held: str | None, role: Role, name: str, *, site: str | None) -> None:
    """Whether a name (with its status and role so far, None if new) may be invited with this role, at this site.

    Raises Conflict for someone active, and for another role: one person holds one role. Raises Malformed for a role of
    a site without one, and the other way round.
    """
    require_site(role, site)
    if status == "active":
        raise Conflict(
            f"{name} is registered already.",
            f"Run `cloister-coordinator people disable {name}` first to replace the key.",
        )
    if held is not None and held != role.value:
        raise Conflict(
            f"{name} was invited as {held}, and one person holds one role.",
            f"Run `cloister-coordinator people role {name} --role {role.value}` to change it.",
        )


def require_site(role: Role, site: str | None) -> None:
    """Raise Malformed for a role of a site without one, and for a site where the role belongs to none."""
    if (role in SITE_ROLES) != (site is not None):
        raise Malformed(
            f"A {words(role.value)} belongs to {'a' if site is None else 'no'} site.",
            "Give --site NAME." if site is None else "Leave --site out.",
        )


def decide_token(*, known: bool, holder: str, name: str, used_at: str | None, expires_at: str, now: datetime) -> None:
    """Whether a one-time secret may be used by `name` now. Raises TokenRefused saying why not."""
    remedy = "Ask the coordinator's administrator for a new invitation."
    if not known:
        raise TokenRefused("The token is not one that this coordinator gave out, or a newer one replaced it.", remedy)
    if holder != name:
        raise TokenRefused("The token was given to somebody else.", remedy)
    if used_at is not None:
        raise TokenRefused("The token has been used already.", remedy)
    if now >= moment(expires_at):
        raise TokenRefused("The token has expired.", remedy)


def decide_sign_in(status: str | None) -> None:
    """Whether someone with this status may sign in. Raises Forbidden, alike for the unknown and the disabled."""
    if status != "active":
        raise Forbidden("This person can't sign in here.", "Ask the coordinator's administrator for an invitation.")


def session_alive(started_at: str, seen_at: str, *, now: datetime) -> bool:
    """Whether a session is within 8 hours of its start and 15 minutes of its last use."""
    return now < moment(started_at) + LIFETIME and now < moment(seen_at) + IDLE


@dataclass(frozen=True)
class LocalAttempt:
    """One attempt with password and code. step: the time step whose code was shown, None for a wrong one; last_step:
    the newest one ever accepted. failures: wrong attempts since the last right one."""

    status: str | None
    enrolled: bool
    password_right: bool
    step: int | None
    last_step: int
    failures: int
    failed_at: str | None


class Attempt(StrEnum):
    """What comes of an attempt to sign in."""

    ACCEPTED = "accepted"
    WRONG = "wrong"
    RESTING = "resting"


def rest(failures: int) -> timedelta:
    """How long an account rests after so many wrong attempts: nothing up to the fourth, then 30 s doubled each time."""
    if failures < FREE_ATTEMPTS:
        return timedelta()
    doublings = min(failures - FREE_ATTEMPTS, 16)
    return min(FIRST_REST * (1 << doublings), LONGEST_REST)


def decide_local(attempt: LocalAttempt, *, now: datetime) -> Attempt:
    """What comes of an attempt. While an account rests nothing is looked at, right or wrong, and nothing is counted.

    A code is good once (RFC 6238, 5.2): its step must be newer than any that was accepted.
    """
    if attempt.failed_at is not None and now < moment(attempt.failed_at) + rest(attempt.failures):
        return Attempt.RESTING
    right = attempt.password_right and attempt.step is not None and attempt.step > attempt.last_step
    if attempt.status == "active" and attempt.enrolled and right:
        return Attempt.ACCEPTED
    return Attempt.WRONG


def require_password(password: str, name: str) -> None:
    """Raise Malformed unless a new password is long enough and no mere repetition or name (NIST SP 800-63B, 5.1.1.2:
    length counts, kinds of characters do not)."""
    shortest, longest = PASSWORD_CHARACTERS
    if not shortest <= len(password) <= longest:
        raise Malformed(f"The password does not have {shortest} to {longest} characters.", "Choose a longer one.")
    if len(set(password)) < _FEWEST_DIFFERENT or name in password.lower():
        raise Malformed("The password repeats few characters or holds your name.", "Choose words that nobody guesses.")


def require_fresh(started_at: str, level: AuthLevel, *, now: datetime) -> None:
    """Raise Forbidden unless the session began within ten minutes, and by more than one factor: a session that was left
    open or stolen, or that a password alone opened, does not change how its person signs in."""
    if level is AuthLevel.FEDERATED:
        raise Forbidden(
            "You signed in by one factor: that changes no way of signing in, and no passkey.",
            "Sign in by key, by password and code, or through a provider that asks for a second factor.",
        )
    if now >= moment(started_at) + FRESH:
        raise Forbidden("You signed in too long ago for this.", "Sign in again, then repeat it within ten minutes.")


def require_request_of_ours(*, shown: str | None, expected: str, origin: str | None, host: str) -> None:
    """Raise Forbidden unless a changing request that rests on a cookie comes from a page of this coordinator: it shows
    the session's own token, and names no other origin (RFC 6454)."""
    if not same_origin(origin, host) or not hmac.compare_digest((shown or "").encode(), expected.encode()):
        raise Forbidden("The request does not come from a page of this coordinator.", "Load the page again.")


def same_origin(origin: str | None, host: str) -> bool:
    """Whether a request's Origin, where a browser sent one, is the host that it was sent to."""
    return origin is None or origin == f"https://{host}"


def decide_certification(name: str, status: str, *, by: str | None) -> None:
    """Whether `by` (None: the operator at the machine) may confirm this person's role. Raises Refused for oneself,
    Conflict for an account that nobody uses."""
    if by == name:
        raise Refused("Nobody confirms their own role.", "Ask another administrator, or the coordinator's operator.")
    if status != "active":
        raise Conflict(f"{name} is {status}: there is nothing to confirm.", "See `cloister people review`.")


def decide_disabling(name: str, *, by: str | None) -> None:
    """Whether `by` may disable this account. Raises Refused for one's own: a coordinator keeps an administrator."""
    if by == name:
        raise Refused("Nobody disables their own account.", "Ask another administrator.")


def certified_days(certified_at: str | None, *, now: datetime) -> int | None:
    """Whole days since a role was confirmed; None if it never was."""
    return None if certified_at is None else max((now - moment(certified_at)).days, 0)


def overdue(days: int | None, longest: int) -> bool:
    """Whether a role has to be confirmed again: it was never, or longer ago than `longest` days."""
    return days is None or days > longest
