"""When a review of a model may be closed, decided purely: by whom, and on which ground for which withdrawal."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.errors import Conflict
from coordinator.reviews.states import FITS, NOT_SERVED, ReviewState, decide_closing
from protocol.errors import Malformed, Refused
from protocol.identifiers import Role
from protocol.withdrawal import GROUNDS, REVIEW_GROUNDS

ASKED: dict[str, Any] = {
    "state": ReviewState.OPEN,
    "role": Role.COMPLIANCE_OFFICER,
    "person": "carl",
    "submitter": "rosa",
    "causes": ("consent-withdrawn",),
    "grounds": ("art-17-3-d",),
    "words": "Erasure would make the study impossible",
    "served": True,
}


def test_a_compliance_officer_closes_it_on_a_ground_that_fits() -> None:
    decide_closing(**ASKED)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"state": ReviewState.CLOSED}, Conflict),
        *(({"role": role}, Refused) for role in Role if role is not Role.COMPLIANCE_OFFICER),
        ({"submitter": "carl"}, Refused),
        ({"words": "  "}, Malformed),
        ({"words": "x" * 2001}, Malformed),
        ({"grounds": ()}, Malformed),
        ({"grounds": ("art-21-6",)}, Malformed),  # a public task answers an objection, not a consent taken back
        ({"grounds": ("reliance",)}, Malformed),
        ({"grounds": ("art-17-3-d", "reliance")}, Malformed),
        ({"causes": ("consent-withdrawn", "authorization-revoked")}, Malformed),
        ({"causes": ("authorization-revoked",)}, Malformed),
        ({"grounds": ("model-withdrawn",)}, Refused),  # it is still out
        ({"grounds": ("trained-again",)}, Refused),
    ],
)
def test_anything_else_is_refused(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        decide_closing(**{**ASKED, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"causes": ("objection",), "grounds": ("art-21-6",)},
        {"causes": ("authorization-revoked",), "grounds": ("reliance",)},
        {"causes": ("erasure", "authorization-revoked"), "grounds": ("art-17-3-c", "reliance")},
        {"grounds": ("model-withdrawn",), "served": False},
        {"causes": GROUNDS, "grounds": ("trained-again",), "served": False},
    ],
)
def test_each_cause_has_its_answer(changes: dict[str, Any]) -> None:
    decide_closing(**{**ASKED, **changes})


def test_every_cause_can_be_answered_and_every_ground_answers_one() -> None:
    assert set(FITS) == set(GROUNDS)
    assert set().union(*FITS.values()) == set(REVIEW_GROUNDS)
    assert all(fits >= NOT_SERVED for fits in FITS.values())
