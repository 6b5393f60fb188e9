"""Pair secrets on a site's disk: encrypted under a key that is not in the database, and gone when their round is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from sqlmodel import select

from privacy.secagg.client import SecAggSite
from privacy.secagg.messages import to_text
from privacy.secagg.refusals import Refused
from privacy.secagg.sealed_state import unseal
from protocol.round import CONTRIBUTION_TYPE, Packet
from site_agent.consent.plans import SignedPlan
from site_agent.database import transaction
from site_agent.keystore import KeysUnusable, load_keys, renew_state_key
from site_agent.training.budget_store import BudgetStore
from site_agent.training.tables import CohortCharge, ConsumedAttempt, SecureSumKeys
from tests.site_agent.federation_of_sites import Federation, Hospital, refusal_in

Case = tuple[Federation, SignedPlan]


def raw(digest: str) -> bytes:
    return bytes.fromhex(digest.removeprefix("sha256:"))


def stored(site: Hospital) -> bytes:
    with transaction(site.engine) as session:
        return session.exec(select(SecureSumKeys)).one().state


def put(site: Hospital, state: bytes) -> None:
    with transaction(site.engine) as session:
        row = session.exec(select(SecureSumKeys)).one()
        row.state = state
        session.add(row)


def machine(site: Hospital, signed: SignedPlan) -> SecAggSite:
    study = signed.plan.spec.study
    return SecAggSite.restore(unseal(stored(site), site.keys.state, study=study, plan_digest=raw(signed.digest)))


def roots(site: Hospital, signed: SignedPlan) -> list[bytes]:
    held = machine(site, signed)._roots
    assert held is not None
    return list(held.roots.values())


def on_disk(site: Hospital, *, keys: bool = False) -> bytes:
    """Every byte below the site's home; without its key folder unless `keys`."""
    home = site.settings.home
    paths = [path for path in sorted(home.path.rglob("*")) if path.is_file()]
    return b"".join(path.read_bytes() for path in paths if keys or home.keys not in path.parents)


def uncharged(site: Hospital) -> None:
    with transaction(site.engine) as session:
        assert all(row.steps_charged == 0 for row in session.exec(select(CohortCharge)))
        assert session.exec(select(ConsumedAttempt)).first() is None


def test_no_pair_secret_lies_in_the_clear_before_or_after_a_round(running: Case) -> None:
    world, signed = running
    for turn in range(3):
        for site in world.hospitals.values():
            disk = on_disk(site, keys=True)
            for root in roots(site, signed):
                assert root not in disk
                assert to_text(root).encode() not in disk
        request = world.round_request(signed, turn + 1)
        for site in world.hospitals.values():
            answer = site.participant().answer("train.contribute", request)
            assert Packet.from_bytes(answer).envelope.payload_type == CONTRIBUTION_TYPE


def test_the_key_is_not_in_the_database_and_is_the_site_s_alone(running: Case) -> None:
    world, _ = running
    for site in world.hospitals.values():
        path = site.settings.home.keys / "secure-sum.key"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes() == site.keys.state
        assert site.keys.state not in on_disk(site)
        assert site.keys.state.hex() not in repr(site.keys)
    assert len({site.keys.state for site in world.hospitals.values()}) == 4


def test_what_a_round_replaced_is_gone_from_the_files_and_cannot_be_derived(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    before, old_roots = stored(site), roots(site, signed)
    site.participant().answer("train.contribute", world.round_request(signed, 1))
    site.participant().answer("train.contribute", world.round_request(signed, 2))
    assert before[20:60] not in on_disk(site), "even the encrypted old state is overwritten"
    after = machine(site, signed)
    assert after._roots is not None
    assert set(after._roots.roots.values()).isdisjoint(old_roots)
    with pytest.raises(Refused, match="do not exist"):
        after._roots.advanced_to(0)


def test_a_state_in_the_clear_is_refused_at_no_charge(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    clear = machine(site, signed).export_state()
    assert json.loads(clear)["roots"]
    put(site, clear)
    answer = site.participant().answer("train.contribute", world.round_request(signed))
    assert refusal_in(answer, site) == "keys-damaged"
    uncharged(site)


def test_another_sites_or_studys_state_is_refused_at_no_charge(running: Case) -> None:
    world, signed = running
    site, other = world.hospitals["cork"], world.hospitals["delft"]
    put(site, stored(other))
    assert (
        refusal_in(site.participant().answer("train.contribute", world.round_request(signed)), site) == "keys-damaged"
    )
    uncharged(site)


def test_a_lost_key_is_refused_at_no_charge_and_a_damaged_one_is_named(running: Case) -> None:
    world, signed = running
    site = world.hospitals["cork"]
    home = site.settings.home
    shutil.copy(home.keys / "secure-sum.key", home.path / "kept")
    (home.keys / "secure-sum.key").unlink()
    with pytest.raises(KeysUnusable, match=f"lost.*{signed.plan.spec.study}"):
        load_keys(home)
    assert not (home.keys / "secure-sum.key").exists(), "none is made in silence"
    site.keys = replace(site.keys, state=bytes(32))  # another key opens nothing that is here
    assert (
        refusal_in(site.participant().answer("train.contribute", world.round_request(signed)), site) == "keys-damaged"
    )
    uncharged(site)
    shutil.copy(home.path / "kept", home.keys / "secure-sum.key")
    site.keys = load_keys(home)
    answer = site.participant().answer("train.contribute", world.round_request(signed))
    assert Packet.from_bytes(answer).envelope.payload_type == CONTRIBUTION_TYPE
    assert BudgetStore(site.engine).studies_with_keys() == [signed.plan.spec.study]
    with pytest.raises(KeysUnusable, match="is there"):
        renew_state_key(home)
    (home.keys / "secure-sum.key").unlink()
    assert renew_state_key(home) == (signed.plan.spec.study,)
    assert load_keys(home).state != (home.path / "kept").read_bytes()
    assert BudgetStore(site.engine).studies_with_keys() == []
