"""The GPU bench refuses to run without a card, in one message; its contestants' steps run wherever torch does."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

SCRIPT = Path(__file__).resolve().parents[2] / "packaging" / "bench_gpu.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "error: torch finds no CUDA device on this machine"
    assert done.stderr.splitlines()[1].startswith("remedy: ")


def test_plain_and_private_steps_move_the_parameters(bench: ModuleType) -> None:
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, bench.CLASSES)))
        return made[-1]

    contest = bench.Contest(make, batch=6, micro_batch=4, device="cpu", pixels=8)
    with contextlib.ExitStack() as threads:
        for build in (contest.plain, lambda: contest.private(threads)):
            step = build()
            before = [p.detach().clone() for p in made[-1].parameters()]
            step()
            assert all(not torch.equal(old, new) for old, new in zip(before, made[-1].parameters(), strict=True))
