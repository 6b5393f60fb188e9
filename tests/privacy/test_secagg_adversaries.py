"""A coordinator and sites that break every rule, in memory, against the real state machines.

What an attacker may hold is tested for uniformity: every subset and signed combination of the messages of two attempts,
also with a colluding site's masks taken off. Only whole cohorts say anything, and that is what was charged.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from privacy.errors import MissingContributors, ParameterError, ProtocolViolation
from privacy.parameters import MODULUS, Grid
from privacy.secagg import client
from privacy.secagg.client import SecAggSite
from privacy.secagg.field import words_of
from privacy.secagg.masking import Mask, mask_buffer, mask_key
from privacy.secagg.messages import Encapsulations
from privacy.secagg.server import SecureSum
from tests.privacy.secagg_federation import MODEL, PLAN, exchange_keys, make_sites, ready_sites

NAMES = ("ana", "bo", "cy", "dee")
REST = NAMES[:3]
GRID = Grid(2.0**-16)
LENGTH = 4096
# About 2000 tests of uniformity in this file, each at this level: one false alarm in half a million runs.
LEVEL = 1e-9


def ask(site: SecAggSite, **change: object) -> np.ndarray:
    arguments: dict = {
        "round_number": 0,
        "attempt": 0,
        "cohort": NAMES,
        "model_digest": MODEL,
        "values": np.zeros(LENGTH),
        "grid": GRID,
        "entropy": os.urandom,
        "plan_digest": PLAN,
    }
    return words_of(site.contribute(**{**arguments, **change}))


def is_uniform(words: np.ndarray) -> bool:
    """Bytes evenly spread, and no more small numbers (either sign) than chance has: a sum of values is small."""
    observed = np.bincount(words.view(np.uint8), minlength=256)
    small = int((np.abs(words.view(np.int32).astype(np.int64)) < 2**22).sum())
    chance = stats.binomtest(small, words.size, 2**23 / MODULUS, alternative="greater").pvalue
    return bool(stats.chisquare(observed).pvalue > LEVEL and chance > LEVEL)


def combined(vectors: list[np.ndarray], signs: tuple[int, ...]) -> np.ndarray:
    total = np.zeros(LENGTH, dtype=np.uint32)
    for vector, sign in zip(vectors, signs, strict=True):
        if sign > 0:
            total += vector
        elif sign < 0:
            total -= vector
    return total


def signed(count: int) -> Iterator[tuple[int, ...]]:
    return itertools.product((-1, 0, 1), repeat=count)


def test_the_test_of_uniformity_sees_what_is_not() -> None:
    fresh = np.frombuffer(os.urandom(4 * LENGTH), dtype=np.uint32)
    assert is_uniform(fresh)
    assert not is_uniform(np.random.default_rng(0).normal(0, 1e5, LENGTH).astype(np.int32).view(np.uint32))
    biased = fresh.copy()
    biased[:64] = 5
    assert not is_uniform(biased)


# --- the coordinator


def test_nothing_short_of_a_whole_cohort_says_anything_even_over_two_attempts() -> None:
    # It has all of attempt 0, says that dee dropped out, and gets attempt 1 from the other three.
    sites = ready_sites(NAMES, LENGTH)
    first = [ask(sites[name]) for name in NAMES]
    second = [ask(sites[name], attempt=1, cohort=REST) for name in REST]
    tested = 0
    for one in itertools.product((0, 1), repeat=4):
        for other in signed(3):
            whole_first, whole_second = len(set(one)) == 1, len(set(other)) == 1
            total = combined(first, one) + combined(second, other)
            # What is left when whole cohorts are taken off must be uniform or nothing at all.
            if not (whole_first and whole_second):
                assert is_uniform(total), (one, other)
                tested += 1
            else:
                assert np.abs(total.view(np.int32)).max() < 3 * 9 * np.sqrt(7)
    assert tested == 16 * 27 - 2 * 3


def test_every_subset_of_what_honest_sites_sent_is_uniform_to_a_coordinator_with_a_site_of_its_own() -> None:
    # dee tells the coordinator its keys: its pairs' masks come off. The masks among the honest three stay.
    sites = ready_sites(NAMES, LENGTH)
    roots = sites["dee"]._roots
    assert roots is not None
    stripped = {}
    for attempt, cohort in ((0, NAMES), (1, ("ana", "bo", "dee"))):
        for name in cohort[:-1]:
            words = ask(sites[name], attempt=attempt, cohort=cohort).copy()
            key = mask_key(
                roots.roots[name],
                study="study-1",
                plan_digest=PLAN,
                purpose="training",
                round_number=0,
                attempt=attempt,
                cohort=cohort,
                model_digest=MODEL,
                length=LENGTH,
                modulus=MODULUS,
            )
            Mask(key, add=False).apply(words, mask_buffer(LENGTH))  # name < dee: it had added
            stripped[name, attempt] = words
    first = [stripped[name, 0] for name in REST]
    second = [stripped[name, 1] for name in ("ana", "bo")]
    for one in signed(3):
        for other in signed(2):
            whole = len(set(one)) == 1 and len(set(other)) == 1
            total = combined(first, one) + combined(second, other)
            assert is_uniform(total) != whole, (one, other)


LIES = {
    "smaller cohort": {"cohort": REST},
    "model": {"model_digest": b"n" * 32},
    "round": {"round_number": 1},
    "attempt": {"attempt": 1},
    "none": {},
}


@pytest.mark.parametrize("lie", sorted(LIES))
@pytest.mark.parametrize("told", [("ana",), ("ana", "bo")])
def test_sites_that_are_told_different_stories_give_noise(lie: str, told: tuple[str, ...]) -> None:
    sites = ready_sites(NAMES, LENGTH)
    vectors = [ask(sites[name], **(LIES[lie] if name in told else {})) for name in NAMES]
    for signs in itertools.product((0, 1), repeat=4):
        if any(signs):
            # Same story everywhere: the whole sum is the only one that decodes.
            assert is_uniform(combined(vectors, signs)) == (bool(LIES[lie]) or not all(signs))


REFUSED: dict[str, tuple[dict, str]] = {
    "shrinks the cohort": ({"cohort": ("ana", "bo")}, "secagg-cohort-too-small"),
    "leaves it alone": ({"cohort": ("ana",)}, "secagg-cohort-too-small"),
    "invents a site": ({"cohort": (*NAMES, "mallory")}, "secagg-unknown-site"),
    "counts one twice": ({"cohort": ("ana", "bo", "bo", "cy")}, "secagg-repeated-site"),
    "leaves it out": ({"cohort": ("bo", "cy", "dee")}, "secagg-not-in-cohort"),
    "swaps the plan": ({"plan_digest": b"q" * 32}, "secagg-other-plan"),
    "forks the round with a model": ({"round_number": 2, "model_digest": b"n" * 32}, "secagg-consumed"),
    "forks the round with a cohort": ({"round_number": 2, "cohort": REST}, "secagg-consumed"),
    "replays the round": ({"round_number": 2}, "secagg-consumed"),
    "goes back a round": ({"round_number": 1, "attempt": 5}, "secagg-consumed"),
    "asks for a sum of its own": ({"round_number": 3, "purpose": "salaries"}, "secagg-no-such-sum"),
    "asks beyond the keys": ({"round_number": 100_001}, "secagg-round-gone"),
}


@pytest.mark.parametrize("deed", sorted(REFUSED))
@pytest.mark.parametrize("restarted", [False, True])
def test_a_site_refuses_by_a_closed_code_and_its_keys_stay_as_they_were(deed: str, restarted: bool) -> None:
    site = ready_sites(NAMES, LENGTH)["ana"]
    ask(site, round_number=2)
    if restarted:
        site = SecAggSite.restore(site.export_state())
    change, code = REFUSED[deed]
    before = site.export_state()
    with pytest.raises(ProtocolViolation) as caught:
        ask(site, **change)
    assert caught.value.code == code
    assert caught.value.remedy
    assert site.export_state() == before
    ask(site, round_number=2, attempt=1)  # and it goes on


def test_asking_for_attempts_without_end_stops_at_what_was_calibrated() -> None:
    site = exchange_keys(make_sites(NAMES, LENGTH, allowed={"training": 4}))["ana"]
    for attempt in range(4):
        ask(site, attempt=attempt, cohort=REST if attempt % 2 else NAMES)
        site = SecAggSite.restore(site.export_state())
    for attempt in range(4, 20):
        with pytest.raises(ProtocolViolation) as caught:
            ask(site, round_number=attempt, attempt=attempt)
        assert caught.value.code == "secagg-retries-spent"


def test_keys_swapped_for_two_victims_are_seen_before_any_round() -> None:
    # A coordinator in the middle of every pair of ana's would need its own keys in the others' names.
    sites = make_sites(NAMES, LENGTH)
    fakes = make_sites(NAMES, LENGTH)
    real = {name: site.advertise(os.urandom) for name, site in sites.items()}
    fake = {name: site.advertise(os.urandom) for name, site in fakes.items()}
    to_ana = {**fake, "ana": real["ana"]}
    messages = {"ana": sites["ana"].on_adverts(to_ana.values())}
    for name in NAMES[1:]:
        messages[name] = sites[name].on_adverts({**real, "ana": fake["ana"]}.values())
    for name in NAMES:
        with pytest.raises(ProtocolViolation) as caught:
            sites[name].on_encapsulations(messages.values())
        assert caught.value.code == "secagg-split-view"
    # Nor can it forge what ana would have said: the confirmation needs the pair's root.
    forged = dataclasses.replace(messages["ana"], adverts=messages["bo"].adverts)
    with pytest.raises(ProtocolViolation) as caught:
        sites["bo"].on_encapsulations({**messages, "ana": forged}.values())
    assert caught.value.code == "secagg-key-unconfirmed"
    assert not any(site.ready for site in sites.values())


# --- sites


def test_a_site_absent_at_the_worst_moment_leaves_noise_and_the_rest_go_on() -> None:
    sites = ready_sites(NAMES, LENGTH)
    total = SecureSum(NAMES, LENGTH)
    for name in REST:
        total.add(name, ask(sites[name]).data.cast("B"))
    with pytest.raises(MissingContributors) as caught:
        total.result(GRID)
    assert caught.value.missing == ("dee",)
    again = SecureSum(REST, LENGTH)
    for name in REST:
        again.add(name, ask(sites[name], attempt=1, cohort=REST).data.cast("B"))
    assert np.abs(again.result(GRID)).max() < GRID.step * 3 * 9 * 2


@pytest.mark.parametrize("size", [0, 1, 4 * LENGTH - 4, 4 * LENGTH - 1, 4 * LENGTH + 1, 4 * LENGTH + 4, 8 * LENGTH])
def test_a_vector_of_wrong_length_or_words_changes_nothing(size: int) -> None:
    sites = ready_sites(NAMES, LENGTH)
    total = SecureSum(NAMES, LENGTH)
    for name in REST:
        total.add(name, ask(sites[name]).data.cast("B"))
    with pytest.raises(ProtocolViolation) as caught:
        total.add("dee", bytes(size))
    assert caught.value.code == "secagg-wrong-length"
    total.add("dee", ask(sites["dee"]).data.cast("B"))
    assert np.abs(total.result(GRID)).max() < GRID.step * 3 * 9 * 2


def test_a_site_that_sends_two_vectors_counts_once() -> None:
    sites = ready_sites(NAMES, LENGTH)
    total = SecureSum(NAMES, LENGTH)
    for name in NAMES:
        vector = ask(sites[name]).data.cast("B")
        total.add(name, vector)
        for second in (vector, bytes(4 * LENGTH)):
            with pytest.raises(ProtocolViolation) as caught:
                total.add(name, second)
            assert caught.value.code == "secagg-repeated-site"
    assert np.abs(total.result(GRID)).max() < GRID.step * 3 * 9 * 2


@pytest.mark.parametrize("deed", ["masks modulo 2^31", "words modulo 2^16", "words negated"])
def test_a_site_that_works_by_another_modulus_spoils_the_sum_and_learns_nothing(
    deed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell which site it was; what the others sent stays masked, and the attempt is worth nothing."""
    sites = ready_sites(NAMES, LENGTH)
    honest = [ask(sites[name], values=np.full(LENGTH, 3.0)) for name in REST]
    if deed == "masks modulo 2^31":
        with monkeypatch.context() as patch:
            patch.setattr(client, "mask_key", lambda *root, **bound: mask_key(*root, **{**bound, "modulus": 1 << 31}))
            wrong = ask(sites["dee"])
    elif deed == "words modulo 2^16":
        wrong = ask(sites["dee"]) & np.uint32(0xFFFF)
    else:
        wrong = -ask(sites["dee"])
    total = SecureSum(NAMES, LENGTH)
    for name, words in zip(NAMES, [*honest, wrong], strict=True):
        total.add(name, words.data.cast("B"))
    assert np.abs(total.result(GRID)).max() > GRID.half_range / 10, "noise over the whole modulus"
    for signs in signed(3):
        if any(signs):
            assert is_uniform(combined(honest, signs)), "and the honest ones stay masked in every combination"
    with pytest.raises(ParameterError):
        SecureSum(NAMES, LENGTH, modulus=1 << 31)
    with pytest.raises(ParameterError):
        Grid(2.0**-16, modulus=1 << 31)


@pytest.mark.parametrize(
    "spoiled",
    [
        *({"x25519_public": point} for point in (bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f")),
        {"mlkem_public": b"\xff" * 1184},
    ],
)
def test_unusable_keys_are_refused_by_every_site_that_must_use_them(spoiled: dict) -> None:
    sites = make_sites(NAMES, LENGTH)
    adverts = {name: site.advertise(os.urandom) for name, site in sites.items()}
    adverts["dee"] = dataclasses.replace(adverts["dee"], **spoiled)
    for name in REST:
        before = sites[name].export_state()
        with pytest.raises(ProtocolViolation) as caught:
            sites[name].on_adverts(adverts.values())
        assert caught.value.code == "secagg-key-unusable"
        assert sites[name].export_state() == before


@pytest.mark.parametrize("field", ["ciphertexts", "confirmations"])
@pytest.mark.parametrize("size", [0, 31, 1087, 1089])
def test_malformed_ciphertexts_and_confirmations_cannot_even_be_read(field: str, size: int) -> None:
    sites = make_sites(NAMES, LENGTH)
    adverts = [site.advertise(os.urandom) for site in sites.values()]
    message = sites["ana"].on_adverts(adverts)
    values = {**getattr(message, field), "bo": bytes(size)}
    with pytest.raises(ProtocolViolation) as caught:
        dataclasses.replace(message, **{field: values})
    assert caught.value.code == "secagg-malformed"
    document = message.to_dict()
    with pytest.raises(ProtocolViolation):
        Encapsulations.from_dict({**document, field: {**document[field], "bo": "A" * (size // 3 * 4)}})  # type: ignore[dict-item]


def test_a_site_cannot_confirm_to_one_peer_with_another_peers_tag() -> None:
    sites = make_sites(NAMES, LENGTH)
    adverts = [site.advertise(os.urandom) for site in sites.values()]
    messages = {name: site.on_adverts(adverts) for name, site in sites.items()}
    tags = messages["ana"].confirmations
    crossed = dataclasses.replace(messages["ana"], confirmations={**tags, "bo": tags["cy"], "cy": tags["bo"]})
    for name in ("bo", "cy"):
        with pytest.raises(ProtocolViolation) as caught:
            sites[name].on_encapsulations({**messages, "ana": crossed}.values())
        assert caught.value.code == "secagg-key-unconfirmed"
