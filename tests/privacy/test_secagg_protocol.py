"""The two state machines together: the sum is right, and every forbidden message is refused."""

from __future__ import annotations

import dataclasses
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.entropy import KeyStream
from privacy.errors import MissingContributors, OverflowRisk, ParameterError, PrivacyError, ProtocolViolation
from privacy.parameters import Grid
from privacy.secagg.client import SecAggSite
from privacy.secagg.quantization import quantize
from privacy.secagg.server import SecureSum
from tests.privacy.secagg_federation import MODEL, PLAN, exchange_keys, make_sites, ready_sites

NAMES = ["alpha", "beta", "gamma", "delta"]
GRID = Grid(2.0**-18)
LENGTH = 257


def values_for(name: str) -> np.ndarray:
    return np.random.default_rng(sum(name.encode())).normal(0, 3, LENGTH)


def ask(site: SecAggSite, **change: object) -> bytes:
    arguments: dict = {
        "round_number": 0,
        "attempt": 0,
        "cohort": NAMES,
        "model_digest": MODEL,
        "values": values_for(site.site),
        "grid": GRID,
        "entropy": os.urandom,
        "plan_digest": PLAN,
    }
    return site.contribute(**{**arguments, **change})


def summed(sites: dict[str, SecAggSite], **change: object) -> np.ndarray:
    total = SecureSum(sites, LENGTH)
    for name, site in sites.items():
        total.add(name, ask(site, **change))
    return total.result(GRID)


def test_sum_is_right_for_several_rounds_with_commits_and_restarts() -> None:
    sites = ready_sites(NAMES, LENGTH)
    expected = sum(values_for(name) for name in NAMES)
    for round_number in range(3):
        decoded = summed(sites, round_number=round_number, model_digest=bytes([round_number]) * 32)
        assert np.abs(decoded - expected).max() < GRID.step * 3 * 2 * 8
        for site in sites.values():
            site.commit(round_number)
        sites = {name: SecAggSite.restore(site.export_state()) for name, site in sites.items()}


def test_a_smaller_cohort_sums_on_the_next_attempt() -> None:
    sites = ready_sites(NAMES, LENGTH)
    for name in ("alpha", "beta", "gamma"):
        ask(sites[name])
    cohort = ["gamma", "alpha", "beta"]
    total = SecureSum(cohort, LENGTH)
    for name in cohort:
        total.add(name, ask(sites[name], attempt=1, cohort=cohort))
    expected = sum(values_for(name) for name in cohort)
    assert np.abs(total.result(GRID) - expected).max() < GRID.step * 3 * 2 * 8


def test_a_site_that_missed_rounds_catches_up() -> None:
    sites = ready_sites(NAMES, LENGTH)
    for round_number in range(2):
        for name in NAMES[:3]:
            sites[name].commit(round_number)
    decoded = summed(sites, round_number=2)
    assert np.abs(decoded - sum(values_for(name) for name in NAMES)).max() < GRID.step * 3 * 2 * 8


def test_set_up_survives_a_restart_after_every_step() -> None:
    def again(site: SecAggSite) -> SecAggSite:
        return SecAggSite.restore(site.export_state())

    sites = make_sites(NAMES, LENGTH)
    adverts = [site.advertise(os.urandom) for site in sites.values()]
    sites = {name: again(site) for name, site in sites.items()}
    assert [site.advertise(os.urandom) for site in sites.values()] == adverts
    messages = [site.on_adverts(adverts) for site in sites.values()]
    sites = {name: again(site) for name, site in sites.items()}
    assert [site.on_adverts(adverts) for site in sites.values()] == messages
    for site in sites.values():
        site.on_encapsulations(messages)
    sites = {name: again(site) for name, site in sites.items()}
    assert all(site.ready for site in sites.values())
    assert [site.on_adverts(adverts) for site in sites.values()] == messages
    assert np.abs(summed(sites) - sum(values_for(name) for name in NAMES)).max() < GRID.step * 3 * 2 * 8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cohort": ["alpha", "beta"]}, "minimum"),
        ({"cohort": ["alpha", "beta", "gamma", "mallory"]}, "mallory"),
        ({"cohort": ["beta", "gamma", "delta"]}, "not in the cohort"),
        ({"cohort": ["alpha", "alpha", "beta", "gamma"]}, "twice"),
        ({"plan_digest": b"x" * 32}, "another plan"),
        ({"model_digest": b"short"}, "model digest"),
        ({"values": np.zeros(LENGTH - 1)}, "length"),
        ({"values": np.zeros((LENGTH, 1))}, "length"),
        ({"values": np.zeros(LENGTH, dtype=np.float32)}, "float64"),
        ({"values": np.full(LENGTH, np.nan)}, "not finite"),
        ({"purpose": "gossip"}, "gossip"),
        ({"round_number": 100_001}, "beyond"),
    ],
)
def test_refusals_leave_the_state_as_it_was(change: dict, says: str) -> None:
    site = ready_sites(NAMES, LENGTH)["alpha"]
    before = site.export_state()
    with pytest.raises(ProtocolViolation, match=says) as caught:
        ask(site, **change)
    assert caught.value.remedy
    assert site.export_state() == before


def test_values_beyond_the_modulus_leave_the_state_as_it_was() -> None:
    site = ready_sites(NAMES, LENGTH)["alpha"]
    before = site.export_state()
    with pytest.raises(OverflowRisk):
        ask(site, values=np.full(LENGTH, 1e9))
    assert site.export_state() == before


@pytest.mark.parametrize("bad", [{"round_number": -1}, {"attempt": -1}, {"round_number": True}])
def test_rounds_and_attempts_are_counts(bad: dict) -> None:
    with pytest.raises(ParameterError):
        ask(ready_sites(NAMES, LENGTH)["alpha"], **bad)


def test_replay_and_second_attempt_with_the_same_number_are_refused() -> None:
    site = ready_sites(NAMES, LENGTH)["alpha"]
    ask(site, round_number=3, attempt=1)
    for round_number, attempt in ((3, 1), (3, 0), (2, 9), (0, 0)):
        with pytest.raises(ProtocolViolation, match="consumed"):
            ask(site, round_number=round_number, attempt=attempt)
    # Also after a restart, and with another cohort or model under the same number.
    site = SecAggSite.restore(site.export_state())
    with pytest.raises(ProtocolViolation, match="consumed"):
        ask(site, round_number=3, attempt=1, cohort=["alpha", "beta", "gamma"], model_digest=b"n" * 32)
    assert site.last_consumed == (3, 1)
    ask(site, round_number=3, attempt=2)


def test_a_committed_round_is_gone() -> None:
    site = ready_sites(NAMES, LENGTH)["alpha"]
    old = site.export_state()
    site.commit(4)
    with pytest.raises(ProtocolViolation, match="committed"):
        ask(site, round_number=4)
    site.commit(2)  # an earlier commit, repeated after a crash, changes nothing
    import json

    before, after = (json.loads(state)["roots"]["roots"] for state in (old, site.export_state()))
    assert set(before.values()).isdisjoint(after.values())


def test_server_refuses_strangers_repeats_and_wrong_lengths_and_keeps_the_sum() -> None:
    sites = ready_sites(NAMES, LENGTH)
    total = SecureSum(NAMES, LENGTH)
    vectors = {name: bytes(ask(site)) for name, site in sites.items()}
    total.add("alpha", vectors["alpha"])
    with pytest.raises(ProtocolViolation, match="already"):
        total.add("alpha", vectors["alpha"])
    with pytest.raises(ProtocolViolation, match="not in the cohort"):
        total.add("mallory", vectors["beta"])
    for wrong in (b"", vectors["beta"][:-4], vectors["beta"] + b"\0\0\0\0", vectors["beta"][:-1]):
        with pytest.raises(ProtocolViolation, match="sent"):
            total.add("beta", wrong)
    with pytest.raises(MissingContributors) as caught:
        total.result(GRID)
    assert caught.value.missing == ("beta", "delta", "gamma")
    for name in ("beta", "gamma", "delta"):
        data = vectors[name]
        total.add(name, data)
    assert np.abs(total.result(GRID) - sum(values_for(name) for name in NAMES)).max() < GRID.step * 48
    with pytest.raises(ProtocolViolation, match="already"):
        total.add("delta", vectors["delta"])


def test_server_parameters() -> None:
    for bad in (["a"], ["a", "a"], []):
        with pytest.raises(ParameterError):
            SecureSum(bad, 3)
    with pytest.raises(ParameterError):
        SecureSum(NAMES, 0)


def test_contributions_beyond_what_the_noise_was_calibrated_for_are_refused() -> None:
    sites = exchange_keys(make_sites(NAMES, LENGTH, allowed={"training": 3}))
    alpha = sites["alpha"]
    for round_number, attempt in ((0, 0), (0, 1), (1, 0)):
        ask(alpha, round_number=round_number, attempt=attempt)
    alpha = SecAggSite.restore(alpha.export_state())
    before = alpha.export_state()
    with pytest.raises(ProtocolViolation, match="allows") as caught:
        ask(alpha, round_number=1, attempt=1)
    assert caught.value.code == "secagg-retries-spent"
    assert alpha.export_state() == before


def test_a_refused_request_spends_nothing() -> None:
    alpha = exchange_keys(make_sites(NAMES, LENGTH, allowed={"training": 1}))["alpha"]
    with pytest.raises(OverflowRisk):
        ask(alpha, values=np.full(LENGTH, 1e9))
    ask(alpha)
    with pytest.raises(ProtocolViolation, match="allows"):
        ask(alpha, attempt=1)


def test_masking_over_the_values_sums_to_the_same_and_spares_a_vector() -> None:
    sites = ready_sites(NAMES, LENGTH)
    total = SecureSum(sites, LENGTH)
    for name, site in sites.items():
        values = values_for(name)
        masked = ask(site, values=values, overwrite=name != "beta")
        assert masked.readonly
        assert np.shares_memory(np.frombuffer(masked, np.uint32), values) == (name != "beta")
        assert (values == values_for(name)).all() == (name == "beta")
        total.add(name, masked)
    expected = sum(values_for(name) for name in NAMES)
    assert np.abs(total.result(GRID) - expected).max() < GRID.step * 3 * 2 * 8


@pytest.mark.parametrize("peers", [3, 9])
def test_masking_takes_little_memory_beside_the_result(peers: int) -> None:
    length = 4_000_000
    site = ready_sites([f"s{i}" for i in range(peers + 1)], length)["s1"]
    values = np.zeros(length)
    quantize(values[:10], GRID, KeyStream(b"w" * 32))  # the rounding's table is made once per process
    tracemalloc.start()
    try:
        for overwrite, vectors in ((False, 1.0), (True, 0.0)):
            tracemalloc.reset_peak()
            ask(site, attempt=int(overwrite), cohort=site.peers, values=values, overwrite=overwrite)
            beside = tracemalloc.get_traced_memory()[1] - vectors * 4 * length
            assert beside <= 1.3e6 + 0.005 * 4 * length  # 0.04 of a vector of 10 million
    finally:
        tracemalloc.stop()


# --- set-up attacks


def test_a_swapped_key_in_another_sites_advert_gives_noise_and_never_the_plain_sum() -> None:
    sites = make_sites(NAMES, LENGTH)
    mallory = make_sites(NAMES, LENGTH)["beta"]
    adverts = {name: site.advertise(os.urandom) for name, site in sites.items()}
    swapped = {**adverts, "beta": mallory.advertise(os.urandom)}
    messages = [
        sites["alpha"].on_adverts(swapped.values()),
        *(sites[name].on_adverts(adverts.values()) for name in ("beta", "gamma", "delta")),
    ]
    # The digest of the adverts in every message shows the split view at once.
    with pytest.raises(ProtocolViolation, match="saw other adverts"):
        sites["gamma"].on_encapsulations(messages)


def test_a_swapped_key_in_its_own_name_is_refused_by_the_site() -> None:
    sites = make_sites(NAMES, LENGTH)
    adverts = {name: site.advertise(os.urandom) for name, site in sites.items()}
    foreign = make_sites(NAMES, LENGTH)["alpha"].advertise(os.urandom)
    with pytest.raises(ProtocolViolation, match="not its own"):
        sites["alpha"].on_adverts({**adverts, "alpha": foreign}.values())
    assert not sites["alpha"].ready


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_low_order_points_are_refused(point: bytes) -> None:
    sites = make_sites(NAMES, LENGTH)
    adverts = {name: site.advertise(os.urandom) for name, site in sites.items()}
    adverts["beta"] = dataclasses.replace(adverts["beta"], x25519_public=point)
    for name in ("alpha", "gamma"):
        with pytest.raises(ProtocolViolation, match="cannot be used"):
            sites[name].on_adverts(adverts.values())


def test_an_invalid_mlkem_key_is_refused() -> None:
    sites = make_sites(NAMES, LENGTH)
    adverts = {name: site.advertise(os.urandom) for name, site in sites.items()}
    adverts["beta"] = dataclasses.replace(adverts["beta"], mlkem_public=b"\xff" * 1184)
    with pytest.raises(ProtocolViolation, match="cannot be used"):
        sites["alpha"].on_adverts(adverts.values())


@pytest.mark.parametrize("field", ["ciphertexts", "confirmations"])
def test_a_tampered_ciphertext_or_confirmation_is_refused_by_its_receiver(field: str) -> None:
    sites = make_sites(NAMES, LENGTH)
    adverts = [site.advertise(os.urandom) for site in sites.values()]
    messages = {name: site.on_adverts(adverts) for name, site in sites.items()}
    broken = dict(getattr(messages["alpha"], field))
    broken["beta"] = bytes([broken["beta"][0] ^ 1]) + broken["beta"][1:]
    tampered = {**messages, "alpha": dataclasses.replace(messages["alpha"], **{field: broken})}
    before = sites["beta"].export_state()
    with pytest.raises(ProtocolViolation, match="changed on the way") as caught:
        sites["beta"].on_encapsulations(tampered.values())
    assert caught.value.code == "secagg-key-unconfirmed"
    assert sites["beta"].export_state() == before
    with pytest.raises(ProtocolViolation):
        _ = sites["beta"].transcript
    # A site to whom nothing was changed goes on, but the transcripts differ; the untouched message still serves.
    sites["gamma"].on_encapsulations(tampered.values())
    sites["beta"].on_encapsulations(messages.values())
    assert sites["beta"].transcript != sites["gamma"].transcript


def test_all_sites_end_the_set_up_with_one_transcript_and_keep_it() -> None:
    sites = ready_sites(NAMES, LENGTH)
    assert len({site.transcript for site in sites.values()}) == 1
    alpha = sites["alpha"]
    assert SecAggSite.restore(alpha.export_state()).transcript == alpha.transcript


def test_unknown_missing_and_repeated_sites_in_the_set_up() -> None:
    sites = make_sites(NAMES, LENGTH)
    adverts = {name: site.advertise(os.urandom) for name, site in sites.items()}
    stranger = make_sites(["mallory", *NAMES], LENGTH)["mallory"].advertise(os.urandom)
    alpha = sites["alpha"]
    with pytest.raises(ProtocolViolation, match="not pinned"):
        alpha.on_adverts([*adverts.values(), stranger])
    with pytest.raises(ProtocolViolation, match="lack delta"):
        alpha.on_adverts([adverts[name] for name in ("alpha", "beta", "gamma")])
    with pytest.raises(ProtocolViolation, match="twice"):
        alpha.on_adverts([*adverts.values(), adverts["beta"]])
    for change in ({"study": "other"}, {"plan_digest": b"x" * 32}):
        with pytest.raises(ProtocolViolation, match="another study or plan"):
            alpha.on_adverts({**adverts, "beta": dataclasses.replace(adverts["beta"], **change)}.values())
    messages = {name: site.on_adverts(adverts.values()) for name, site in sites.items()}
    with pytest.raises(ProtocolViolation, match="differ"):
        alpha.on_adverts({**adverts, "beta": make_sites(NAMES, 1)["beta"].advertise(os.urandom)}.values())
    with pytest.raises(ProtocolViolation, match="one from each"):
        alpha.on_encapsulations([messages["beta"], messages["gamma"]])
    with pytest.raises(ProtocolViolation, match="twice"):
        alpha.on_encapsulations([*messages.values(), messages["beta"]])
    short = dataclasses.replace(messages["beta"], ciphertexts={}, confirmations={})
    with pytest.raises(ProtocolViolation, match="left a site out"):
        alpha.on_encapsulations({**messages, "beta": short}.values())
    alpha.on_encapsulations(messages.values())
    with pytest.raises(ProtocolViolation, match="once"):
        alpha.on_encapsulations(messages.values())
    with pytest.raises(ProtocolViolation, match="once"):
        alpha.advertise(os.urandom)


def test_order_of_the_set_up() -> None:
    sites = make_sites(NAMES, LENGTH)
    alpha = sites["alpha"]
    with pytest.raises(ProtocolViolation, match="Advertise first"):
        alpha.on_adverts([])
    with pytest.raises(ProtocolViolation, match="expects no"):
        alpha.on_encapsulations([])
    with pytest.raises(ProtocolViolation, match="keys"):
        ask(alpha)
    with pytest.raises(ProtocolViolation, match="keys"):
        alpha.commit(0)


@pytest.mark.parametrize(
    "bad",
    [
        {"peers": ["alpha", "beta"]},
        {"peers": ["alpha", "beta", "beta"]},
        {"peers": ["beta", "gamma", "delta"]},
        {"peers": [f"site-{i}" for i in range(50)] + ["alpha"]},
        {"minimum_cohort": 2},
        {"minimum_cohort": 5},
        {"plan_digest": b"short"},
        {"lengths": {}},
        {"lengths": {"training": 0}},
        {"allowed": {"training": 0}},
        {"allowed": {"evaluation": 3}},
    ],
)
def test_site_parameters(bad: dict) -> None:
    good: dict = {
        "site": "alpha",
        "study": "s",
        "plan_digest": PLAN,
        "peers": NAMES,
        "minimum_cohort": 3,
        "lengths": {"training": 3},
    }
    with pytest.raises(PrivacyError):
        SecAggSite(**{**good, **bad})


def test_secrets_do_not_show_in_a_repr() -> None:
    site = make_sites(NAMES, LENGTH)["alpha"]
    site.advertise(os.urandom)
    assert site._keys._setup is not None
    assert repr(site._keys._setup.x25519_private) not in repr(site._keys._setup)
    exchanged = ready_sites(NAMES, LENGTH)["alpha"]
    assert exchanged._keys._setup is None
    assert repr(next(iter(exchanged._roots.roots.values()))) not in repr(exchanged._roots)


STATE = exchange_keys(make_sites(["a", "b", "c"], 2))["a"].export_state()


@settings(max_examples=60)
@given(position=st.integers(0, len(STATE) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_state_is_refused_or_is_another_valid_state(position: int, byte: int, cut: bool) -> None:
    damaged = STATE[:position] if cut else STATE[:position] + bytes([byte]) + STATE[position + 1 :]
    try:
        restored = SecAggSite.restore(damaged)
    except PrivacyError:
        return
    assert restored.export_state() == damaged
