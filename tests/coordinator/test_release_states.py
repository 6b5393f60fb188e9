"""Who may move a release, and that no order of votes lets one person, one role or the submitter release a model."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.releases.states import OPEN, ReleaseState, Vote, admit, admit_veto, break_glass, move, outcome, overdue
from protocol.errors import Refused
from protocol.identifiers import Role
from protocol.review import ReviewPolicy

DIGEST = "sha256:" + "a" * 64
POLICY = ReviewPolicy()
OTHER = "sha256:" + "b" * 64


def vote(person: str, role: Role, digest: str = DIGEST, approve: bool = True) -> Vote:
    return Vote(person, role, digest, approve)


BO = vote("bo", Role.COMPLIANCE_OFFICER)
CY = vote("cy", Role.CLINICAL_LEAD)


def test_two_people_in_two_roles_approve() -> None:
    admit(BO, [], state=ReleaseState.IN_REVIEW, submitter="ada", digest=DIGEST, policy=POLICY)
    assert outcome([BO], digest=DIGEST, submitter="ada", policy=POLICY) is ReleaseState.IN_REVIEW
    admit(CY, [BO], state=ReleaseState.IN_REVIEW, submitter="ada", digest=DIGEST, policy=POLICY)
    assert outcome([BO, CY], digest=DIGEST, submitter="ada", policy=POLICY) is ReleaseState.APPROVED


@pytest.mark.parametrize(
    ("candidate", "cast", "state", "why"),
    [
        (vote("ada", Role.CLINICAL_LEAD), [], ReleaseState.IN_REVIEW, "submitter"),
        (vote("bo", Role.CLINICAL_LEAD), [BO], ReleaseState.IN_REVIEW, "already decided"),
        (vote("eve", Role.COMPLIANCE_OFFICER), [BO], ReleaseState.IN_REVIEW, "already decided"),
        (vote("eve", Role.RESEARCHER), [], ReleaseState.IN_REVIEW, "does not approve"),
        (vote("eve", Role.ADMINISTRATOR), [], ReleaseState.IN_REVIEW, "does not approve"),
        (vote("cy", Role.CLINICAL_LEAD, OTHER), [], ReleaseState.IN_REVIEW, "another digest"),
        (CY, [], ReleaseState.DRAFT, "nothing is to be approved"),
        (CY, [], ReleaseState.RELEASED, "nothing is to be approved"),
    ],
)
def test_refused_votes_say_why(candidate: Vote, cast: list[Vote], state: ReleaseState, why: str) -> None:
    with pytest.raises(Refused) as caught:
        admit(candidate, cast, state=state, submitter="ada", digest=DIGEST, policy=POLICY)
    assert why in caught.value.message
    assert caught.value.remedy


def test_one_rejection_ends_it() -> None:
    rejected = vote("cy", Role.CLINICAL_LEAD, approve=False)
    assert outcome([BO, rejected], digest=DIGEST, submitter="ada", policy=POLICY) is ReleaseState.REJECTED


def test_a_release_cannot_skip_its_review() -> None:
    for state in ReleaseState:
        if state is not ReleaseState.SEALING:
            with pytest.raises(Refused):
                move(state, ReleaseState.RELEASED)


votes = st.lists(
    st.builds(
        Vote,
        st.sampled_from(["ada", "bo", "cy", "eve"]),
        st.sampled_from(list(Role)),
        st.sampled_from([DIGEST, OTHER]),
        st.booleans(),
    ),
    max_size=8,
)


@given(votes)
def test_no_sequence_of_votes_releases_without_two_people_in_two_roles(sequence: list[Vote]) -> None:
    cast: list[Vote] = []
    for candidate in sequence:
        try:
            state = outcome(cast, digest=DIGEST, submitter="ada", policy=POLICY)
            admit(candidate, cast, state=state, submitter="ada", digest=DIGEST, policy=POLICY)
        except Refused:
            continue
        cast.append(candidate)
    if outcome(cast, digest=DIGEST, submitter="ada", policy=POLICY) is ReleaseState.APPROVED:
        assert len({v.person for v in cast if v.approve}) == 2
        assert {v.role for v in cast} == {Role.COMPLIANCE_OFFICER, Role.CLINICAL_LEAD}
        assert all(v.person != "ada" and v.subject_digest == DIGEST for v in cast)


def test_breaking_the_glass_suspends_and_never_lets_a_model_out() -> None:
    """An insider who may break the glass gets no release by it, whatever state it is in."""
    for state in ReleaseState:
        for wanted in set(ReleaseState) - {ReleaseState.SUSPENDED}:
            with pytest.raises(Refused):
                break_glass(state, wanted)
    assert break_glass(ReleaseState.RELEASED, ReleaseState.SUSPENDED) is ReleaseState.SUSPENDED
    with pytest.raises(Refused):
        break_glass(ReleaseState.APPROVED, ReleaseState.SUSPENDED)


def test_nothing_comes_back_from_an_end() -> None:
    for state in (ReleaseState.REJECTED, ReleaseState.FAILED, ReleaseState.EXPIRED, ReleaseState.REVOKED):
        for wanted in ReleaseState:
            with pytest.raises(Refused):
                move(state, wanted)
    for wanted in set(ReleaseState) - {ReleaseState.REVOKED}:
        with pytest.raises(Refused):
            move(ReleaseState.SUSPENDED, wanted)


def test_three_people_from_two_organisations() -> None:
    policy = ReviewPolicy(reviewers=3, organisations=2)
    bo, cy = Vote("bo", Role.COMPLIANCE_OFFICER, DIGEST, True, "a"), Vote("cy", Role.CLINICAL_LEAD, DIGEST, True, "a")
    dee, nobody = Vote("dee", Role.CLINICAL_LEAD, DIGEST, True, "b"), Vote("flo", Role.CLINICAL_LEAD, DIGEST, True)
    for cast in ([bo, cy], [bo, cy, nobody], [cy, dee, nobody]):
        assert outcome(cast, digest=DIGEST, submitter="ada", policy=policy) is ReleaseState.IN_REVIEW
    admit(dee, [bo, cy], state=ReleaseState.IN_REVIEW, submitter="ada", digest=DIGEST, policy=policy)
    assert outcome([bo, cy, dee], digest=DIGEST, submitter="ada", policy=policy) is ReleaseState.APPROVED


def test_review_ends_on_its_day_and_only_before_the_sealing() -> None:
    until, late = "2026-11-23T00:00:00Z", datetime(2026, 11, 23, tzinfo=UTC)
    assert {state for state in ReleaseState if overdue(state, until, now=late)} == OPEN
    assert not overdue(ReleaseState.IN_REVIEW, until, now=datetime(2026, 11, 22, 23, 59, 59, tzinfo=UTC))


def test_a_veto_comes_before_the_sealing() -> None:
    for state in set(ReleaseState) - OPEN:
        with pytest.raises(Refused):
            admit_veto(state)
