"""Images and sequences from a manifest's files: what is read, what is refused, and that no path is ever told."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from privacy.local.patients import part
from protocol.dataset import MaskLabel
from protocol.delimited import DatasetRefused
from protocol.dictionary import Dictionary, parse_dictionary
from protocol.media import ImageInput, SequenceChannel, SequenceInput
from site_agent.clock import system_clock
from site_agent.cohort.add import keep, prepare
from site_agent.cohort.assignment import hash_patient
from site_agent.cohort.images import encode_image, read_mask
from site_agent.cohort.record_files import BadFile, record_folder
from site_agent.cohort.sequences import encode_sequence
from site_agent.cohort.snapshot import arrange, draft, load
from site_agent.cohort.tabular import read_table
from site_agent.database import create_database
from site_agent.keystore import SiteKeys
from site_agent.settings import SiteHome

GREY = ImageInput(name="film", channels=1, height=8, width=6, low=0, high=255, center=0.5, scale=0.25)
COLOUR = GREY.model_copy(update={"channels": 3})
VITALS = SequenceInput(
    name="vitals",
    length=4,
    interval=60,
    channels=(
        SequenceChannel(name="pulse", minimum=20, maximum=250, center=80, scale=20, impute=80),
        SequenceChannel(name="spo2", minimum=50, maximum=100, center=96, scale=3, outside="missing"),
    ),
)
DICTIONARY = """\
dictionary: 1
name: films
file: {{patient_id: pid, max_rows_per_patient: 3}}
columns:
  - {{name: pid, role: patient_id}}
  - {{name: film, role: file, on_bad: {on_bad}}}
  - {{name: finding, role: label, type: category, levels: [0, 1], on_bad: {on_bad}}}
image: {{name: film, channels: 1, height: 8, width: 6, low: 0, high: 255, center: 0.5, scale: 0.25}}
label: {{name: sick, operator: "==", value: 1}}
"""


def dictionary(on_bad: str = "refuse") -> Dictionary:
    return parse_dictionary(DICTIONARY.format(on_bad=on_bad).encode())


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def picture(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


def dicom(stored: np.ndarray, syntax: str = ExplicitVRLittleEndian, **fields: object) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.PatientName = "Doe^Jane"
    dataset.Modality = "CT"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    if stored.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored.itemsize
    dataset.HighBit = 8 * stored.itemsize - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()
    for name, value in fields.items():
        setattr(dataset, name, value)
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


GRADIENT = np.arange(48, dtype=np.uint8).reshape(8, 6) * 5


def test_every_format_of_one_grey_image_gives_the_same_record():
    wanted = ((GRADIENT / 255 - 0.5) / 0.25)[np.newaxis].astype(np.float32)
    lossless = [npy(GRADIENT), npy(GRADIENT[np.newaxis].astype(np.float32)), picture(GRADIENT), dicom(GRADIENT)]
    for data in lossless:
        record = encode_image(data, GREY)
        assert record.dtype == np.float32
        np.testing.assert_allclose(record, wanted, atol=1e-6)
    np.testing.assert_allclose(encode_image(picture(GRADIENT, "JPEG", quality=100), GREY), wanted, atol=0.1)


def test_colours_come_as_three_channels():
    pixels = np.stack([GRADIENT, GRADIENT // 2, 255 - GRADIENT], axis=2)
    wanted = ((pixels / 255 - 0.5) / 0.25).transpose(2, 0, 1)
    for data in (picture(pixels), dicom(pixels), npy(pixels.transpose(2, 0, 1))):
        np.testing.assert_allclose(encode_image(data, COLOUR), wanted, atol=1e-6)


def test_hounsfield_units_come_from_slope_and_intercept_and_are_windowed():
    stored = np.full((8, 6), 1074, dtype=np.int16)
    stored[0, 0], stored[0, 1] = -32768, 32767
    ct = GREY.model_copy(update={"low": -150.0, "high": 250.0, "modality": "CT"})
    record = encode_image(dicom(stored, RescaleSlope=1, RescaleIntercept=-1024), ct)
    assert record[0, 1, 1] == pytest.approx((200 / 400 - 0.5) / 0.25)
    assert record[0, 0, :2].tolist() == [-2.0, 2.0]


def test_a_film_whose_low_values_are_bright_is_turned_round():
    plain, turned = encode_image(dicom(GRADIENT), GREY), dicom(GRADIENT, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(encode_image(turned, GREY), -plain, atol=1e-6)


def test_a_sixteen_bit_png_keeps_its_values():
    deep = GREY.model_copy(update={"high": 65535.0})
    record = encode_image(picture(GRADIENT.astype(np.uint16) * 257), deep)
    np.testing.assert_allclose(record, encode_image(picture(GRADIENT), GREY), atol=1e-6)


def test_another_size_is_scaled_only_where_the_schema_says_so():
    large = np.kron(GRADIENT, np.ones((4, 4), dtype=np.uint8))
    with pytest.raises(BadFile, match="another size"):
        encode_image(picture(large), GREY)
    fitted = encode_image(picture(large), GREY.model_copy(update={"fit": "resize"}))
    assert fitted.shape == (1, 8, 6)
    np.testing.assert_allclose(fitted[0, 2:-2, 2:-2], encode_image(picture(GRADIENT), GREY)[0, 2:-2, 2:-2], atol=0.1)


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels in some hundred bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def huge_npy() -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (lambda: bomb(5000), "more than"),
        (lambda: bomb(30000), "not a readable PNG"),
        (lambda: huge_npy(), "another length"),
        (lambda: npy(np.array([{"a": 1}], dtype=object)), "another kind"),
        (lambda: npy(np.array([["a"]])), "another kind"),
        (lambda: npy(np.zeros((1, 8, 6)))[:-8], "another length"),
        (lambda: npy(np.full((8, 6), np.nan)), "no finite number"),
        (lambda: b"\x93NUMPY\x01\x00\xff\xff{", "not a readable .npy"),
        (lambda: picture(GRADIENT)[:60], "not a readable PNG"),
        (lambda: picture(np.stack([GRADIENT] * 3, axis=2)), "number of channels"),
        (lambda: picture(np.stack([GRADIENT] * 4, axis=2)), "colour mode"),
        (lambda: b"GIF89a" + b"\0" * 50, "not an .npy, PNG, JPEG or DICOM"),
        (lambda: b"%PDF-1.7", "not an .npy, PNG, JPEG or DICOM"),
        (lambda: dicom(GRADIENT)[:-10], "not a readable DICOM"),
        (lambda: dicom(GRADIENT, Rows=60000, Columns=60000), "pixels"),
        (lambda: dicom(GRADIENT, NumberOfFrames=2), "several frames"),
        (lambda: dicom(GRADIENT, RescaleSlope=0), "rescale slope"),
        (lambda: dicom(GRADIENT, DeflatedExplicitVRLittleEndian), "compressed form"),
    ],
)
def test_a_bad_image_is_refused_with_a_fixed_reason(data, told):
    with pytest.raises(BadFile, match=told) as caught:
        encode_image(data(), GREY)
    assert "Doe" not in caught.value.reason


def test_another_modality_is_refused():
    with pytest.raises(BadFile, match="modality"):
        encode_image(dicom(GRADIENT), GREY.model_copy(update={"modality": "DX"}))


def test_measurements_fall_on_the_grid_and_are_carried_forward():
    text = (
        "time,channel,value\n0,pulse,100\n59,pulse,120\n185,pulse,60\n5,spo2,90\n70,spo2,20\n70,spo2,\n9999,pulse,1\n"
    )
    record, absent = encode_sequence(text.encode(), VITALS)
    assert absent == []
    np.testing.assert_allclose(record[0], [(110 - 80) / 20, 1.5, 1.5, -1.0])
    np.testing.assert_allclose(record[1], [-2.0] * 4)


def test_an_array_on_the_grid_is_the_same_record():
    steps = np.array([[np.nan, 100, np.nan, 250], [96, np.nan, 30, 99]])
    record, _ = encode_sequence(npy(steps), VITALS)
    np.testing.assert_allclose(record, [[0, 1, 1, 3], [0, 0, 0, 1]])


def test_a_channel_without_any_measurement_takes_its_constant_and_is_counted():
    record, absent = encode_sequence(b"time,channel,value\n0,spo2,96\n", VITALS)
    assert absent == ["pulse"]
    assert record[0].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("time,channel,value\n0,pulse,300\n0,spo2,96", "pulse has a value outside"),
        ("time,channel,value\n0,pulse,80\n70,spo2,96", "spo2 begins without"),
        ("time,value,channel\n", "first line"),
        ("time,channel,value\n-1,pulse,80", "negative"),
        ("time,channel,value\nnan,pulse,80", "no finite"),
        ("time,channel,value\n0,pulse,eighty", "no finite"),
        ("time,channel,value\n0,temperature,37", "channel that the dictionary"),
        ("time,channel,value\n0,pulse", "does not hold"),
        ('time,channel,value\n0,pulse,"8', "readable CSV"),
        ("", "first line"),
    ],
)
def test_a_bad_sequence_is_refused_with_a_fixed_reason(text, told):
    with pytest.raises(BadFile, match=told) as caught:
        encode_sequence(text.encode(), VITALS)
    assert "eighty" not in caught.value.reason
    assert "37" not in caught.value.reason


@pytest.mark.parametrize("steps", [np.zeros((4, 2)), np.zeros((2, 5)), np.full((2, 4), np.inf)])
def test_a_bad_array_of_steps_is_refused(steps):
    with pytest.raises(BadFile):
        encode_sequence(npy(steps), VITALS)


# Folders


def test_a_file_below_the_folder_is_read_and_no_other(tmp_path: Path):
    folder, inner = tmp_path / "set", tmp_path / "set" / "a"
    inner.mkdir(parents=True)
    (inner / "x.npy").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "empty").touch()
    os.mkfifo(folder / "pipe")
    with record_folder(folder) as files:
        assert files.read("a/x.npy") == b"inside"
        for named in (
            "../secret", "a/../../secret", str(tmp_path / "secret"), "/etc/passwd", "link", "linked/secret", "a",
            "pipe", "absent", "", ".", "a//x.npy", "./a/x.npy", "a\0b", "x" * 2000, "empty",
        ):  # fmt: skip
            with pytest.raises(BadFile) as caught:
                files.read(named)
            assert "secret" not in caught.value.reason
        with pytest.raises(BadFile, match="earlier row"):
            files.read("a/x.npy")


def test_a_folder_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(DatasetRefused, match="no folder"), record_folder(tmp_path / "absent"):
        pass


# Data sets


def write_films(folder: Path, patients: int, *, records: int = 1, bad: tuple[int, ...] = ()) -> Path:
    """A manifest of `records` films for each patient, in turns; those in `bad` (row numbers from 1) are no images."""
    random = np.random.default_rng(3)
    films = folder / "films"
    films.mkdir(parents=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["pid", "film", "finding"])
        row = 0
        for record in range(records):
            for patient in range(patients):
                row += 1
                name = f"doe-{patient}-{record}.png"
                pixels = np.full((8, 6), patient, dtype=np.uint8) + random.integers(0, 5, (8, 6), dtype=np.uint8)
                (films / name).write_bytes(b"no image" if row in bad else picture(pixels))
                writer.writerow([f"p{patient}", f"films/{name}", patient % 2])
    return folder / "manifest.csv"


@pytest.fixture
def site(tmp_path: Path):
    home = SiteHome(tmp_path / "site")
    home.keys.mkdir(parents=True, mode=0o700)
    keys = SiteKeys.generate(home.keys)
    engine = create_database(home.database)
    yield home, keys, engine
    engine.dispose()


def test_a_manifest_becomes_a_snapshot_ordered_by_role_and_patient(site, tmp_path: Path):
    home, keys, engine = site
    manifest = write_films(tmp_path / "set", 50, records=2)
    told: list[tuple[int, int]] = []
    prepared = prepare(engine, keys.secret, manifest, dictionary(), None, told=lambda done, of: told.append((done, of)))
    keep(engine, home, prepared, system_clock)
    assert told[-1] == (100, 100)
    arrays = load(home, prepared.snapshot.digest)
    assert (arrays.x.shape, arrays.x.dtype) == ((100, 1, 8, 6), np.float32)
    assert arrays.held_out.sum() == 13
    roles = arrays.held_out[arrays.patient]
    assert roles.tolist() == sorted(roles.tolist())
    for group in (arrays.patient[~roles], arrays.patient[roles]):
        assert group.tolist() == sorted(group.tolist())
    # Each record still lies with its patient and label: the pixels tell the patient's number.
    grey = (arrays.x[:, 0] * 0.25 + 0.5) * 255
    np.testing.assert_allclose(grey.min(axis=(1, 2)), arrays.patient, atol=2.5)
    assert arrays.y.tolist() == (arrays.patient % 2).tolist()
    assert prepared.quality.to_document()["records"] == 100


def test_the_digest_changes_with_one_pixel(site, tmp_path: Path):
    _, keys, engine = site
    manifest = write_films(tmp_path / "set", 20)
    first = prepare(engine, keys.secret, manifest, dictionary(), None).snapshot.digest
    assert prepare(engine, keys.secret, manifest, dictionary(), None).snapshot.digest == first
    film = tmp_path / "set" / "films" / "doe-3-0.png"
    film.write_bytes(picture(np.full((8, 6), 9, dtype=np.uint8)))
    assert prepare(engine, keys.secret, manifest, dictionary(), None).snapshot.digest != first


def test_bad_files_are_named_by_row_and_column_and_never_by_their_path(site, tmp_path: Path):
    _, keys, engine = site
    manifest = write_films(tmp_path / "set", 30, bad=(4, 9))
    with pytest.raises(DatasetRefused) as caught:
        prepare(engine, keys.secret, manifest, dictionary(), None)
    text = str(caught.value)
    assert "manifest.csv has 2 problems" in text
    assert "row 4, column film: not an .npy, PNG, JPEG or DICOM file" in text
    assert "row 9, column film" in text
    assert "doe" not in text
    assert "films" not in text


def test_bad_files_are_dropped_where_the_dictionary_says_so_and_counted(site, tmp_path: Path):
    home, keys, engine = site
    manifest = write_films(tmp_path / "set", 30, bad=(4, 9))
    prepared = prepare(engine, keys.secret, manifest, dictionary("drop"), None)
    quality = prepared.quality
    assert (quality.records, quality.patients, quality.rows_dropped) == (28, 28, 2)
    assert quality.dropped == (("film", "not an .npy, PNG, JPEG or DICOM file", 2),)
    keep(engine, home, prepared, system_clock)
    assert load(home, prepared.snapshot.digest).x.shape == (28, 1, 8, 6)


def test_contradicting_labels_drop_the_patients_files_too(site, tmp_path: Path):
    _, keys, engine = site
    manifest = write_films(tmp_path / "set", 30, records=2)
    lines = manifest.read_text().splitlines()
    lines[1] = lines[1][:-1] + "1"  # p0's first film says 1, its second 0
    manifest.write_text("\n".join(lines) + "\n")
    prepared = prepare(engine, keys.secret, manifest, dictionary("drop"), None)
    assert (prepared.snapshot.patients, len(prepared.snapshot.arrays.x)) == (29, 58)


def test_a_manifest_that_would_fill_the_memory_is_refused_before_a_file_is_read(site, tmp_path: Path):
    _, keys, engine = site
    text = DICTIONARY.format(on_bad="refuse").replace("height: 8, width: 6", "height: 2048, width: 2048")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("pid,film,finding\n" + "".join(f"p{row},absent{row},0\n" for row in range(1100)))
    with pytest.raises(DatasetRefused, match="more than 16 GiB"):
        prepare(engine, keys.secret, manifest, parse_dictionary(text.encode()), None)


def test_adding_and_loading_hold_the_images_once(site, tmp_path: Path):
    home, keys, engine = site
    text = DICTIONARY.format(on_bad="refuse").replace("height: 8, width: 6", "height: 256, width: 256")
    described = parse_dictionary(text.encode())
    folder = tmp_path / "set"
    folder.mkdir()
    with (folder / "manifest.csv").open("w") as file:
        file.write("pid,film,finding\n")
        for row in range(120):
            (folder / f"{row}.npy").write_bytes(npy(np.full((256, 256), row, dtype=np.uint8)))
            file.write(f"p{row},{row}.npy,{row % 2}\n")
    size = 120 * 256 * 256 * 4
    tracemalloc.start()
    try:
        prepared = prepare(engine, keys.secret, folder / "manifest.csv", described, None)
        keep(engine, home, prepared, system_clock)
        adding = tracemalloc.get_traced_memory()[1]
        digest = prepared.snapshot.digest
        del prepared
        tracemalloc.reset_peak()
        load(home, digest)
        loading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert adding < 1.6 * size
    assert loading < 1.6 * size


def test_records_are_arranged_in_place():
    random = np.random.default_rng(1)
    for count in (0, 1, 2, 50):
        rows = random.normal(size=(count, 2, 3))
        order = random.permutation(count)
        wanted = rows[order]
        arrange(rows, order)
        assert (rows == wanted).all()


def test_a_draft_of_a_manifest_needs_its_media(tmp_path: Path):
    """Without the files the table is of width 0: it can't pass for a data set."""
    manifest = write_films(tmp_path / "set", 20)
    table = read_table(manifest, dictionary(), lambda who: hash_patient(b"s" * 32, who))
    assert table.width == 0
    assert len(table.x) == 0
    with pytest.raises(ValueError, match="reshape"):
        draft("films", dictionary().schema, table, b"s" * 32, {})


# Masks

MASKED = """\
dictionary: 1
name: outlines
file: {patient_id: pid}
columns:
  - {name: pid, role: patient_id}
  - {name: film, role: file}
  - {name: outline, role: mask, on_bad: drop}
image: {name: film, channels: 1, height: 8, width: 6, low: 0, high: 255, center: 0.5, scale: 0.25}
label: {name: nodule, kind: mask}
"""
NODULE = MaskLabel(kind="mask", name="nodule", column="outline")


def test_a_mask_is_where_the_rule_holds():
    drawn = np.zeros((8, 6), dtype=np.uint8)
    drawn[2:4, 1:3] = 1
    drawn[5, 5] = 2
    for data in (picture(drawn), npy(drawn), dicom(drawn)):
        mask = read_mask(data, GREY, NODULE)
        assert mask.dtype == np.uint8
        assert (mask == (drawn > 0)).all()
    only = NODULE.model_copy(update={"operator": "==", "value": 2.0})
    assert read_mask(picture(drawn), GREY, only).sum() == 1
    with pytest.raises(BadFile, match="another size"):
        read_mask(picture(drawn[:4]), GREY, NODULE)
    large = picture(np.kron(drawn, np.ones((3, 3), dtype=np.uint8)))
    assert (read_mask(large, GREY.model_copy(update={"fit": "resize"}), NODULE) == (drawn > 0)).all()


def test_masks_stay_with_their_images_and_bad_ones_drop_the_row(site, tmp_path: Path):
    home, keys, engine = site
    folder = tmp_path / "set"
    folder.mkdir()
    with (folder / "manifest.csv").open("w") as manifest:
        manifest.write("pid,film,outline\n")
        for number in range(50):
            pixels = np.full((8, 6), number, dtype=np.uint8)
            mask = np.zeros((8, 6), dtype=np.uint8)
            mask.flat[number % 48] = 1
            (folder / f"{number}.png").write_bytes(picture(pixels))
            (folder / f"{number}.mask").write_bytes(b"none" if number == 7 else picture(mask))
            manifest.write(f"p{number},{number}.png,{number}.mask\n")
    described = parse_dictionary(MASKED.encode())
    prepared = prepare(engine, keys.secret, folder / "manifest.csv", described, None)
    assert prepared.quality.dropped == (("outline", "not an .npy, PNG, JPEG or DICOM file", 1),)
    assert (prepared.quality.records, prepared.quality.positive_records) == (49, 49)
    keep(engine, home, prepared, system_clock)
    arrays = load(home, prepared.snapshot.digest)
    assert (arrays.y.shape, arrays.y.dtype) == ((49, 8, 6), np.uint8)
    numbers = np.rint((arrays.x[:, 0, 0, 0] * 0.25 + 0.5) * 255).astype(int)
    assert sorted(numbers) == [number for number in range(50) if number != 7]
    assert [int(np.flatnonzero(mask)[0]) for mask in arrays.y] == [number % 48 for number in numbers]


def test_the_worker_parts_a_snapshot_of_images_without_copying_it(site, tmp_path: Path):
    home, keys, engine = site
    manifest = write_films(tmp_path / "set", 50, records=2)
    prepared = prepare(engine, keys.secret, manifest, dictionary(), None)
    keep(engine, home, prepared, system_clock)
    arrays = load(home, prepared.snapshot.digest)
    cohort = part(arrays.x, arrays.y, arrays.patient, arrays.held_out)
    for group in (cohort.training, cohort.held_out):
        assert np.shares_memory(group.x, arrays.x)
        assert group.patient.tolist() == sorted(group.patient.tolist())
        assert set(group.patient) == set(range(group.patients))
    assert len(cohort.training.x) + len(cohort.held_out.x) == 100


@pytest.mark.parametrize("kind", ["npy", "png", "jpeg", "dicom", "csv", "steps"])
def test_no_damage_to_a_file_is_anything_but_a_bad_file(kind):
    """Bytes changed, cut out and repeated, 150 times: a record of the right shape or a fixed reason, never an error."""
    random = np.random.default_rng(11)
    seeds = {
        "npy": npy(GRADIENT),
        "png": picture(GRADIENT),
        "jpeg": picture(GRADIENT, "JPEG"),
        "dicom": dicom(GRADIENT),
        "csv": b"time,channel,value\n0,pulse,100\n59,pulse,120\n185,pulse,60\n5,spo2,90\n",
        "steps": npy(np.array([[np.nan, 100, np.nan, 250], [96, np.nan, 30, 99]])),
    }
    for _ in range(150):
        data = bytearray(seeds[kind])
        for _ in range(random.integers(1, 5)):
            at = int(random.integers(0, len(data)))
            match random.integers(0, 4):
                case 0:
                    data[at] = random.integers(0, 256)
                case 1:
                    del data[at : at + int(random.integers(1, 20))]
                case 2:
                    data[at:at] = data[at : at + int(random.integers(1, 20))]
                case _:
                    data[at : at + 4] = b"\xff\xff\xff\x7f"
            data = data or bytearray(b"x")
        with contextlib.suppress(BadFile):
            if kind in ("csv", "steps"):
                record, _ = encode_sequence(bytes(data), VITALS)
                assert record.shape == VITALS.shape
            else:
                record = encode_image(bytes(data), GREY)
                assert record.shape == GREY.shape
            assert np.isfinite(record).all()
