"""For each format a few of the inputs that `packaging/fuzz/run.py` makes by the hundred thousand; and the fuzzer."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from random import Random

import pytest

sys.path.append(str(Path(__file__).parents[2] / "packaging" / "fuzz"))

from fuzzing import fuzz
from mutation import mutations
from target import Target
from targets import targets

from protocol.errors import Malformed

INPUTS = {"packs": 150, "audit bundles": 250, "release statements": 150, "papers": 250}


@pytest.mark.parametrize("name", sorted(targets()))
def test_a_changed_input_is_refused(name: str, tmp_path: Path) -> None:
    row = fuzz(name, targets()[name], INPUTS.get(name, 400), 20261123, tmp_path)
    assert (row["taken"], row["crashes"]) == (0, 0), row
    assert row["refused"] + row["not_taken"] == row["inputs"], row


def test_a_crash_and_a_changed_input_that_passes_are_told(tmp_path: Path) -> None:
    def read(data: bytes) -> bool:
        if data[:1] == b"a":
            raise Malformed("no", "no")
        if len(data) % 2:
            raise KeyError
        return True

    row = fuzz("made up", Target((b"abc",), (b"x",), read), 300, 1, tmp_path)
    assert row["taken"] > 0
    assert row["crashes"] > 0
    assert row["taken"] + row["crashes"] + row["refused"] == 300
    assert {path.name for path in tmp_path.iterdir()}


def test_the_same_seed_gives_the_same_inputs_and_never_a_good_one() -> None:
    first = list(islice(mutations([b"abc", b""], [b"w"], Random(5)), 500))
    assert first == list(islice(mutations([b"abc", b""], [b"w"], Random(5)), 500))
    assert not {b"abc", b""} & set(first)
