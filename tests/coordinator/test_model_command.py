"""`cloister model`: a torch.export file becomes data that a study names, or is refused with the remedy."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from coordinator.client.cli import app
from coordinator.client.spec_file import SpecInvalid, load_spec
from coordinator.rounds.optimiser import initial_point
from protocol.errors import CloisterError
from protocol.graph import ExportedGraph, read_graph
from tests.simulator.federation import SCHEMA, study_spec

torch.set_num_threads(1)
WIDTH = SCHEMA.width


class Normed(nn.Module):
    def __init__(self, norm: nn.Module, outputs: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 4), norm, nn.Tanh(), nn.Linear(4, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def saved(path: Path, model: nn.Module) -> Path:
    program = torch.export.export(model.eval(), (torch.zeros(1, WIDTH),))
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return saved(tmp_path_factory.mktemp("exported") / "model.pt2", Normed(nn.LayerNorm(4)))


def invoke(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["model", *map(str, arguments), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return json.loads(result.stdout)


def test_a_graph_is_packed_checked_and_named_by_a_study(exported: Path, tmp_path: Path) -> None:
    packed = invoke("pack", exported, "--out", tmp_path / "graph.json")
    assert packed["parameters"] == (WIDTH + 1) * 4 + 8 + 5
    assert packed["operators"] == {"layer_norm.default": 1, "linear.default": 2, "tanh.default": 1}
    assert invoke("check", tmp_path / "graph.json")["digest"] == packed["digest"]
    spec = study_spec().model_dump(mode="json")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**spec, "model": {"graph": "graph.json"}}))
    model = load_spec(tmp_path / "study.yaml").spec.model
    assert isinstance(model, ExportedGraph)
    # The first weights follow from the plan: the normalisation's scales at 1, biases at 0, matrices drawn.
    weights = initial_point(model, WIDTH, "sha256:" + "0" * 64).weights
    assert (weights != 0).sum() == WIDTH * 4 + 4 + 4
    with pytest.raises(CloisterError, match="exists"):
        invoke("pack", exported, "--out", tmp_path / "graph.json")


def test_the_file_s_own_weights_may_begin(exported: Path, tmp_path: Path) -> None:
    invoke("pack", exported, "--out", tmp_path / "graph.json", "--keep-weights")
    graph = read_graph((tmp_path / "graph.json").read_bytes())
    weights = initial_point(graph, WIDTH, "sha256:" + "0" * 64).weights
    torch.manual_seed(1)
    own = torch.cat([p.detach().flatten() for p in Normed(nn.LayerNorm(4)).parameters()]).numpy()
    np.testing.assert_array_equal(np.sort(weights), np.sort(own.astype(np.float64)))


def truncated(path: Path) -> bytes:
    return path.read_bytes()[:-500]


def without_end(path: Path) -> bytes:
    return path.read_bytes()[:3000]


def a_bomb(path: Path) -> bytes:
    del path
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/models/model.json", bytes(600 << 20))
    return out.getvalue()


@pytest.mark.parametrize("content", [truncated, without_end, a_bomb, lambda _: b"", lambda _: b"import os"])
def test_a_file_that_is_no_whole_export_writes_nothing(
    exported: Path, tmp_path: Path, content: Callable[[Path], bytes]
) -> None:
    bad = tmp_path / "bad.pt2"
    bad.write_bytes(content(exported))
    with pytest.raises(CloisterError) as refused:
        invoke("pack", bad, "--out", tmp_path / "graph.json")
    assert refused.value.remedy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pt2"]


def test_batch_normalisation_is_refused_with_what_to_use_instead(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt2", Normed(nn.BatchNorm1d(4)))
    with pytest.raises(CloisterError) as refused:
        invoke("pack", path, "--out", tmp_path / "graph.json")
    assert "batch_norm" in refused.value.message
    assert "GroupNorm" in refused.value.remedy


def test_an_outcome_that_is_none_and_a_missing_file_are_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(CloisterError, match="yes-no, survival, number"):
        invoke("pack", exported, "--out", tmp_path / "g.json", "--outcome", "banana")
    with pytest.raises(CloisterError, match="no regular file"):
        invoke("check", tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": "import os"}, "code"),
        ({"parameters": [[10**12]]}, "parameters"),
        ({"nodes": [{"operator": "os.system", "arguments": []}]}, "os.system"),
        ({"nodes": []}, "nodes"),
        ({"input": [0]}, "input"),
        ({"output": "x"}, "output"),
        ({"initial": "not base64!"}, "base64"),
    ],
)
def test_a_graph_changed_by_hand_is_refused_by_check_and_by_the_study(
    exported: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    invoke("pack", exported, "--out", tmp_path / "good.json")
    bad = {**json.loads((tmp_path / "good.json").read_bytes()), **change}
    (tmp_path / "graph.json").write_text(json.dumps(bad))
    with pytest.raises(CloisterError, match=message) as refused:
        invoke("check", tmp_path / "graph.json")
    assert refused.value.remedy
    spec = study_spec().model_dump(mode="json")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**spec, "model": {"graph": "graph.json"}}))
    with pytest.raises(SpecInvalid) as invalid:
        load_spec(tmp_path / "study.yaml")
    assert any(problem.field == "model.graph" for problem in invalid.value.problems)


def test_a_study_that_names_no_graph_says_so(tmp_path: Path) -> None:
    spec = study_spec().model_dump(mode="json")
    for model in ({"graph": "absent.json"}, {"graph": 3}, {"graph": "a.json", "hidden": [3]}):
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({**spec, "model": model}))
        with pytest.raises(SpecInvalid) as invalid:
            load_spec(tmp_path / "study.yaml")
        assert [problem.field.partition(".")[0] for problem in invalid.value.problems] == ["model"]
