"""Password and one-time code: enrolling, signing in, and what somebody who guesses, replays or steals gets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import pyotp
import pytest
from sqlmodel import select

from coordinator.audit.tables import LogEntry
from coordinator.database import reading, transaction
from coordinator.people import accounts, local_sign_in, one_time_codes, passwords
from coordinator.people.repository import PersonRepository
from coordinator.people.states import (
    LONGEST_REST,
    Attempt,
    LocalAttempt,
    Medium,
    SignInRefused,
    decide_local,
    require_password,
    rest,
)
from protocol.audit_event import AuditEvent, EventType
from protocol.errors import Malformed
from protocol.identifiers import Role
from protocol.timestamp import timestamp
from tests.coordinator.appliances import Made, Served, TestPerson

PASSWORD = "twelve plums and a kite"
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def attempt(**changes: object) -> LocalAttempt:
    right: dict[str, object] = {
        "status": "active", "enrolled": True, "password_right": True, "step": 100, "last_step": 99, "failures": 0,
        "failed_at": None,
    }  # fmt: skip
    return LocalAttempt(**(right | changes))  # type: ignore[arg-type]


def test_everything_must_be_right() -> None:
    assert decide_local(attempt(), now=NOW) is Attempt.ACCEPTED
    wrong: list[dict[str, object]] = [
        {"status": "disabled"}, {"status": "invited"}, {"status": None}, {"enrolled": False}, {"password_right": False},
        {"step": None}, {"last_step": 100}, {"last_step": 101},
    ]  # fmt: skip
    assert {decide_local(attempt(**change), now=NOW) for change in wrong} == {Attempt.WRONG}


def test_rests_begin_at_the_fifth_wrong_attempt_and_double_up_to_a_quarter_of_an_hour() -> None:
    seconds = [rest(failures).total_seconds() for failures in range(13)]
    assert seconds == [0, 0, 0, 0, 0, 30, 60, 120, 240, 480, 900, 900, 900]
    assert rest(10**9) == LONGEST_REST
    tried = attempt(failures=5, failed_at=timestamp(NOW))
    assert decide_local(tried, now=NOW + timedelta(seconds=29)) is Attempt.RESTING
    assert decide_local(tried, now=NOW + timedelta(seconds=30)) is Attempt.ACCEPTED


@pytest.mark.parametrize("weak", ["short", "x" * 12, "my name is ada ok"[:11], "this is Ada's word", "y" * 129])
def test_a_weak_password_is_not_taken(weak: str) -> None:
    with pytest.raises(Malformed):
        require_password(weak, "ada")
    require_password(PASSWORD, "ada")


def test_a_code_counts_for_its_step_and_the_neighbours() -> None:
    secret = one_time_codes.new_code_secret(lambda count: b"c" * count)
    step = int(NOW.timestamp()) // 30
    for drift in (-1, 0, 1):
        shown = pyotp.TOTP(secret).at(NOW + timedelta(seconds=30 * drift))
        assert one_time_codes.matching_step(secret, shown, now=NOW) == step + drift
    for drift in (-2, 2):
        shown = pyotp.TOTP(secret).at(NOW + timedelta(seconds=30 * drift))
        assert one_time_codes.matching_step(secret, shown, now=NOW) is None


def test_the_code_of_rfc_6238_counts() -> None:
    """Appendix B: the secret's text is 12345678901234567890; at 59 s the eight digits are 94287082."""
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    assert one_time_codes.matching_step(secret, "287082", now=datetime.fromtimestamp(59, UTC)) == 1


def test_a_code_secret_opens_for_its_person_and_key_only() -> None:
    sealed = one_time_codes.seal_code_secret(b"k" * 32, "ada", "GEZDGNBV", lambda count: b"n" * count)
    assert b"GEZDGNBV" not in sealed
    assert one_time_codes.open_code_secret(b"k" * 32, "ada", sealed) == "GEZDGNBV"
    for key, person in ((b"k" * 32, "bob"), (b"x" * 32, "ada")):
        with pytest.raises(Exception, match="does not open"):
            one_time_codes.open_code_secret(key, person, sealed)


class Local:
    """A person who enrolled a password without HTTP."""

    def __init__(self, made: Made, name: str = "ada", role: Role = Role.AUDITOR) -> None:
        self.made, self.name = made, name
        with transaction(made.appliance.engine) as session:
            token = accounts.invite(session, made.appliance, name, role)
        hashed = accounts.secret_hash(token.secret)
        self.secret = local_sign_in.begin(made.appliance, name, PASSWORD, invitation=hashed).secret
        with transaction(made.appliance.engine) as session:
            local_sign_in.confirm(session, made.appliance, name, self.code(), invitation=hashed)
        made.clock.move(seconds=60)  # the code that confirmed is used up

    def code(self) -> str:
        return pyotp.TOTP(self.secret).at(self.made.clock())

    def wrong_code(self) -> str:
        """A code that is none of the present step's and its neighbours'."""
        near = {pyotp.TOTP(self.secret).at(self.made.clock() + timedelta(seconds=30 * drift)) for drift in range(-2, 3)}
        return next(f"{number:06}" for number in range(10) if f"{number:06}" not in near)

    def sign_in(self, password: str = PASSWORD, code: str | None = None) -> str:
        shown = self.code() if code is None else code
        return local_sign_in.sign_in(self.made.appliance, self.name, password, shown, Medium.BROWSER)[1]


def events(made: Made, kind: EventType) -> list[AuditEvent]:
    with reading(made.appliance.engine) as session:
        found = [AuditEvent.model_validate_json(row.leaf) for row in session.exec(select(LogEntry))]
    return [event for event in found if event.event is kind]


def test_password_and_code_sign_in_and_are_logged(made: Made) -> None:
    ada = Local(made)
    assert len(ada.sign_in()) == 43
    (signed_in,) = events(made, EventType.PERSON_SIGNED_IN)
    assert signed_in.labels == {"level": "password-and-code", "medium": "browser"}


def test_a_code_that_was_seen_on_the_way_cannot_be_replayed(local: Made) -> None:
    ada = Local(local)
    shown = ada.code()
    ada.sign_in(code=shown)
    with pytest.raises(SignInRefused):
        ada.sign_in(code=shown)
    local.clock.move(seconds=30)
    with pytest.raises(SignInRefused):  # within the window still, and older than the one that was used
        ada.sign_in(code=shown)
    ada.sign_in()


def test_whoever_guesses_is_slowed_down_and_the_log_tells(local: Made) -> None:
    ada = Local(local)
    for _ in range(5):
        with pytest.raises(SignInRefused):
            ada.sign_in(code=ada.wrong_code())
    with pytest.raises(SignInRefused):
        ada.sign_in()  # even the right pair, while the account rests
    local.clock.move(seconds=31)
    ada.sign_in()
    for _ in range(4):
        with pytest.raises(SignInRefused):
            ada.sign_in(password="a wrong password here")
    local.clock.move(seconds=30)
    ada.sign_in()  # a right attempt before the fifth counts from the beginning
    assert [event.numbers for event in events(local, EventType.PERSON_LOCKED_OUT)] == [{"failures": 5}]


def test_a_day_of_guessing_gets_a_hundred_attempts(local: Made) -> None:
    """What the rests leave of 86,400 seconds: 24 hours of trying whenever an account does not rest."""
    tried, failures, now, failed_at = 0, 0, NOW, None
    while now < NOW + timedelta(days=1):
        outcome = decide_local(attempt(password_right=False, failures=failures, failed_at=failed_at), now=now)
        if outcome is Attempt.WRONG:
            tried, failures, failed_at = tried + 1, failures + 1, timestamp(now)
        now += max(rest(failures), timedelta(seconds=1)) if outcome is Attempt.WRONG else timedelta(seconds=1)
    assert tried < 110


def test_the_unknown_are_refused_like_the_wrong(local: Made) -> None:
    ada = Local(local)
    with pytest.raises(SignInRefused) as wrong:
        ada.sign_in(password="a wrong password here")
    with pytest.raises(SignInRefused) as unknown:
        local_sign_in.sign_in(local.appliance, "nobody", PASSWORD, "000000", Medium.BROWSER)
    assert str(wrong.value) == str(unknown.value)


def test_a_disabled_person_signs_in_no_more(local: Made) -> None:
    ada = Local(local)
    token = ada.sign_in()
    with transaction(local.appliance.engine) as session:
        accounts.disable(session, local.appliance, "ada")
    with reading(local.appliance.engine) as session:
        assert PersonRepository(session).session(accounts.token_hash(token)) is None
    local.clock.move(seconds=60)
    with pytest.raises(SignInRefused):
        ada.sign_in()


def test_a_person_signs_in_by_password_in_one_place_at_a_time(local: Made) -> None:
    """A stolen session ends when its person signs in again, and the log counts it."""
    ada = Local(local)
    stolen = ada.sign_in()
    local.clock.move(seconds=60)
    own = ada.sign_in()
    with reading(local.appliance.engine) as session:
        people = PersonRepository(session)
        assert people.session(accounts.token_hash(stolen)) is None
        assert people.session(accounts.token_hash(own)) is not None
    assert [event.numbers for event in events(local, EventType.PERSON_SIGNED_IN)] == [
        {"sessions_ended": 0}, {"sessions_ended": 1},
    ]  # fmt: skip


def test_no_password_code_or_secret_is_stored_in_the_clear(local: Made) -> None:
    ada = Local(local)
    stored = b"".join(path.read_bytes() for path in local.appliance.home.glob("coordinator.db*"))
    assert PASSWORD.encode() not in stored
    assert ada.secret.encode() not in stored
    with reading(local.appliance.engine) as session:
        row = PersonRepository(session).credential("ada")
    assert row is not None
    assert (row.password or "").startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_a_flood_of_passwords_is_turned_away_before_it_takes_the_memory(local: Made) -> None:
    for _ in range(passwords.AT_ONCE):
        assert passwords._slots.acquire(blocking=False)
    try:
        with pytest.raises(Exception, match="Too many people"):
            local_sign_in.sign_in(local.appliance, "ada", PASSWORD, "000000", Medium.BROWSER)
    finally:
        for _ in range(passwords.AT_ONCE):
            passwords._slots.release()


@pytest.mark.processes
def test_a_person_with_a_key_adds_a_password_within_ten_minutes_of_signing_in(served: Served) -> None:
    ada = TestPerson("ada")
    ada.join(served, Role.COMPLIANCE_OFFICER)
    with served.client(token=ada.sign_in(served)) as client:
        assert client.post("/v1/people/me/password", json={"password": "short"}).status_code == 400
        secret = client.post("/v1/people/me/password", json={"password": PASSWORD}).json()["secret"]
        near = {pyotp.TOTP(secret).at(served.clock() + timedelta(seconds=30 * drift)) for drift in range(-2, 3)}
        guess = next(f"{number:06}" for number in range(10) if f"{number:06}" not in near)
        refused = client.post("/v1/people/me/password/confirm", json={"code": guess})
        assert (refused.status_code, refused.json()["code"]) == (403, "code-refused")
        assert _local(served, secret).status_code == 403, "it counts only once it is confirmed"
        code = pyotp.TOTP(secret).at(served.clock())
        assert client.post("/v1/people/me/password/confirm", json={"code": code}).status_code == 204
    served.clock.move(seconds=60)
    assert _local(served, secret).status_code == 201
    with served.client(token=ada.sign_in(served)) as client:
        served.clock.move(minutes=11)
        late = client.post("/v1/people/me/password", json={"password": PASSWORD})
        assert (late.status_code, late.json()["code"]) == (403, "forbidden")


@pytest.mark.processes
def test_a_person_without_a_key_registers_over_tls_with_the_token_once(served: Served) -> None:
    with transaction(served.appliance.engine) as session:
        token = accounts.invite(session, served.appliance, "ada", Role.AUDITOR)
    told = {"secret": token.secret, "name": "ada"}
    with served.client() as client:
        wrong = client.post("/v1/people/register-password", json={**told, "secret": "A" * 43, "password": PASSWORD})
        assert wrong.json()["code"] == "token-refused"
        secret = client.post("/v1/people/register-password", json={**told, "password": PASSWORD}).json()["secret"]
        body = {**told, "code": pyotp.TOTP(secret).at(served.clock())}
        assert client.post("/v1/people/register-password/confirm", json=body).json()["role"] == "auditor"
        assert client.post("/v1/people/register-password/confirm", json=body).json()["code"] == "token-refused"


def _local(served: Served, secret: str) -> httpx.Response:
    code = pyotp.TOTP(secret).at(served.clock())
    with served.client() as client:
        return client.post("/v1/people/local-session", json={"name": "ada", "password": PASSWORD, "code": code})
