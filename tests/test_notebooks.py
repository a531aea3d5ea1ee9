"""Every notebook runs from top to bottom, and the executed copy beside it shows the same cells."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.mark.filterwarnings("ignore")  # Jupyter's own, in this process
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem != "six_questions")) for p in NOTEBOOKS],
    ids=lambda p: p.stem,
)
def test_the_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_RUNS", str(tmp_path))
    book = jupytext.read(path)
    NotebookClient(book, timeout=600, resources={"metadata": {"path": path.parent}}).execute()
    shown = [cell for cell in book.cells if cell.cell_type == "code" and cell.outputs]
    assert len(shown) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_executed_copy_has_the_same_cells(path: Path) -> None:
    text, executed = jupytext.read(path), nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    assert [c.source for c in text.cells] == [c.source for c in executed.cells]
    assert any(c.get("outputs") for c in executed.cells)
