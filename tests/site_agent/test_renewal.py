"""Renewal at two thirds of the certificate's life."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import Malformed, VerificationFailed
from protocol.signing import SigningKey
from site_agent.certificates import request_certificate
from site_agent.clock import system_clock
from site_agent.coordinator_client import CoordinatorRefused
from site_agent.enrol import enrol
from site_agent.keystore import KeysUnusable, load_keys
from site_agent.renewal import current, due, renew_if_due
from site_agent.settings import SiteHome, load_settings
from tests.papers import papers_file
from tests.site_agent.made_up_coordinator import made_up_coordinator, problem

pytestmark = pytest.mark.processes

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
WEEK = timedelta(days=7)


def test_due_at_two_thirds_exactly():
    turn = BEGIN + WEEK * 2 / 3
    assert not due(BEGIN + WEEK, BEGIN, turn - timedelta(seconds=1))
    assert due(BEGIN + WEEK, BEGIN, turn)
    assert due(BEGIN + WEEK, BEGIN, BEGIN + 2 * WEEK)
    assert not due(BEGIN + WEEK, BEGIN, BEGIN - WEEK)


@given(st.timedeltas(timedelta(seconds=1), timedelta(days=400)), st.floats(0, 2))
def test_due_is_monotonic(life, share):
    now = BEGIN + life * share
    if due(BEGIN + life, BEGIN, now):
        assert due(BEGIN + life, BEGIN, now + timedelta(seconds=1))


def test_a_certificate_without_life_is_an_error():
    with pytest.raises(ValueError, match="after it begins"):
        due(BEGIN, BEGIN, BEGIN)


@pytest.fixture
def enrolled(tmp_path: Path):
    (tmp_path / "coordinator").mkdir()
    with made_up_coordinator(tmp_path / "coordinator") as coordinator:
        home = SiteHome(tmp_path / "site")
        coordinator.days = 0.1
        enrol(coordinator.token(), home, system_clock, papers_file())
        coordinator.days = 7
        yield coordinator, load_settings(home), load_keys(home)


def later(**span: float):
    return lambda: datetime.now(UTC) + timedelta(**span)


def test_a_fresh_certificate_is_left_alone(enrolled):
    coordinator, settings, keys = enrolled
    before = len(coordinator.requests)
    assert renew_if_due(settings, keys, later(hours=1)) is None
    assert len(coordinator.requests) == before


def test_a_due_certificate_is_replaced_and_used(enrolled):
    _, settings, keys = enrolled
    old = current(keys)
    issued = renew_if_due(settings, keys, later(hours=2))
    assert issued is not None
    assert current(keys) == issued
    assert issued.not_after > old.not_after
    assert issued.not_after - system_clock() > timedelta(days=6)
    keys.client_tls()
    assert renew_if_due(settings, keys, later(hours=2)) is None


def test_a_refused_renewal_keeps_the_old_certificate(enrolled):
    coordinator, settings, keys = enrolled
    old = keys.certificate_path.read_bytes()
    refused = problem(403, "site-revoked", "This site is revoked.")
    coordinator.routes["POST", "/v1/sites/me/renew"] = lambda _: refused
    with pytest.raises(CoordinatorRefused, match="revoked"):
        renew_if_due(settings, keys, later(hours=2))
    assert keys.certificate_path.read_bytes() == old


def test_a_certificate_for_another_key_is_not_installed(enrolled):
    coordinator, settings, keys = enrolled
    old = keys.certificate_path.read_bytes()
    other = coordinator.certify(request_certificate("clinic-a", SigningKey.generate()), "clinic-a").decode()
    answer = json.dumps({"certificate": other, "not_after": "2026-01-01T00:00:00Z"}).encode()
    coordinator.routes["POST", "/v1/sites/me/renew"] = lambda _: (200, answer)
    with pytest.raises(VerificationFailed, match="another key"):
        renew_if_due(settings, keys, later(hours=2))
    assert keys.certificate_path.read_bytes() == old


def test_an_answer_in_another_form_is_refused(enrolled):
    coordinator, settings, keys = enrolled
    coordinator.routes["POST", "/v1/sites/me/renew"] = lambda _: (200, b'{"cert": 1}')
    with pytest.raises(Malformed, match="renewal"):
        renew_if_due(settings, keys, later(hours=2))


def test_a_damaged_certificate_is_named(enrolled):
    _, settings, keys = enrolled
    keys.certificate_path.write_bytes(b"rubbish")
    with pytest.raises(KeysUnusable, match=r"site\.crt"):
        renew_if_due(settings, keys, system_clock)


def test_a_disk_that_does_not_take_the_new_certificate_is_told(enrolled, monkeypatch):
    import errno

    import site_agent.renewal as room

    def full(path: Path, _: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    _, settings, keys = enrolled
    old = keys.certificate_path.read_bytes()
    monkeypatch.setattr(room, "write_durably", full)
    with pytest.raises(KeysUnusable, match="No space left"):
        renew_if_due(settings, keys, later(hours=2))
    assert keys.certificate_path.read_bytes() == old
