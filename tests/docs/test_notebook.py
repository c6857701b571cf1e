"""docs/notebook.ipynb, run from its first cell to its last."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

PATH = ROOT / "docs" / "notebook.ipynb"


def test_the_notebook_runs_and_is_stored_without_results(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    notebook = nbformat.read(PATH, as_version=4)
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert not any(cell.outputs or cell.execution_count for cell in cells.values())
    monkeypatch.setenv("GPT1_RUN", str(tiny_run))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()

    def printed(name: str) -> str:
        outputs = cells[name].outputs
        return "".join(each.text for each in outputs if each.get("name") == "stdout")

    assert printed("load") == "2 layers, 4 heads, context 32\n"
    for name in ("attention", "next"):
        assert any("image/png" in each.get("data", {}) for each in cells[name].outputs)
    assert printed("samples").count("the old man") == 2
    likely, unlikely = (float(line.split()[0]) for line in printed("score").splitlines())
    assert likely < unlikely
    assert printed("tune").startswith("places: accuracy ")
    rows = [line.split() for line in printed("predict").splitlines()]
    assert len(rows) == 2 and all(row[0] in ("kitchen", "garden") for row in rows)
    assert all(0.5 <= float(row[1]) <= 1 for row in rows)
