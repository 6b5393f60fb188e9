"""Set-up messages: they round-trip, and nothing else is accepted."""

import base64
import dataclasses
import json
import os

import pytest

from privacy.errors import ProtocolViolation
from privacy.secagg.masking import encode_fields
from privacy.secagg.messages import Encapsulations, KeyAdvert, adverts_digest, transcript_digest
from tests.privacy.secagg_federation import make_sites

NAMES = ["alpha", "beta", "gamma"]


def adverts() -> list[KeyAdvert]:
    return [site.advertise(os.urandom) for site in make_sites(NAMES, 4).values()]


def encapsulations() -> Encapsulations:
    sites = make_sites(NAMES, 4)
    shown = [site.advertise(os.urandom) for site in sites.values()]
    return sites["alpha"].on_adverts(shown)


def test_messages_round_trip_through_json() -> None:
    advert, message = adverts()[0], encapsulations()
    assert KeyAdvert.from_dict(json.loads(json.dumps(advert.to_dict()))) == advert
    assert Encapsulations.from_dict(json.loads(json.dumps(message.to_dict()))) == message
    assert set(message.ciphertexts) == {"beta", "gamma"}


@pytest.mark.parametrize(
    "change",
    [
        {"type": "something else"},
        {"site": ""},
        {"site": "a\nb"},
        {"site": 7},
        {"plan_digest": "AAAA"},
        {"x25519_public": base64.b64encode(b"x" * 31).decode()},
        {"x25519_public": base64.b64encode(b"x" * 32).decode().rstrip("=")},
        {"x25519_public": " " + base64.b64encode(b"x" * 32).decode()},
        {"x25519_public": base64.b64encode(b"x" * 32).decode()[:-2] + "B="},  # stray bits: another text, same bytes
        {"x25519_public": None},
        {"mlkem_public": "é" * 10},
        {"mlkem_public": "A" * 10_000_000},
        {"extra": "field"},
    ],
)
def test_malformed_advert_is_refused(change: dict) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        KeyAdvert.from_dict({**adverts()[0].to_dict(), **change})
    assert caught.value.remedy


def test_advert_with_a_field_missing_is_refused() -> None:
    document = adverts()[0].to_dict()
    del document["mlkem_public"]
    for bad in (document, [], None, "text"):
        with pytest.raises(ProtocolViolation):
            KeyAdvert.from_dict(bad)


def test_malformed_encapsulations_are_refused() -> None:
    good = encapsulations().to_dict()
    one = next(iter(good["ciphertexts"].values()))
    tags = good["confirmations"]
    for change in (
        {"ciphertexts": []},
        {"ciphertexts": {"beta": one[:-4]}},
        {"ciphertexts": {"aaa": one}},
        {"ciphertexts": {"alpha": one}},
        {"ciphertexts": {f"site-{i}": one for i in range(60)}},
        {"ciphertexts": {"beta": one}},
        {"confirmations": []},
        {"confirmations": {}},
        {"confirmations": {name: tag for name, tag in tags.items() if name != "beta"}},
        {"confirmations": {**tags, "beta": tags["beta"][:-4]}},
        {"confirmations": {**tags, "delta": tags["beta"]}},
        {"adverts": 3},
        {"type": "cloister/secagg/advert/v1"},
    ):
        with pytest.raises(ProtocolViolation) as caught:
            Encapsulations.from_dict({**good, **change})
        assert caught.value.code == "secagg-malformed"


def test_the_transcript_depends_on_every_message_and_not_on_order() -> None:
    sites = make_sites(NAMES, 4)
    shown = [site.advertise(os.urandom) for site in sites.values()]
    messages = [site.on_adverts(shown) for site in sites.values()]
    assert transcript_digest(messages) == transcript_digest(reversed(messages))
    alpha = messages[0]
    digests = {transcript_digest(messages), transcript_digest(messages[1:])}
    for field in ("ciphertexts", "confirmations"):
        values = dict(getattr(alpha, field))
        values["beta"] = bytes([values["beta"][0] ^ 1]) + values["beta"][1:]
        digests.add(transcript_digest([dataclasses.replace(alpha, **{field: values}), *messages[1:]]))
    digests.add(transcript_digest([dataclasses.replace(alpha, adverts=b"x" * 32), *messages[1:]]))
    assert len(digests) == 5


def test_digests_depend_on_every_field_and_not_on_order() -> None:
    shown = adverts()
    assert adverts_digest(shown) == adverts_digest(reversed(shown))
    first = shown[0]
    others = {
        KeyAdvert("other", first.plan_digest, first.site, first.x25519_public, first.mlkem_public).digest(),
        KeyAdvert(first.study, b"q" * 32, first.site, first.x25519_public, first.mlkem_public).digest(),
        KeyAdvert(first.study, first.plan_digest, "zeta", first.x25519_public, first.mlkem_public).digest(),
        KeyAdvert(first.study, first.plan_digest, first.site, b"k" * 32, first.mlkem_public).digest(),
        KeyAdvert(first.study, first.plan_digest, first.site, first.x25519_public, b"k" * 1184).digest(),
        first.digest(),
    }
    assert len(others) == 6


def test_field_encoding_is_unambiguous() -> None:
    assert encode_fields("ab", "c") != encode_fields("a", "bc")
    assert encode_fields("a", "") != encode_fields("a")
    assert encode_fields(b"\x00" * 7 + b"\x01") == encode_fields(1)  # a number is its eight bytes: positions are fixed
    assert encode_fields(1, 2) != encode_fields(2, 1)
