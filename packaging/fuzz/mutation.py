"""Changed copies of good inputs, from a seed: the same seed gives the same inputs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_BYTES = b"\x00\n\r\t \"'\\,.:;+-=/{}[]()<>&|!0129azAZ\x7f\x80\xc3\xff"
_NUMBERS = (b"0", b"-1", b"-0", b"1e999", b"NaN", b"9007199254740993", b"18446744073709551616", b"0" * 40, b"9" * 5000)


def mutations(seeds: Sequence[bytes], words: Sequence[bytes], chance: random.Random) -> Iterator[bytes]:
    """For ever: a seed with one to four changes, never one of the seeds. `words`: what the format is made of."""
    known = set(seeds)
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
            _change(data, seeds, words, chance)
        changed = bytes(data)
        if changed not in known:
            yield changed


def _change(data: bytearray, seeds: Sequence[bytes], words: Sequence[bytes], chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    length = min(chance.choice((1, 1, 2, 4, 8, 32, 256)), len(data) - at)
    match chance.randrange(10):
        case 0 | 1 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 2 if at < len(data):
            data[at] = chance.choice(_BYTES)
        case 3:
            del data[at : at + length]
        case 4:
            data[at:at] = data[at : at + length]
        case 5:
            data[at:at] = chance.randbytes(chance.choice((1, 2, 7, 64)))
        case 6:
            data[at : at + length] = chance.choice((*words, *_NUMBERS))
        case 7:
            other = chance.choice(seeds)
            start = chance.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + chance.randrange(1, 200)]
        case 8:
            del data[at:]
        case _ if data:
            other_at = chance.randrange(len(data))
            piece = bytes(data[other_at : other_at + length])
            data[at : at + length] = piece
