"""The code of docs/python.md and docs/notebook.ipynb runs, and shows what the text says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import anoscan

DOCS = Path(__file__).parents[2] / "docs"


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"python.md, block {number}", "exec"), names)
    assert names["predictions"].maps.shape == (25, 8, 8)
    assert names["predictions"].reconstructions.dtype == "uint8"
    assert len(str(names["predictions"]).splitlines()) == 3
    assert len(names["table"]) == 25


# Of the client and the kernel, which talk over sockets.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(anoscan.__file__).parents[1]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    shown = [_shown(cell) for cell in notebook.cells]
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    assert [_shown(cell) for cell in notebook.cells] == shown  # as kept in the file
    assert {"image/png", "text/html"} <= set().union(*shown)
    texts = [str(output) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "<progress" in texts[0]
    assert "calibrating 5/5" in texts[0]
    auroc = float(notebook.cells[-1].outputs[0].data["text/plain"])
    assert auroc > 0.8


def _shown(cell: Any) -> set[str]:
    """Kinds of what a cell shows."""
    return {kind for output in cell.get("outputs", []) for kind in output.get("data", {"text": 0})}
