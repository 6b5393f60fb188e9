"""The measurement of checks and shutting out runs as the docs say, and the docs hold what it prints."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rollback(monkeypatch_module: pytest.MonkeyPatch) -> ModuleType:
    import importlib.util

    monkeypatch_module.setattr(sys, "path", [str(ROOT / "packaging" / "audit"), *sys.path])
    spec = importlib.util.spec_from_file_location("rollback", ROOT / "packaging" / "audit" / "rollback.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rollback"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def monkeypatch_module():  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_a_check_catches_what_destroys_the_model_and_leaves_a_good_one_alone(rollback: ModuleType) -> None:
    rows = {(who.split(" ")[0], name): (going_on, late) for who, name, going_on, late in rollback.measure(2)}
    honest, _ = rows["nobody", "none"]
    assert not any(outcome.tripped for outcome in honest)
    assert min(outcome.auc for outcome in honest) > 0.9
    going_on, late = rows["clinic-a", "10 times beyond the clip"]
    assert all(outcome.undone == 40 and outcome.auc < 0.3 for outcome in going_on)  # the last stretch has no check
    assert all(outcome.tripped and outcome.auc > 0.9 for outcome in late)


def test_the_docs_hold_the_table(rollback: ModuleType, tmp_path: Path) -> None:
    document = (ROOT / "docs" / "POISONING.md").read_text(encoding="utf-8")
    assert "python packaging/audit/rollback.py --seeds 20" in document.split(rollback.MARKS[0])[1]
    copy = tmp_path / "copy.md"
    copy.write_text(document, encoding="utf-8")
    assert rollback.main(["--seeds", "2", "--write", str(copy)], measured=lambda _seeds: []) == 0
    written = copy.read_text(encoding="utf-8")
    assert written.split(rollback.MARKS[0])[0] == document.split(rollback.MARKS[0])[0]
    assert "--seeds 2`" in written
    assert rollback.main(["--seeds", "1"]) == 1
