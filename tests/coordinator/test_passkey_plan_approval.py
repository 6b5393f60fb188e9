"""A held plan approved by passkey: by a verified person, over this plan's digest, once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from coordinator.database import transaction
from coordinator.passkeys.repository import PasskeyRepository
from coordinator.passkeys.tables import PasskeyRecord
from coordinator.people.facts import Actor
from coordinator.people.states import AuthLevel
from coordinator.policy.active import active_policy
from coordinator.studies.control import approve_plan
from coordinator.studies.states import StudyState
from protocol.canonical import canonical, parse, sha256_hex
from protocol.consent import PLAN_APPROVAL_TYPE
from protocol.errors import BadSignature, CloisterError
from protocol.passkey import PasskeySignature, encode
from protocol.release import APPROVAL_TYPE
from protocol.timestamp import timestamp
from tests.authenticator import PRESENT, Authenticator
from tests.coordinator.test_study_proposal import person
from tests.simulator.federation import Federation, build_federation, study_spec

ADDRESS = "localhost:8443"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return build_federation(tmp_path_factory.mktemp("federation"), address=ADDRESS)


@pytest.fixture
def carls() -> Authenticator:
    return Authenticator(ADDRESS)


@pytest.fixture
def federation(whole: Federation, carls: Authenticator) -> Federation:
    whole.reset()
    with transaction(whole.appliance.engine) as session:
        row = PasskeyRecord(
            credential=carls.passkey.credential,
            person="carl",
            key=carls.passkey.key,
            uses=0,
            registered_at=timestamp(whole.clock.now()),
        )
        PasskeyRepository(session).save(row)
    return whole


@pytest.fixture
def held(federation: Federation) -> str:
    spec = study_spec(study=f"passkey-{next(_numbers)}", privacy={"epsilon": 3.0, "delta": 1e-4, "retries": 3})
    assert federation.propose(spec).state is StudyState.HELD
    return spec.study


def document(federation: Federation, held: str, **changes: Any) -> bytes:
    fields = {
        "study": held,
        "plan_digest": federation.row(held).plan_digest,
        "person": "carl",
        "role": "compliance_officer",
        "decision": "approve",
        "signed_at": timestamp(federation.clock.now()),
    }
    return canonical(fields | changes)


def send(federation: Federation, held: str, signed: PasskeySignature, name: str = "carl") -> None:
    with transaction(federation.appliance.engine) as session:
        actor, policy = Actor(person(federation, name), AuthLevel.KEY), active_policy(session, federation.appliance)
        approve_plan(session, federation.appliance, policy, actor, held, signed.to_bytes())


def test_a_passkey_lifts_what_policy_held(federation: Federation, held: str, carls: Authenticator) -> None:
    signed = carls.sign(PLAN_APPROVAL_TYPE, document(federation, held))
    send(federation, held, signed)
    assert federation.state(held) is StudyState.CONSENTING
    with pytest.raises(CloisterError, match="no approval is owed"):
        send(federation, held, signed)


def test_a_signature_moved_replayed_or_by_nobody_verified_lifts_nothing(
    federation: Federation, held: str, carls: Authenticator
) -> None:
    signed = carls.sign(PLAN_APPROVAL_TYPE, document(federation, held))
    fields = parse(signed.document)
    assert isinstance(fields, dict)
    for change in ({"plan_digest": sha256_hex(b"another")}, {"decision": "reject"}, {"study": "another"}):
        moved = signed.model_copy(update={"payload": encode(canonical({**fields, **change}))})
        with pytest.raises(BadSignature, match="another document"):
            send(federation, held, moved)
    with pytest.raises(BadSignature, match="not verified"):
        send(federation, held, carls.sign(PLAN_APPROVAL_TYPE, document(federation, held), flags=PRESENT))
    with pytest.raises(BadSignature, match="passkey signed"):
        send(federation, held, carls.sign(APPROVAL_TYPE, document(federation, held)))
    with pytest.raises(BadSignature, match="not one that the plan fixes"):
        send(federation, held, Authenticator(ADDRESS).sign(PLAN_APPROVAL_TYPE, document(federation, held)))
    with pytest.raises(CloisterError):
        send(federation, held, signed, name="lena")
    earlier = carls.sign(PLAN_APPROVAL_TYPE, document(federation, held, plan_digest=sha256_hex(b"another")))
    with pytest.raises(CloisterError, match="is for plan"):
        send(federation, held, earlier)
    assert federation.state(held) is StudyState.HELD
    with transaction(federation.appliance.engine) as session:
        row = PasskeyRepository(session).get(carls.passkey.credential)
        assert row is not None
        row.revoked_at = timestamp(federation.clock.now())
        session.add(row)
    with pytest.raises(BadSignature, match="revoked"):
        send(federation, held, carls.sign(PLAN_APPROVAL_TYPE, document(federation, held)))
    assert federation.state(held) is StudyState.HELD
