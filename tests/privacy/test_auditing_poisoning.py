"""The measurement of poisoning runs as the docs say, and the docs hold what it prints."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def poisoning() -> ModuleType:
    spec = importlib.util.spec_from_file_location("poisoning", ROOT / "packaging" / "audit" / "poisoning.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.modules["poisoning"] = module
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def rows(poisoning: ModuleType) -> dict[tuple[str, str], list[object]]:
    return {(who, name): outcomes for who, name, outcomes in poisoning.measure(2)}


def test_the_attacks_do_what_their_names_say(poisoning: ModuleType, rows: dict[tuple[str, str], list]) -> None:  # type: ignore[type-arg]
    honest = rows["nobody", "none"]
    assert min(outcome.auc for outcome in honest) > 0.95
    assert len(rows) == 1 + 2 * len(poisoning.ATTACKS)
    for (_, name), outcomes in rows.items():
        for before, outcome in zip(honest, outcomes, strict=True):
            if "largest" in name or "beyond" in name:
                assert outcome.auc < 0.3
            if "beyond" in name:
                assert outcome.norm > 5 * before.norm
            if "backdoor" in name:
                assert outcome.auc > 0.9
                assert outcome.backdoor > before.backdoor + 0.2


def test_the_document_holds_a_dated_table_of_every_row(
    poisoning: ModuleType, rows: dict[tuple[str, str], list[object]]
) -> None:
    document = (ROOT / "docs" / "POISONING.md").read_text(encoding="utf-8")
    measured = document.split(poisoning.MARKS[0])[1].split(poisoning.MARKS[1])[0]
    assert "Measured on 20" in measured
    assert "`python packaging/audit/poisoning.py --seeds " in measured
    printed = poisoning.table([(who, name, outcomes) for (who, name), outcomes in rows.items()])

    def labels(text: str) -> list[list[str]]:
        return [line.split("|")[1:3] for line in text.splitlines() if line.startswith("|")]

    assert labels(measured) == labels(printed)


def test_a_table_is_written_between_its_marks_alone(poisoning: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{poisoning.MARKS[0]}\nold\n{poisoning.MARKS[1]}\nafter\n", encoding="utf-8")
    poisoning.write(page, "new")
    assert page.read_text() == f"before\n{poisoning.MARKS[0]}\nnew\n{poisoning.MARKS[1]}\nafter\n"
    page.write_text("no place", encoding="utf-8")
    with pytest.raises(ValueError, match="no place for the table"):
        poisoning.write(page, "new")
    assert page.read_text() == "no place"
