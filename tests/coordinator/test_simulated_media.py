"""Studies of images and sequences are simulated on made-up ones, whatever the network."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from coordinator.client.simulated_media import made_up_masks, made_up_media
from coordinator.client.simulated_patients import from_tables, synthetic
from coordinator.client.simulation import SimulationRefused
from coordinator.client.spec_file import SpecFile, load_spec
from coordinator.client.utility_curve import make_curve
from protocol.media import ImageInput, SequenceChannel, SequenceInput
from site_agent.cohort.images import encode_image
from tests.simulator.federation import study_spec

torch.set_num_threads(1)
TRAINING = {"rounds": 2, "sampling_rate": 0.5, "clip": 0.25, "learning_rate": 2.0}

MEDIA = {
    "image": "image: {name: film, channels: 1, height: 8, width: 8, low: 0, high: 1, center: 0.5, scale: 0.25}\n",
    "sequence": "sequence: {name: vitals, length: 8, interval: 60, channels: [{name: pulse, minimum: 20, maximum: 250, "
    "center: 80, scale: 20}]}\n",
}
NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("image", {"architecture": "cnn", "widths": [4]}),
    ("image", {"architecture": "resnet", "widths": [4, 8], "blocks": 1}),
    ("image", {"architecture": "unet", "widths": [4, 8]}),
    ("image", {"architecture": "transformer", "patch": 4, "width": 8, "heads": 2, "layers": 1, "feedforward": 8}),
    ("sequence", {"architecture": "cnn_1d", "widths": [4], "kernel": 3}),
    ("sequence", {"architecture": "gru", "hidden": 4}),
    ("sequence", {"architecture": "transformer", "patch": 2, "width": 8, "heads": 2, "layers": 1, "feedforward": 8}),
]


@pytest.mark.parametrize(
    ("kind", "model"), NETWORKS, ids=[f"{model['architecture']}-{kind}" for kind, model in NETWORKS]
)
def test_networks_are_simulated_on_made_up_images_and_sequences(
    tmp_path: Path, kind: str, model: dict[str, Any]
) -> None:
    masks = model["architecture"] == "unet"
    outcome = "role: mask}" if masks else "role: label, type: category, levels: [0, 1]}"
    label = "{name: spot, kind: mask}" if masks else '{name: sick, operator: "==", value: 1}'
    (tmp_path / "media.yaml").write_text(
        "dictionary: 1\nname: media\nfile: {patient_id: id}\ncolumns:\n- {name: id, role: patient_id}\n"
        f"- {{name: record, role: file}}\n- {{name: outcome, {outcome}\n{MEDIA[kind]}label: {label}\n"
    )
    made: dict[str, Any] = json.loads(study_spec(training=TRAINING).model_dump_json(exclude_none=True))
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**made, "dataset": {"dictionary": "media.yaml"}, "model": model}))
    file = load_spec(path)
    curve = make_curve(file.spec, synthetic(file.spec, 240), epsilons=(4.0,), seeds=1)
    for point in curve.points:
        (run,) = point.runs
        assert (run.failure, run.rounds) == (None, 2)
        assert run.weights is not None
        assert np.isfinite(run.weights).all()
        assert run.measured is not None
        assert 0 <= run.measured <= 1


def test_made_up_records_stay_within_what_an_encoded_record_can_be():
    image = ImageInput(name="film", channels=2, height=9, width=7, low=0, high=1, center=0.3, scale=0.2)
    pulse = SequenceChannel(name="pulse", minimum=0, maximum=1, center=0, scale=1)
    sequence = SequenceInput(
        name="vitals", channels=(pulse, pulse.model_copy(update={"name": "b"})), length=11, interval=1
    )
    for media, low, high in ((image, -1.5, 3.5), (sequence, -3, 3)):
        records, strength = made_up_media(media, 400, np.random.default_rng(1))
        assert (records.shape, records.dtype) == ((400, *media.shape), np.float32)
        assert records.min() >= low - 1e-6
        assert records.max() <= high + 1e-6
        assert np.corrcoef(records.reshape(400, -1).mean(1), strength)[0, 1] > 0.5
    records, masks = made_up_masks(image, 50, np.random.default_rng(1))
    assert set(np.unique(masks)) == {0, 1}
    inside = masks[:, np.newaxis] * np.ones((1, 2, 1, 1))
    assert records[inside > 0].mean() > records[inside == 0].mean() + 1.0


@pytest.mark.parametrize(
    ("label", "columns", "model", "headline"),
    [
        (
            "{name: ejection, kind: number, center: 50, scale: 12}",
            "- {name: ef, role: label, type: number, minimum: 5, maximum: 90}",
            {"architecture": "cnn", "widths": [4], "loss": "squared"},
            "regression",
        ),
        (
            '{name: death, operator: "==", value: 1, edges: [12, 24]}',
            "- {name: dead, role: label, type: category, levels: [0, 1]}\n"
            "- {name: months, role: time, type: number, minimum: 0, maximum: 99}",
            {"architecture": "cnn", "widths": [4], "loss": "hazard", "intervals": 2},
            "survival",
        ),
    ],
    ids=["number", "survival"],
)
def test_networks_learn_numbers_and_times_to_an_event(
    tmp_path: Path, label: str, columns: str, model: dict[str, Any], headline: str
) -> None:
    (tmp_path / "media.yaml").write_text(
        "dictionary: 1\nname: media\nfile: {patient_id: id}\ncolumns:\n- {name: id, role: patient_id}\n"
        f"- {{name: record, role: file}}\n{columns}\n{MEDIA['image']}label: {label}\n"
    )
    made: dict[str, Any] = json.loads(study_spec(training=TRAINING).model_dump_json(exclude_none=True))
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**made, "dataset": {"dictionary": "media.yaml"}, "model": model}))
    file = load_spec(path)
    curve = make_curve(file.spec, synthetic(file.spec, 240), epsilons=(4.0,), seeds=1)
    for point in curve.points:
        (run,) = point.runs
        assert run.failure is None
        assert run.measured is not None
        assert run.report is not None
        assert run.report.kind == headline


def media_study(folder: Path, kind: str, label: str, outcome: str) -> SpecFile:
    (folder / "media.yaml").write_text(
        "dictionary: 1\nname: media\nfile: {patient_id: id}\ncolumns:\n- {name: id, role: patient_id}\n"
        f"- {{name: record, role: file}}\n- {{name: outcome, {outcome}}}\n{MEDIA[kind]}label: {label}\n"
    )
    made: dict[str, Any] = json.loads(study_spec(training=TRAINING).model_dump_json(exclude_none=True))
    model = next(
        model for of, model in NETWORKS if of == kind and (model["architecture"] == "unet") == ("mask" in label)
    )
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**made, "dataset": {"dictionary": "media.yaml"}, "model": model}))
    return load_spec(path)


RULE = ('{name: sick, operator: "==", value: 1}', "role: label, type: category, levels: [0, 1]")
MASK = ("{name: spot, kind: mask}", "role: mask")


def test_own_images_are_encoded_as_a_site_encodes_their_files(tmp_path: Path) -> None:
    file = media_study(tmp_path, "image", *RULE)
    random = np.random.default_rng(1)
    x = random.random((300, 1, 8, 8))
    patient = np.array([f"p{number % 240}" for number in range(300)])
    y = np.array([int(name[1:]) % 2 for name in patient])
    np.savez(tmp_path / "own.npz", x=x, y=y, patient=patient)
    source = from_tables(file, [str(tmp_path / "own.npz")])
    assert sum(patients for patients, _ in source.counts.values()) == 240
    cohorts = source.sites(0).values()
    together = np.concatenate([group.x for cohort in cohorts for group in (cohort.training, cohort.held_out)])
    image = file.spec.dataset.image
    assert image is not None
    out = io.BytesIO()
    np.save(out, x[0])
    record = encode_image(out.getvalue(), image)
    assert min(float(np.abs(other - record).max()) for other in together) < 1e-6
    assert len(together) == 300
    curve = make_curve(file.spec, source, epsilons=(4.0,), seeds=1)
    assert curve.points[0].runs[0].failure is None


def test_own_masks_and_sequences_are_taken(tmp_path: Path) -> None:
    for kind, rule, x, y in (
        ("image", MASK, np.full((240, 1, 8, 8), 0.5), np.ones((240, 8, 8), dtype=bool)),
        ("sequence", RULE, np.full((240, 1, 8), 80.0), np.arange(240) % 2),
    ):
        folder = tmp_path / kind
        folder.mkdir()
        np.savez(folder / "own.npz", x=x, y=y, patient=np.arange(240))
        file = media_study(folder, kind, *rule)
        cohort = next(iter(from_tables(file, [str(folder / "own.npz")]).sites(0).values()))
        assert cohort.training.y.shape[1:] == y.shape[1:]
        assert np.abs(cohort.training.x).max() < 1e-6  # 0.5 and 80 are the centres


GOOD = {"x": np.zeros((60, 1, 8)) + 80, "y": np.arange(60) % 2, "patient": np.arange(60)}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"x": np.zeros((60, 1, 9))}, "array x"),
        ({"x": np.full((60, 1, 8), np.nan)}, "array x"),
        ({"x": np.full((60, 1, 8), 1.0)}, "array x"),
        ({"y": np.arange(60)}, "array y"),
        ({"y": np.zeros((60, 1))}, "array y"),
        ({"patient": np.zeros(60)}, "array patient"),
        ({"patient": np.arange(59)}, "array patient"),
        ({"x": np.zeros((0, 1, 8)), "y": np.zeros(0), "patient": np.zeros(0, dtype=int)}, "no records"),
        ({"y": np.array([{}] * 60, dtype=object)}, "no .npz file"),
        ({"y": None}, "no .npz file"),
    ],
)
def test_own_arrays_that_do_not_fit_are_refused_by_name(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    file = media_study(tmp_path, "sequence", *RULE)
    arrays = {name: array for name, array in {**GOOD, **changed}.items() if array is not None}
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(SimulationRefused, match=told):
        from_tables(file, [str(tmp_path / "own.npz")])


def test_own_arrays_in_no_archive_are_refused(tmp_path: Path) -> None:
    file = media_study(tmp_path, "sequence", *RULE)
    (tmp_path / "own.npz").write_bytes(b"x,y\n1,2\n")
    for name in ("own.npz", "absent.npz"):
        with pytest.raises(SimulationRefused, match="npz"):
            from_tables(file, [str(tmp_path / name)])
