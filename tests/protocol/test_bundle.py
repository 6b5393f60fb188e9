"""The bundle's container accepts its one form and nothing else."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.bundle import header, pack, unpack
from protocol.errors import Malformed

NAMES = ("a.json", "b.bin")


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_round_trip(first: bytes, second: bytes) -> None:
    files = {"a.json": first, "b.bin": second}
    assert unpack(pack(files, NAMES), NAMES) == files


@given(st.binary(max_size=2000), st.integers(0, 20000))
def test_it_is_the_tar_that_tar_writes(first: bytes, length: int) -> None:
    files = {"a.json": first, "b.bin": bytes(length)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in NAMES:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(files[name]), 0o644, 0
            tar.addfile(member, io.BytesIO(files[name]))
    assert pack(files, NAMES) == out.getvalue()


@pytest.mark.parametrize("size", [-1, 8**11])
def test_a_size_that_a_header_cannot_say_is_refused(size: int) -> None:
    with pytest.raises(Malformed):
        header("a.json", size)


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_outside_the_contents_is_refused(position: int, flip: int) -> None:
    data = bytearray(pack({"a.json": b"x", "b.bin": b""}, NAMES))
    position %= len(data)
    data[position] ^= flip
    try:
        files = unpack(bytes(data), NAMES)
    except Malformed:
        return
    assert position == 512
    assert files["a.json"] != b"x"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_folders_and_devices_are_refused(kind: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("a.json")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(Malformed):
        unpack(out.getvalue(), NAMES)


@pytest.mark.parametrize("name", ["../a.json", "/a.json", "c.json"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(Malformed):
        unpack(pack({name: b"", "b.bin": b""}, (name, "b.bin")), NAMES)


def test_missing_and_extra_files_are_refused() -> None:
    with pytest.raises(Malformed):
        unpack(pack({"a.json": b""}, ("a.json",)), NAMES)
    with pytest.raises(Malformed):
        pack({"a.json": b"", "b.bin": b"", "c": b""}, NAMES)
    with pytest.raises(Malformed):
        unpack(b"not a tar at all", NAMES)
