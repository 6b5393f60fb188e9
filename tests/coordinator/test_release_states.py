"""Who may move a release, and that no order of votes lets one person, one role or the submitter release a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.releases.states import ReleaseState, Vote, admit, move, outcome
from protocol.errors import Refused
from protocol.identifiers import Role

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def vote(person: str, role: Role, digest: str = DIGEST, approve: bool = True) -> Vote:
    return Vote(person, role, digest, approve)


BO = vote("bo", Role.COMPLIANCE_OFFICER)
CY = vote("cy", Role.CLINICAL_LEAD)


def test_two_people_in_two_roles_approve() -> None:
    admit(BO, [], state=ReleaseState.IN_REVIEW, submitter="ada", digest=DIGEST)
    assert outcome([BO], digest=DIGEST, submitter="ada") is ReleaseState.IN_REVIEW
    admit(CY, [BO], state=ReleaseState.IN_REVIEW, submitter="ada", digest=DIGEST)
    assert outcome([BO, CY], digest=DIGEST, submitter="ada") is ReleaseState.APPROVED


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
        admit(candidate, cast, state=state, submitter="ada", digest=DIGEST)
    assert why in caught.value.message
    assert caught.value.remedy


def test_one_rejection_ends_it() -> None:
    rejected = vote("cy", Role.CLINICAL_LEAD, approve=False)
    assert outcome([BO, rejected], digest=DIGEST, submitter="ada") is ReleaseState.REJECTED


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
            state = outcome(cast, digest=DIGEST, submitter="ada")
            admit(candidate, cast, state=state, submitter="ada", digest=DIGEST)
        except Refused:
            continue
        cast.append(candidate)
    if outcome(cast, digest=DIGEST, submitter="ada") is ReleaseState.APPROVED:
        assert len({v.person for v in cast if v.approve}) == 2
        assert {v.role for v in cast} == {Role.COMPLIANCE_OFFICER, Role.CLINICAL_LEAD}
        assert all(v.person != "ada" and v.subject_digest == DIGEST for v in cast)
