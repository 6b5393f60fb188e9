"""A site beside the federation's packs: stricter ones are taken, laxer ones never, and a coordinator that shows this
site other packs than its log tells is found out."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from policies.packs import builtin_packs
from protocol.activated_policy import bundle
from protocol.audit_event import AuditEvent, EventType
from protocol.canonical import canonical, sha256_hex
from protocol.envelope import seal
from protocol.errors import CloisterError, VerificationFailed
from protocol.identifiers import Role
from protocol.policy_set import (
    POLICY_ACTIVATION_TYPE,
    POLICY_SET_TYPE,
    POLICY_VOTE_TYPE,
    PolicyActivation,
    PolicySet,
    PolicyVote,
    deciding,
)
from protocol.signing import SigningKey
from site_agent.consent.governance import Governance, local_policy, save_governance
from site_agent.policy import federation
from site_agent.policy.federation import PolicyLaxer, adopt, compare_with_own, known, logged_policy, settle
from site_agent.settings import SiteHome
from tests.site_agent.federation_of_sites import Federation, copy_of
from tests.site_agent.federation_of_sites import federation as build_sites

COORDINATOR = SigningKey.from_seed(bytes(31) + b"c")
KEYS = {name: SigningKey.from_seed(bytes(31) + name[:1].encode()) for name in ("ada", "vera", "lena")}
AT = "2026-11-23T10:00:00Z"
GOVERNANCE = Governance(jurisdiction="EU", hipaa_role="none", categories=("health",), collection_purpose="care")


def changed(name: str, old: bytes, new: bytes) -> dict[str, bytes]:
    documents = builtin_packs()
    assert old in documents[name]
    return {**documents, name: documents[name].replace(old, new, 1)}


def values(**parameters: float) -> dict[str, bytes]:
    return {**builtin_packs(), "organisation": yaml.safe_dump({"values": parameters}).encode()}


def signed(
    documents: dict[str, bytes], *, key: SigningKey = COORDINATOR, alone: bool = False, number: int = 2
) -> bytes:
    """A bundle as the coordinator serves it; alone: with one person's vote under two names."""
    given = PolicySet(
        origin="people",
        coordinator="federation",
        number=number,
        previous=sha256_hex(b"the first"),
        documents={name: sha256_hex(data) for name, data in documents.items()},
        proposer="ada",
        proposed_at=AT,
    )
    keys = {**KEYS, "lena": KEYS["vera"]} if alone else KEYS
    roles = {"vera": Role.COMPLIANCE_OFFICER, "lena": Role.CLINICAL_LEAD}
    votes = [
        seal(
            POLICY_VOTE_TYPE,
            PolicyVote(
                set=given.digest, policy=given.policy, person=name, role=role, decision="activate",
                reason_hash=sha256_hex(b"read"), signed_at=AT,
            ).model_dump(mode="json"),
            keys[name],
        ).to_bytes()
        for name, role in roles.items()
    ]  # fmt: skip
    statement = PolicyActivation(
        set=given.digest,
        policy=given.policy,
        people={name: one.public.text for name, one in keys.items()},
        votes=tuple(map(sha256_hex, votes)),
        activated_at=AT,
    )
    envelope = seal(POLICY_SET_TYPE, given.model_dump(mode="json"), KEYS["ada"]).to_bytes()
    activation = seal(POLICY_ACTIVATION_TYPE, statement.model_dump(mode="json"), key).to_bytes()
    return canonical(bundle(envelope, votes, activation, documents))


def packs_of(documents: dict[str, bytes]) -> dict[str, str]:
    return deciding({name: sha256_hex(data) for name, data in documents.items()})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteHome:
    class Pinned:
        coordinator = COORDINATOR.public.text

    monkeypatch.setattr("site_agent.consent.governance.load_settings", lambda _home: Pinned)
    found = SiteHome(tmp_path / "site")
    found.path.mkdir()
    return found


def settled(home: SiteHome, documents: dict[str, bytes]) -> bool:
    settle(home, COORDINATOR.public.text, lambda _policy: signed(documents), packs_of(documents))
    return known(home, packs_of(documents))


def test_the_packages_own_packs_need_nothing(home: SiteHome) -> None:
    assert known(home, packs_of(builtin_packs()))
    assert federation.stored(home) == ()


def test_a_stricter_parameter_is_taken_and_counts_here(home: SiteHome) -> None:
    save_governance(home, GOVERNANCE)
    assert local_policy(home, GOVERNANCE).parameters.values["epsilon_ceiling"] == 8.0
    assert settled(home, values(epsilon_ceiling=2.0))
    assert local_policy(home, GOVERNANCE).parameters.values["epsilon_ceiling"] == 2.0
    own = GOVERNANCE.model_copy(update={"parameters": {"epsilon_ceiling": 1.5, "min_cohort": 10}})
    assert local_policy(home, own).parameters.values["epsilon_ceiling"] == 1.5
    loose = GOVERNANCE.model_copy(update={"parameters": {"epsilon_ceiling": 7.0}})
    assert local_policy(home, loose).parameters.values["epsilon_ceiling"] == 2.0


def test_a_stricter_rule_is_taken_and_decides_beside_the_sites_own(home: SiteHome) -> None:
    documents = changed("gdpr", b"effect: evidence", b"effect: deny")
    assert settled(home, documents)
    packs = {pack.id: pack.digest for pack in local_policy(home, GOVERNANCE).packs}
    assert packs["gdpr"] == sha256_hex(builtin_packs()["gdpr"])
    assert packs["federation-gdpr"] == sha256_hex(documents["gdpr"])


@pytest.mark.parametrize(
    "documents",
    [
        pytest.param(lambda: changed("gdpr", b"effect: deny", b"effect: warn"), id="a-rule-that-only-warns"),
        pytest.param(
            lambda: {name: data for name, data in builtin_packs().items() if "hipaa" not in name}, id="a-pack-less"
        ),
        pytest.param(
            lambda: changed("parameters", b"maximum: 10.0, stricter: lower", b"maximum: 90.0, stricter: lower"),
            id="a-wider-limit",
        ),
    ],
)
def test_laxer_packs_are_refused_whoever_accepts_them(home: SiteHome, documents: object) -> None:
    made = documents()  # type: ignore[operator]
    assert not settled(home, made)
    data = signed(made)
    with pytest.raises(PolicyLaxer, match="laxer than this site's own"):
        adopt(home, data, compare_with_own(data, COORDINATOR.public), accepted=True)
    assert not known(home, packs_of(made))


def test_a_laxer_value_and_another_expression_wait_for_a_person(home: SiteHome) -> None:
    purpose = b"release.intended_use in study.purpose_codes"
    wider = changed("gdpr", b"require: " + purpose, b"require: " + purpose + b" || release.intended_use != ''")
    for documents in (values(epsilon_ceiling=9.0), wider):
        assert not settled(home, documents)
        data = signed(documents)
        compared = compare_with_own(data, COORDINATOR.public)
        with pytest.raises(PolicyLaxer, match="has to read"):
            adopt(home, data, compared, accepted=False)
        adopt(home, data, compared, accepted=True)
        assert known(home, packs_of(documents))
    assert "gdpr" in {pack.id for pack in local_policy(home, GOVERNANCE).packs}


def test_what_does_not_verify_or_compile_is_not_taken(home: SiteHome) -> None:
    documents = values(epsilon_ceiling=2.0)
    for data in (signed(documents, key=SigningKey.generate()), signed(documents, alone=True), b"{}"):
        with pytest.raises(CloisterError):
            settle(home, COORDINATOR.public.text, lambda _policy, data=data: data, packs_of(documents))
    unknown = {
        **builtin_packs(),
        "facts": builtin_packs()["facts"].replace(b"path: site.cohort_n", b"path: site.other_n"),
    }
    with pytest.raises(CloisterError):
        compare_with_own(signed(unknown), COORDINATOR.public)
    assert federation.stored(home) == ()


def test_a_set_changed_on_the_sites_disk_decides_nothing(home: SiteHome) -> None:
    assert settled(home, values(epsilon_ceiling=2.0))
    (path,) = federation.stored(home)
    path.write_bytes(path.read_bytes().replace(b"epsilon_ceiling: 2.0", b"epsilon_ceiling: 9.0"))
    with pytest.raises(VerificationFailed, match="organisation"):
        local_policy(home, GOVERNANCE)


def test_a_plan_under_packs_that_this_site_did_not_adopt_is_not_granted(tmp_path: Path) -> None:
    world = _world(tmp_path)
    plan = world.plan(packs={**packs_of(builtin_packs()), "gdpr": sha256_hex(b"another")})
    found = world.hospitals["cork"].review(world.sign(plan))
    assert {"policy-unknown", "policy-not-logged"} & {item.code for item in found.objections} == {
        "policy-unknown", "policy-not-logged",
    }  # fmt: skip
    assert not found.grantable({})


def test_the_sites_own_log_says_what_was_in_force_when_a_study_was_proposed() -> None:
    """A coordinator that names other packs to one site, or earlier ones, contradicts its own log."""

    def leaf(event: EventType, **digests: str) -> bytes:
        return AuditEvent(event=event, at=AT, actor="coordinator", subject="x", digests=digests).leaf()

    first, second, plan = (sha256_hex(name) for name in (b"first", b"second", b"plan"))
    entries = [
        leaf(EventType.PACKS_ACTIVATED, policy=first),
        leaf(EventType.STUDY_PROPOSED, plan=plan),
        leaf(EventType.PACKS_ACTIVATED, policy=second),
    ]
    assert logged_policy(entries, plan) == first
    assert logged_policy(entries, sha256_hex(b"another plan")) == second
    assert logged_policy(entries[1:2], plan) is None


def _world(tmp_path: Path) -> Federation:
    (tmp_path / "made").mkdir()
    return copy_of(build_sites(tmp_path / "made"), tmp_path / "made", tmp_path / "copy")
