"""A recipient installs exactly what two people approved and a quorum saw logged; every other bundle is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.bundle import pack, unpack
from protocol.canonical import digest
from protocol.dataset import NumberLabel
from protocol.errors import CloisterError
from protocol.evaluation import EvaluationReport, Interval, RegressionReport, SegmentationReport
from protocol.identifiers import Role
from protocol.plan import PlannedApprover
from protocol.release import BUNDLE_FILES, EpsilonStatement, ReleaseSubject, Selection
from protocol.review import ReviewPolicy
from protocol.tuning import Tuning, TuningEntry
from site_agent.releases.install import current, install, installed, rollback, verify_bundle
from site_agent.releases.sealed import examine_folder
from site_agent.releases.trusted_release import TrustRoot, measures_what_was_planned, verify
from site_agent.serving.predictor import Predictor
from site_agent.settings import SiteHome
from tests.authenticator import PRESENT, Authenticator
from tests.releases import ADDRESS, HASH, SITES, Maker, keys

GOOD = Maker().files()
SUBJECT = ReleaseSubject.model_validate_json(GOOD["subject.json"])


def root(maker: Maker | None = None, site: str = "clinic-a", **changes: Any) -> TrustRoot:
    maker = maker or Maker()
    plan_digest = json.loads(GOOD["subject.json"])["plan_digest"]
    fields = {
        "site": site,
        "coordinator": maker.coordinator.public,
        "policy": maker.policy(),
        "granted_plans": frozenset({plan_digest}),
        "evaluated": {plan_digest: {1: frozenset({Maker().model_digest()})}},
        "address": ADDRESS,
    }
    return TrustRoot(**{**fields, **changes})


def test_a_good_bundle_is_installable() -> None:
    release = verify(GOOD, root())
    assert release.subject.release == "heart-study-r1"
    assert len(release.logged.cosigners) == 3
    assert set(release.logged.approved.roles) == {Role.COMPLIANCE_OFFICER, Role.CLINICAL_LEAD}


def test_a_recipient_is_told_what_was_waived() -> None:
    assert verify(Maker(waiver={}).files(), root()).logged.approved.waived == ("eu_ai_act A03",)


def reviewed(**policy: Any) -> tuple[Maker, TrustRoot]:
    """A bundle whose study asks for other reviewers, and a site that granted it."""
    spec = Maker().plan().spec.model_copy(update={"review": ReviewPolicy(**policy)})
    people = {
        "bo": ("a", Role.COMPLIANCE_OFFICER), "cy": ("a", Role.CLINICAL_LEAD), "eve": ("b", Role.CLINICAL_LEAD),
    }  # fmt: skip
    roster = tuple(
        PlannedApprover(person=name, role=role, key=keys(name)[name].public.text, organisation=organisation)
        for name, (organisation, role) in people.items()
    )
    maker = Maker(plan_changes={"spec": spec, "spec_digest": digest(spec.model_dump(mode="json")), "approvers": roster})
    granted = SUBJECT.model_copy(update={"plan_digest": digest(maker.plan().model_dump(mode="json"))}).plan_digest
    return maker, root(granted_plans=frozenset({granted}), evaluated={})


def test_the_studys_own_review_policy_is_held_to_at_each_site() -> None:
    maker, trust = reviewed(reviewers=3, organisations=2)
    with pytest.raises(CloisterError, match="2 of 3 people"):
        verify(maker.files(), trust)
    maker.voters = (*maker.voters, ("eve", Role.CLINICAL_LEAD))
    assert verify(maker.files(), trust)
    maker, trust = reviewed(organisations=2)
    with pytest.raises(CloisterError, match="1 of 2 organisations"):
        verify(maker.files(), trust)


PASSKEYS = {"bo": Authenticator(ADDRESS, counts=False), "cy": Authenticator(ADDRESS, counts=False)}


def by_passkey(**changes: Any) -> tuple[dict[str, bytes], TrustRoot]:
    """A bundle that two passkeys approved, or what an attacker makes of it, and a site that granted its plan."""
    maker = Maker(**{"passkeys": PASSKEYS, **changes})
    files = maker.files()
    honest = Maker(passkeys=PASSKEYS)
    granted = digest(honest.plan().model_dump(mode="json"))
    return files, root(granted_plans=frozenset({granted}), evaluated={})


def test_approvals_by_passkey_are_verified_offline() -> None:
    files, trust = by_passkey()
    approved = verify(files, trust).logged.approved
    assert (approved.methods, len(approved.roles)) == (("passkey",), 2)
    files, trust = by_passkey(voters=(("bo", Role.COMPLIANCE_OFFICER),) * 2)
    with pytest.raises(CloisterError, match="several approvals"):
        verify(files, trust)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"assertion": {"flags": PRESENT}}, "not verified"),
        ({"assertion": {"origin": "https://evil.example"}}, "another address"),
        ({"assertion": {"host": "evil.example"}}, "another host"),
        ({"assertion": {"challenge": bytes(32)}}, "another document"),
        ({"assertion": {"kind": "webauthn.create"}}, "no assertion"),
        ({"assertion": {"signed_by": Authenticator(ADDRESS)}}, "signature is wrong"),
        ({"approve_digest": HASH}, "another release digest"),
        ({"decision": "reject"}, "not an approval"),
        ({"passkeys": {**PASSKEYS, "cy": Authenticator(ADDRESS)}}, "did not grant"),
    ],
)
def test_a_coordinator_gains_nothing_by_passkeys(changes: dict[str, Any], why: str) -> None:
    """No user verification, another origin, a moved or replayed assertion, a key of its own in the roster."""
    files, trust = by_passkey(**changes)
    with pytest.raises(CloisterError, match=why):
        verify(files, trust)


def test_a_substituted_credential_key_is_refused_though_the_plan_is_as_granted() -> None:
    """The coordinator signs as a credential of its own, under the granted roster."""
    honest = Maker(passkeys=PASSKEYS).plan().approvers
    files, trust = by_passkey(passkeys={**PASSKEYS, "cy": Authenticator(ADDRESS)}, plan_changes={"approvers": honest})
    with pytest.raises(CloisterError, match="not one that the plan fixes"):
        verify(files, trust)


def made(**changes: Any) -> Callable[[], dict[str, bytes]]:
    return lambda: Maker(**changes).files()


def stated(**changes: float) -> EpsilonStatement:
    return SUBJECT.epsilon.model_copy(update=changes)


def chosen() -> EpsilonStatement:
    entry = TuningEntry(clip=1.0)
    selection = Selection(entries=2, order="declared", runs=(1, 2), scores=(0.5, 0.9), chosen=2, changes=entry)
    return SUBJECT.epsilon.model_copy(update={"selection": selection})


def measured(**changes: Any) -> EvaluationReport:
    return SUBJECT.evaluation.model_copy(update=changes)


FIGURE = Interval(value=0.9, low=0.8, high=1.0)
DICE = SegmentationReport(
    mode="noised", outside_guarantee=False, held_out=120, bins=10, dice=FIGURE, above_half=FIGURE
)  # fmt: skip


ATTACKS: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "coordinator signs with another key": (made(coordinator=keys("mallory")["mallory"]), ""),
    "one approver only": (made(voters=(("bo", Role.COMPLIANCE_OFFICER),)), "nobody in the role"),
    "one approver twice": (made(voters=(("bo", Role.COMPLIANCE_OFFICER),) * 2), "several approvals"),
    "one person in two roles": (
        made(voters=(("bo", Role.COMPLIANCE_OFFICER), ("bo", Role.CLINICAL_LEAD))),
        "does not name in that role",
    ),
    "an invented approver": (
        made(voters=(("bo", Role.COMPLIANCE_OFFICER), ("eve", Role.CLINICAL_LEAD))),
        "does not name",
    ),
    "the submitter approves": (
        made(voters=(("bo", Role.COMPLIANCE_OFFICER), ("ada", Role.CLINICAL_LEAD))),
        "does not name",
    ),
    "an approver's key is swapped": (
        made(people={**keys("ada", "bo", "cy", "eve"), "cy": keys("mallory")["mallory"]}),
        "did not grant",
    ),
    "a rejection presented as approval": (made(decision="reject"), "not an approval"),
    "approvals moved from another digest": (made(approve_digest=HASH), "another release digest"),
    "a waiver by somebody who is no approver": (made(waiver={"person": "ada"}), "does not name"),
    "a waiver that another signed": (made(waiver={}, waived_by="cy"), ""),
    "a waiver moved from another digest": (made(waiver={"subject_digest": HASH}), "another release digest"),
    "a waiver that had ended": (made(waiver={"expires_at": "2026-11-23T01:30:00Z"}), "had ended"),
    "a waiver given after the sealing": (made(waiver={"signed_at": "2026-11-23T03:00:00Z"}), "had ended"),
    "too few witnesses": (made(cosigners=2), "witnesses"),
    "a forked log": (made(log=keys("mallory")["mallory"]), ""),
    "logged for another release": (made(event_changes={"subject": "release:other"}), "not the sealing"),
    "another event presented as the sealing": (made(event_changes={"event": "release.drafted"}), "not the sealing"),
    "a plan the site did not grant": (made(plan_changes={"noise_multiplier": 0.5}), "did not grant"),
    "recipients widened": (made(subject_changes={"recipients": (*SITES, "elsewhere")}), "recipient"),
    "site removed from the recipients": (made(subject_changes={"recipients": SITES[1:]}), "not a recipient"),
    "submitter renamed": (made(subject_changes={"submitter": "eve"}), "submitters"),
    "a smaller epsilon stated": (made(subject_changes={"epsilon": stated(epsilon=0.1)}), "another privacy loss"),
    "a smaller worst case stated": (
        made(subject_changes={"epsilon": stated(epsilon_worst_site=1.0)}),
        "another privacy loss",
    ),
    "a smaller worst case of the evaluation stated": (
        made(subject_changes={"epsilon": stated(epsilon_evaluation_worst_site=1.0)}),
        "another privacy loss",
    ),
    "a choice among runs that no plan had": (made(subject_changes={"epsilon": chosen()}), "choice among runs"),
    "a smaller delta stated": (made(subject_changes={"epsilon": stated(delta=1e-9)}), "another privacy loss"),
    "an exact evaluation nobody granted": (
        made(subject_changes={"evaluation": measured(mode="exact", outside_guarantee=True)}),
        "another privacy loss",
    ),
    "an evaluation's noise invented": (
        made(subject_changes={"evaluation": measured(outside_guarantee=True)}),
        "outside the guarantee",
    ),
    "another kind of evaluation reported": (
        made(subject_changes={"evaluation": DICE}),
        "another kind of evaluation",
    ),
    "an evaluation of other cells reported": (
        made(subject_changes={"evaluation": measured(bins=100)}),
        "another kind of evaluation",
    ),
}


@pytest.mark.parametrize("change", [{}, {"spread": 200.0}, {"limit": 600.0}, {"unit": "kPa"}])
def test_a_number_s_errors_are_told_in_the_planned_unit_and_scale(change: dict[str, Any]) -> None:
    label = NumberLabel(kind="number", name="p", column="q", unit="mmHg", minimum=0, maximum=300, center=120, scale=20)
    plan = Maker().plan()
    dataset = plan.spec.dataset.model_copy(update={"label": label})
    plan = plan.model_copy(update={"spec": plan.spec.model_copy(update={"dataset": dataset})})
    report = RegressionReport(
        mode="noised", outside_guarantee=False, held_out=90, bins=10, unit="mmHg", limit=60, spread=20,
        mae=FIGURE, rmse=FIGURE, bias=FIGURE, skill=FIGURE, outermost=FIGURE,
    )  # fmt: skip
    assert measures_what_was_planned(plan, report.model_copy(update=change)) is (not change)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_by_a_coordinator_are_refused(name: str) -> None:
    forge, why = ATTACKS[name]
    with pytest.raises(CloisterError) as caught:
        verify(forge(), root())
    assert why in caught.value.message
    assert caught.value.remedy


def test_a_site_that_granted_nothing_installs_nothing() -> None:
    with pytest.raises(CloisterError, match="did not grant"):
        verify(GOOD, root(granted_plans=frozenset()))


def test_a_release_of_another_model_than_this_site_evaluated_is_refused() -> None:
    """The coordinator trains one model, has it evaluated, and has the approvers sign another's files."""
    swapped = Maker(weight_scale=2.0)
    with pytest.raises(CloisterError, match="not the one that this site evaluated"):
        verify(swapped.files(), root())
    assert verify(swapped.files(), root(evaluated={SUBJECT.plan_digest: {1: frozenset({swapped.model_digest()})}}))
    two = frozenset({Maker().model_digest(), swapped.model_digest()})
    with pytest.raises(CloisterError, match="not the one that this site evaluated"):
        verify(GOOD, root(evaluated={SUBJECT.plan_digest: {1: two}}))


def tuned() -> tuple[Maker, str]:
    """A bundle of a study with two runs, the second of which was chosen, and its plan's digest."""
    grid = (TuningEntry(learning_rate=1.0), TuningEntry(learning_rate=2.0))
    spec = Maker().plan().spec.model_copy(update={"tuning": Tuning(grid=grid)})
    chosen = Selection(entries=2, order="declared", runs=(1, 2), scores=(0.6, 0.7), chosen=2, changes=grid[1])
    told = SUBJECT.epsilon.model_copy(update={"selection": chosen, "steps_charged": 26})
    maker = Maker(
        plan_changes={"spec": spec, "spec_digest": digest(spec.model_dump(mode="json"))},
        subject_changes={"epsilon": told},
    )
    return maker, digest(maker.plan().model_dump(mode="json"))


def test_of_a_tuned_study_the_chosen_run_and_the_last_evaluation_are_what_is_released() -> None:
    """Each run's score asks a site about another model: rounds 1 and 2 are the runs', 3 is the chosen one's again."""
    maker, plan = tuned()
    files, good = maker.files(), frozenset({maker.model_digest()})
    other = frozenset({Maker(weight_scale=2.0).model_digest()})

    def trust(evaluated: dict[int, frozenset[str]]) -> TrustRoot:
        return root(granted_plans=frozenset({plan}), evaluated={plan: evaluated})

    for fits in ({1: other, 2: good, 3: good}, {1: other, 2: good}, {1: other}, {3: good}, {}):
        assert verify(files, trust(fits)).subject.epsilon.steps_charged == 26
    for misfits in ({1: good, 2: other, 3: good}, {1: other, 2: good, 3: other}, {3: other}, {2: good | other}):
        with pytest.raises(CloisterError, match="not the one that this site evaluated"):
            verify(files, trust(misfits))
    maker.subject_changes = {"epsilon": maker.subject_changes["epsilon"].model_copy(update={"steps_charged": 16})}
    with pytest.raises(CloisterError, match="another privacy loss"):
        verify(maker.files(), trust({}))


def test_a_site_that_evaluated_nothing_has_the_coordinators_word() -> None:
    assert verify(Maker(weight_scale=2.0).files(), root(evaluated={})).subject.release == "heart-study-r1"


def test_a_stranger_is_not_a_recipient() -> None:
    with pytest.raises(CloisterError, match="not a recipient"):
        verify(GOOD, root(site="elsewhere"))


@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_a_missing_file_is_refused(name: str) -> None:
    with pytest.raises(CloisterError):
        verify({key: value for key, value in GOOD.items() if key != name}, root())


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(BUNDLE_FILES), st.integers(0, 2**20), st.integers(1, 255))
def test_any_flipped_byte_of_any_file_is_refused(name: str, position: int, flip: int) -> None:
    data = bytearray(GOOD[name])
    data[position % len(data)] ^= flip
    with pytest.raises(CloisterError):
        verify({**GOOD, name: bytes(data)}, root())


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return SiteHome(tmp_path / "site")


def test_install_switches_and_serves(home: SiteHome) -> None:
    bundle = pack(GOOD, BUNDLE_FILES)
    release = install(home, verify_bundle(bundle, root()))
    assert current(home) == release
    assert install(home, verify_bundle(bundle, root())).folder == release.folder
    served = examine_folder(current(home).folder, root())
    (probability,) = Predictor(served.files["model.onnx"], served.subject).predict([{"age": 70.0, "pain": 2}])
    assert 0 < probability < 1
    assert rollback(home, "heart-study-r1").current
    assert [entry.current for entry in installed(home)] == [True]


def test_a_tampered_bundle_leaves_nothing_behind(home: SiteHome) -> None:
    install(home, verify_bundle(pack(GOOD, BUNDLE_FILES), root()))
    before = sorted(path.name for path in home.releases.rglob("*"))
    tampered = pack({**GOOD, "model.onnx": GOOD["model.onnx"] + b"\0"}, BUNDLE_FILES)
    with pytest.raises(CloisterError, match=r"model\.onnx|other files"):
        install(home, verify_bundle(tampered, root()))
    assert sorted(path.name for path in home.releases.rglob("*")) == before


def test_an_onnx_file_that_disagrees_with_the_weights_is_refused() -> None:
    class Careless(Maker):
        """Builds the ONNX file from other weights, has it approved, and logs it."""

        def files(self) -> dict[str, bytes]:
            from coordinator.releases import build

            honest = build.build
            build.build = lambda model, schema, vector: honest(model, schema, vector + 0.01)
            try:
                return super().files()
            finally:
                build.build = honest

    with pytest.raises(CloisterError, match="different predictions"):
        verify_bundle(pack(Careless().files(), BUNDLE_FILES), root())


def test_the_container_survives_a_round_trip() -> None:
    assert unpack(pack(GOOD, BUNDLE_FILES), BUNDLE_FILES) == GOOD
