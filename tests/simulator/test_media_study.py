"""Whole studies of images and of sequences: from the hospitals' files to a prediction for a new file."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from coordinator.database import reading, transaction
from coordinator.people.facts import Actor
from coordinator.people.repository import PersonRepository
from coordinator.people.states import AuthLevel
from coordinator.policy.active import active_policy
from coordinator.releases.build import model_files, subject_of
from coordinator.sites.repository import SiteRepository
from coordinator.sites.tables import SiteDataset
from coordinator.studies.control import approve_plan
from coordinator.studies.states import StudyState
from protocol.canonical import sha256_hex
from protocol.consent import PLAN_APPROVAL_TYPE
from protocol.dictionary import parse_dictionary
from protocol.envelope import seal
from protocol.evaluation import ClassificationReport, EvaluationReport, SegmentationReport, read_report
from protocol.release import EpsilonStatement
from protocol.study import StudySpec
from protocol.timestamp import timestamp
from site_agent.cohort.add import keep, prepare
from site_agent.releases.self_check import check
from site_agent.serving.predictor import Predictor
from site_agent.settings import SiteHome
from site_agent.training.worker import WorkerState
from site_agent.training.worker_client import WorkerClient
from tests.simulator import invariants
from tests.simulator.federation import NAMES, Federation, SimulatedSite, build_federation, study_spec

torch.set_num_threads(1)
PATIENTS = 120
HEAD = """\
dictionary: 1
name: {name}
file: {{patient_id: pid}}
columns:
  - {{name: pid, role: patient_id}}
  - {{name: record, role: file}}
  - {{name: finding, role: label, type: category, levels: [0, 1]}}
label: {{name: sick, operator: "==", value: 1}}
"""
FILMS = HEAD.format(name="films") + (
    "image: {name: film, channels: 1, height: 12, width: 12, low: 0, high: 255, center: 0.3, scale: 0.2}\n"
)
VITALS = HEAD.format(name="vitals") + (
    "sequence:\n  name: vitals\n  length: 12\n  interval: 60\n  channels:\n"
    "    - {name: pulse, minimum: 20, maximum: 250, center: 80, scale: 20}\n"
    "    - {name: spo2, minimum: 50, maximum: 100, center: 95, scale: 4, impute: 97}\n"
)


def film(sick: bool, random: np.random.Generator) -> bytes:
    """A noisy PNG, with a bright square somewhere if the patient is sick."""
    pixels = random.integers(40, 110, (12, 12))
    if sick:
        row, column = random.integers(0, 8, 2)
        pixels[row : row + 4, column : column + 4] += 130
    return png(pixels)


def outlined(random: np.random.Generator) -> tuple[bytes, bytes]:
    """A noisy film with a bright square, and its mask."""
    pixels, mask = random.integers(40, 110, (12, 12)), np.zeros((12, 12), dtype=np.uint8)
    row, column = random.integers(0, 8, 2)
    mask[row : row + 5, column : column + 5] = 255
    pixels[mask > 0] += 130
    return png(pixels), png(mask)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def vitals(sick: bool, random: np.random.Generator) -> bytes:
    """Measurements a minute, some missing; the pulse rises if the patient is sick."""
    lines = ["time,channel,value"]
    for minute in range(12):
        pulse = random.normal(80, 6) + (4 * minute if sick else 0)
        lines.append(f"{60 * minute},pulse,{pulse:.0f}")
        if random.random() < 0.6:
            lines.append(f"{60 * minute + 10},spo2,{min(100, random.normal(96, 1)):.0f}")
    return "\n".join(lines).encode()


OUTLINES = FILMS.replace(
    "- {name: finding, role: label, type: category, levels: [0, 1]}", "- {name: outline, role: mask}"
)
OUTLINES = OUTLINES.replace('{name: sick, operator: "==", value: 1}', "{name: square, kind: mask}")
OUTLINES = OUTLINES.replace("name: films", "name: outlines")
Made = Callable[[bool, np.random.Generator], bytes]


class WorkerHere(WorkerClient):
    """The worker's own code in this process; only the pipes between are left out."""

    def __init__(self, home: SiteHome) -> None:
        super().__init__(home, gpu=False)
        self._state = WorkerState(home.path, gpu=False)
        self.noisy_steps = 0
        self.returned: dict[str, list[np.ndarray]] = defaultdict(list)

    def _ask(self, header: dict[str, Any], body: bytes, *, length: int, seconds: float) -> bytearray:
        result = bytearray(self._state.answer(header, bytearray(body)))
        assert len(result) == 8 * length
        if header["op"] != "open":
            self.noisy_steps += 1
            self.returned[sha256_hex(body)].append(np.frombuffer(result, dtype="<f8").copy())
        return result


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return build_federation(tmp_path_factory.mktemp("federation"))


def add_data(federation: Federation, site: SimulatedSite, dictionary: str, make: Made, seed: int) -> None:
    """The hospital's files through `datasets add`, and their registration."""
    described = parse_dictionary(dictionary.encode())
    folder = site.settings.home.path / described.schema.name
    folder.mkdir()
    random = np.random.default_rng(seed)
    with (folder / "manifest.csv").open("w") as manifest:
        manifest.write(f"pid,record,{'outline' if described.mask_column else 'finding'}\n")
        for patient in range(PATIENTS):
            sick = bool(random.random() < 0.5)
            if described.mask_column:
                data, mask = outlined(random)
                (folder / f"{patient}.mask").write_bytes(mask)
                outcome = f"{patient}.mask"
            else:
                data, outcome = make(sick, random), str(int(sick))
            (folder / f"{patient}.bin").write_bytes(data)
            manifest.write(f"{seed}-{patient},{patient}.bin,{outcome}\n")
    engine = site.store._engine
    prepared = prepare(engine, site.keys.secret, folder / "manifest.csv", described, None)
    row = keep(engine, site.settings.home, prepared, site.clock.now)
    site.snapshot = row.digest
    with transaction(federation.appliance.engine) as session:
        SiteRepository(session).put_dataset(
            SiteDataset(
                site=site.name,
                name=row.name,
                schema_digest=row.schema_digest,
                snapshot=row.digest,
                patients=row.patients,
                held_out=row.held_out,
                registered_at=timestamp(site.clock.now()),
            )
        )


def begin(federation: Federation, spec: StudySpec) -> None:
    """Propose, let the compliance officer approve epsilon 8, let every site consent, start."""
    assert federation.propose(spec).state is StudyState.HELD
    with reading(federation.appliance.engine) as session:
        carl = PersonRepository(session).get("carl")
    assert carl is not None
    document = {
        "study": spec.study, "plan_digest": federation.row(spec.study).plan_digest, "person": "carl", "role": carl.role,
        "decision": "approve", "signed_at": timestamp(federation.clock.now()),
    }  # fmt: skip
    signed = seal(PLAN_APPROVAL_TYPE, document, federation.approver_keys["carl"]).to_bytes()
    with transaction(federation.appliance.engine) as session:
        policy = active_policy(session, federation.appliance)
        approve_plan(session, federation.appliance, policy, Actor(carl, AuthLevel.KEY), spec.study, signed)
    for name in NAMES:
        federation.consent(spec.study, name)
    federation.start(spec.study)


def run(
    federation: Federation,
    monkeypatch: pytest.MonkeyPatch,
    dictionary: str,
    make: Made,
    model: dict[str, object],
    learning_rate: float,
) -> tuple[EvaluationReport, Predictor, str]:
    """The study from the hospitals' files to the installed model: its evaluation, its predictions, its card."""
    federation.reset()
    schema = parse_dictionary(dictionary.encode()).schema
    for number, site in enumerate(federation.sites.values()):
        add_data(federation, site, dictionary, make, number)
        monkeypatch.setattr(site, "worker", WorkerHere(site.settings.home))
        site.restart()
    spec = study_spec(
        f"{schema.name}-1",
        dataset=schema.model_dump(mode="json"),
        justified_columns=[*schema.columns, *schema.label.columns],
        model=model,
        privacy={"epsilon": 8.0, "delta": 1e-4, "retries": 1},
        training={"rounds": 15, "sampling_rate": 0.5, "clip": 1.0, "learning_rate": learning_rate, "momentum": 0.8},
    )
    begin(federation, spec)
    assert federation.driver(spec.study).run() is StudyState.CANDIDATE
    invariants.check(federation, spec.study, rounding=1e-5)
    candidate, plan = federation.candidate(spec.study), federation.plan(spec.study)
    assert candidate is not None
    report = read_report(candidate.evaluation)
    assert report.held_out == sum(site.held_out for site in plan.sites) == 4 * 30
    assert federation.charged(spec.study, NAMES[0]) == {False: 15, True: 1}
    statement = EpsilonStatement.model_validate_json(candidate.epsilon)
    files = model_files(plan, candidate.weights, statement, report, intended_use="test", use_mode="research")
    subject = subject_of("r-1", plan, sha256_hex(b"plan"), files, statement, report, intended_use="test",
                         use_mode="research")  # fmt: skip
    assert check(subject, files["model.safetensors"], files["model.onnx"]) < 1e-5
    return report, Predictor(files["model.onnx"], subject), files["model_card.md"].decode()


@pytest.mark.parametrize(
    ("dictionary", "make", "model", "learning_rate", "told"),
    [
        (FILMS, film, {"architecture": "cnn", "widths": [8, 8]}, 0.5, "1 x 12 x 12"),
        (VITALS, vitals, {"architecture": "gru", "hidden": 6}, 1.0, "| pulse |"),
    ],
    ids=["images", "sequences"],
)
def test_a_study_runs_from_files_to_a_prediction(
    federation: Federation,
    monkeypatch: pytest.MonkeyPatch,
    dictionary: str,
    make: Made,
    model: dict[str, object],
    learning_rate: float,
    told: str,
) -> None:
    report, predictor, card = run(federation, monkeypatch, dictionary, make, model, learning_rate)
    assert isinstance(report, ClassificationReport)
    random = np.random.default_rng(99)
    sick = random.random(150) < 0.5
    scores = [predictor.predict_file(make(bool(one), random)) for one in sick]
    assert roc_auc_score(sick, scores) > 0.75
    assert str(model["architecture"]) in card
    assert told in card


def test_a_study_of_masks_runs_from_files_to_a_mask(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"architecture": "unet", "widths": [4, 8]}
    report, predictor, card = run(federation, monkeypatch, OUTLINES, film, model, 1.0)
    assert isinstance(report, SegmentationReport)
    assert "For each pixel the probability that it shows `square`" in card
    random = np.random.default_rng(99)
    found, drawn = [], []
    for _ in range(30):
        data, mask = outlined(random)
        found.append(predictor.predict_file(data))
        drawn.append(np.asarray(Image.open(io.BytesIO(mask))) > 0)
    assert np.array(found).shape == (30, 12, 12)
    assert roc_auc_score(np.array(drawn).ravel(), np.array(found).ravel()) > 0.8
