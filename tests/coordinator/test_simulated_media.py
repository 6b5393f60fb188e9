"""Studies of images and sequences are simulated on made-up ones, whatever the network."""

from __future__ import annotations

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
from coordinator.client.spec_file import load_spec
from coordinator.client.utility_curve import make_curve
from protocol.media import ImageInput, SequenceChannel, SequenceInput
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
    with pytest.raises(SimulationRefused, match="can't be simulated yet"):
        from_tables(file, [str(tmp_path / "media.yaml")])


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
