"""The worker as a real process, over a snapshot of images and a network: the same sum as torch gives here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator.client.simulation import simulated_plan
from privacy.architectures.catalogue import network
from privacy.local.patients import part
from protocol.dictionary import parse_dictionary
from protocol.model import parameter_shapes
from site_agent.clock import system_clock
from site_agent.cohort.add import keep, prepare
from site_agent.cohort.snapshot import load
from site_agent.database import create_database
from site_agent.keystore import SiteKeys
from site_agent.settings import SiteHome
from site_agent.training.worker_client import WorkerClient
from tests.simulator.federation import NAMES, study_spec

pytestmark = pytest.mark.processes
torch.set_num_threads(1)
# The worker of this very tree, wherever the package is installed.
HERE = (
    sys.executable, "-P", "-c",
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
    "from site_agent.training.worker import main; main()",
)  # fmt: skip
DICTIONARY = """\
dictionary: 1
name: films
file: {patient_id: pid}
columns:
  - {name: pid, role: patient_id}
  - {name: film, role: file}
  - {name: finding, role: label, type: category, levels: [0, 1]}
image: {name: film, channels: 1, height: 8, width: 8, low: 0, high: 255, center: 0.5, scale: 0.25}
label: {name: sick, operator: "==", value: 1}
"""


def test_a_network_trains_and_is_evaluated_in_the_child(tmp_path: Path) -> None:
    home = SiteHome(tmp_path / "site")
    home.keys.mkdir(parents=True, mode=0o700)
    keys, engine = SiteKeys.generate(home.keys), create_database(home.database)
    random = np.random.default_rng(5)
    with (tmp_path / "manifest.csv").open("w") as manifest:
        manifest.write("pid,film,finding\n")
        for number in range(60):
            np.save(tmp_path / f"{number}.npy", random.integers(0, 256, (8, 8), dtype=np.uint8))
            manifest.write(f"p{number},{number}.npy,{number % 2}\n")
    described = parse_dictionary(DICTIONARY.encode())
    prepared = prepare(engine, keys.secret, tmp_path / "manifest.csv", described, None)
    snapshot = keep(engine, home, prepared, system_clock).digest
    engine.dispose()
    model = {"architecture": "resnet", "widths": [4, 8], "blocks": 1}
    spec = study_spec(
        dataset=described.schema.model_dump(mode="json"),
        justified_columns=["film", "finding"],
        model=model,
        training={"rounds": 2, "sampling_rate": 1.0, "clip": 0.1, "learning_rate": 1.0},
    )
    plan = simulated_plan(spec, dict.fromkeys(NAMES, (60, 15)))
    parts = [random.normal(scale=0.3, size=shape) for _, shape in parameter_shapes(plan.spec.model, (1, 8, 8))]
    parameters = np.concatenate([tensor.ravel() for tensor in parts])
    client = WorkerClient(home, gpu=False, command=HERE)
    try:
        client.open(plan, snapshot)
        body = parameters.astype("<f8").tobytes()
        found = np.frombuffer(client.compute(plan, "train", 1, body, noise_std=1e-12))
        histogram = np.frombuffer(client.compute(plan, "evaluate", 1, body, noise_std=None))
    finally:
        client.close()
    arrays = load(home, snapshot)
    cohort = part(arrays.x, arrays.y, arrays.patient, arrays.held_out)
    here = network("resnet", (1, 8, 8), plan.spec.model.model_dump(exclude={"architecture"}))
    wanted = here.gradient_sum(parameters, cohort.training, 0.1)
    assert np.linalg.norm(found - wanted) <= 1e-4 * np.linalg.norm(wanted)
    assert histogram.sum() == 15
